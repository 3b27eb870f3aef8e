"""A page of a tree: entries as records, and the bytes of files where they were received.

All of it comes from the daemon and is checked before any of it is used, a column at a time.
"""

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

from vuserd.client.errors import BadReply, RemoteError
from vuserd.client.records import PageToken, Stat, require_possible, to_name
from vuserd.errors import in_a_sentence
from vuserd.wire.codec import decode_value

#: Bytes of a page, with its index: between two pages the backend has nothing to do for a moment.
PAGE_BYTES: Final = 4 << 20

_HEAD: Final = struct.Struct(">I")
#: The types of what each column may hold; all that are not named here are numbers.
_NIL: Final = type(None)
_KINDS: Final[dict[str, set[type]]] = {
    **{name: {int} for name in Stat._fields},
    "type": {str},
    "uid": {int, _NIL},
    "gid": {int, _NIL},
    "submount": {bool},
    "path": {str, bytes},
    "target": {str, bytes, _NIL},
    "link": {bytes, _NIL},
    "offset": {int, _NIL},
    "length": {int, _NIL},
    "error": {str, _NIL},
}
#: What codes that are no errno's name mean of an entry.
_WORDS: Final = {"CHANGED": "the file changed in each attempt to read it"}
#: The longest bin that names a file with several names.
_LONGEST_LINK: Final = 64


class TreeEntry(NamedTuple):
    """One file below where a tree begins, or why there is no more of it.

    A directory that could not be read comes once more, with the error.
    """

    path: str  #: from where the tree begins
    stat: Stat | None  #: None where it could not be looked up
    target: str | None = None  #: where a symlink leads to
    #: The bytes of a file, in one version, until the next entry is asked for. A file without them
    #: and without an error is read by itself.
    content: memoryview | None = None
    link: bytes | None = None  #: the same for all names of a file that has several, where known
    error: RemoteError | None = None

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]


class TreePage(NamedTuple):
    """Some entries of a tree, and the token that asks for those after them."""

    entries: list[TreeEntry]
    next: PageToken | None  #: None after the last page

    @classmethod
    def from_wire(cls, page: memoryview) -> "TreePage":
        """Make it of the bytes that ``tree`` returns; contents stay where they are.

        Raises:
            BadReply: they are no such page.

        """
        return RawTreePage.from_wire(page).decoded()


class RawTreePage(NamedTuple):
    """A page of a tree, its entries as they came: so the next one can be asked for first."""

    columns: Any
    problems: Any
    content: memoryview
    next: PageToken | None

    @classmethod
    def from_wire(cls, page: memoryview) -> "RawTreePage":
        """Make it of the bytes that ``tree`` returns; contents stay where they are.

        Raises:
            BadReply: they are no such page.

        """
        if len(page) < _HEAD.size:
            raise BadReply("a page of a tree without an index")
        end = _HEAD.size + _HEAD.unpack_from(page)[0]
        if end > len(page):
            raise BadReply("a page of a tree that is shorter than its index")
        try:
            index = decode_value(page[_HEAD.size : end])
        except (ValueError, MemoryError) as error:
            raise BadReply(f"the index of a page is no MessagePack: {error}") from None
        if not isinstance(index, dict):
            raise BadReply("the index of a page is no map")
        following = index.get("next")
        if not isinstance(following, bytes | None):
            raise BadReply("the daemon sent something else in place of a token")
        token = None if following is None else PageToken(following)
        return cls(index.get("entries"), index.get("problems"), page[end:], token)

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing of the tree."""
        columns = self.columns
        return not (self.problems or (isinstance(columns, dict) and columns.get("path")))

    def decoded(self) -> TreePage:
        """Return the page with its entries as records.

        Raises:
            BadReply: they are not what ``tree`` returns.

        """
        entries = [*_entries(self.columns, self.content), *_problems(self.problems)]
        return TreePage(entries, self.next)


def _entries(columns: object, content: memoryview) -> Iterator[TreeEntry]:
    if columns == {}:
        return iter(())
    known = _columns(columns)
    if not known["path"]:
        return iter(())
    stats = _stats(known)
    paths = _paths(known["path"])
    targets = _targets(known["target"])
    views = _views(known, content)
    errors = [None if code is None else _error(code) for code in known["error"]]
    rows = zip(paths, stats, targets, views, known["link"], errors, strict=True)
    return map(partial(tuple.__new__, TreeEntry), rows)


def _columns(columns: object) -> dict[str, list[Any]]:
    """Return the columns, each with values of its types and all of one length.

    Raises:
        BadReply: they are not.

    """
    if not isinstance(columns, dict) or not all(
        isinstance(columns.get(name), list) for name in _KINDS
    ):
        raise BadReply("the daemon sent a page of a tree without some of its columns")
    if len({len(columns[name]) for name in _KINDS}) != 1:
        raise BadReply("the daemon sent columns of a tree that differ in length")
    for name, allowed in _KINDS.items():
        if not set(map(type, columns[name])) <= allowed:
            raise BadReply(f"the daemon sent a tree with a {name} of the wrong type")
        require_possible(name, columns[name])
    if any(link is not None and len(link) > _LONGEST_LINK for link in columns["link"]):
        raise BadReply("the daemon sent a tree with too long a link")
    return columns


def _stats(columns: dict[str, list[Any]]) -> list[Stat | None]:
    rows = zip(*(columns[name] for name in Stat._fields), strict=True)
    stats: list[Stat | None] = list(map(partial(tuple.__new__, Stat), rows))
    if "unknown" in columns["type"]:
        errors = columns["error"]
        for place, kind in enumerate(columns["type"]):
            if kind == "unknown" and errors[place] is not None:
                stats[place] = None
    return stats


def _paths(paths: list[str | bytes]) -> list[str]:
    """Return paths whose components can all be names of files.

    Raises:
        BadReply: one of them can not.

    """
    names = _names(paths)
    joined = "/" + "/\0/".join(names) + "/"
    if joined.count("\0") != len(names) - 1 or any(odd in joined for odd in ("//", "/./", "/../")):
        raise BadReply("the daemon sent a tree with a path that is none of a file in it")
    return names


def _names(names: Iterable[str | bytes]) -> list[str]:
    return [name if type(name) is str and name.isascii() else to_name(name) for name in names]


def _targets(targets: list[str | bytes | None]) -> list[str | None]:
    return [
        target if target is None or (type(target) is str and target.isascii()) else to_name(target)
        for target in targets
    ]


def _views(columns: dict[str, list[Any]], content: memoryview) -> list[memoryview | None]:
    """Return the bytes of each file that has them.

    Raises:
        BadReply: they are not in the page, not all of the file, or not of a file.

    """
    offsets, lengths = columns["offset"], columns["length"]
    views: list[memoryview | None] = [None] * len(offsets)
    end = len(content)
    rows = zip(offsets, lengths, columns["size"], columns["type"], columns["error"], strict=True)
    for place, (offset, length, size, kind, error) in enumerate(rows):
        if offset is None or length is None:
            if offset is not length:
                raise BadReply("the daemon sent a file with half of the place of its bytes")
            continue
        if length != size or kind != "file" or error is not None:
            raise BadReply("the daemon sent bytes of a file that are not all of it")
        if offset < 0 or offset + length > end:
            raise BadReply("the daemon sent a file whose bytes are not in the page")
        views[place] = content[offset : offset + length]
    return views


def _error(code: str) -> RemoteError:
    """Return the error of an entry, with this machine's words for an errno."""
    number = getattr(errno, code, None) if code[:1] == "E" else None
    if isinstance(number, int):
        return RemoteError(code, in_a_sentence(os.strerror(number)))
    return RemoteError(code, _WORDS.get(code, "it cannot be read"))


def _problems(problems: object) -> list[TreeEntry]:
    """Return directories that could not be read; the path of the first one of all is empty."""
    if not isinstance(problems, list) or not all(isinstance(each, dict) for each in problems):
        raise BadReply("the daemon sent a page of a tree without its problems")
    found = []
    for problem in problems:
        path = to_name(problem.get("path"))
        if path:
            _paths([path])
        error = RemoteError.from_wire({key: problem[key] for key in problem if key != "path"})
        found.append(TreeEntry(path, None, error=error))
    return found
