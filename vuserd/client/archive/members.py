"""What an archive holds of each file, and how its names are numbered, sorted and linked."""

import os
import stat as stat_module
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol, TypedDict

from vuserd.client.core.procedure import Progress
from vuserd.client.errors import RemoteError
from vuserd.client.records import Stat

#: Types that are no files, directories or links: drivers and programs meet there.
SPECIAL: Final = frozenset({"fifo", "socket", "char", "block"})
#: The format bits of the types that archives have; those that a mode comes with may be of another.
_FORMATS: Final = {
    "file": stat_module.S_IFREG,
    "dir": stat_module.S_IFDIR,
    "symlink": stat_module.S_IFLNK,
    "fifo": stat_module.S_IFIFO,
    "socket": stat_module.S_IFSOCK,
    "char": stat_module.S_IFCHR,
    "block": stat_module.S_IFBLK,
}


class Archived(NamedTuple):
    """What an archive was made of; paths begin at the tree's root, which is ``.`` itself."""

    entries: int  #: names in the archive
    size: int  #: its bytes
    special: list[tuple[str, str]]  #: devices, fifos and sockets in it: paths and types
    left_out: list[tuple[str, str]]  #: those that are not
    changed: list[str]  #: what changed meanwhile, where that was allowed


class ArchiveOptions(TypedDict, total=False):
    """How ``archive`` of a client writes an archive; nothing of it has to be said."""

    #: ``newc``, which Linux takes as an initramfs and which is the default, or ``tar`` (pax).
    format: str
    #: The user and group of all files, instead of their own.
    owner: tuple[int, int] | None
    #: The time of all files, in seconds since 1970: with an owner, equal trees are equal archives.
    mtime: int | None
    #: Patterns as in a shell: of names at any depth or, with a slash, of paths from the root.
    exclude: Iterable[str | bytes]
    #: Whether devices, fifos and sockets are kept, which is the default; tar has no sockets.
    special: bool
    #: Whether a tree that changes meanwhile is no error.
    allow_changes: bool
    #: Called with the bytes of files that were written, and with all there will be.
    progress: Progress | None


class Look(NamedTuple):
    """How files look in an archive; what is None stays as it is."""

    owner: tuple[int, int] | None = None  #: user and group
    mtime: int | None = None  #: seconds since 1970
    special: bool = True  #: keep devices, fifos and sockets


class Member(NamedTuple):
    """One name in the archive."""

    path: bytes  #: from the tree's root; that itself is "."
    type: str  #: as Stat.type
    mode: int  #: type and permission bits
    uid: int
    gid: int
    mtime_ns: int
    size: int  #: bytes of content: of a file, and of the first or last name of several alone
    rdev: int
    number: int  #: the inode number in the archive
    names: int  #: how many names of the file are in the archive
    earlier: bytes | None  #: the first of these names, if this is another one
    has_content: bool
    target: bytes = b""  #: of a symlink


class Format(Protocol):
    """How an archive is written: heads, each with its content behind it, and an end."""

    #: A multiple that content is padded to, in bytes.
    block: int
    #: Of a file with several names, the last one has the content; else the first one.
    content_is_last: bool
    #: Types that it has no room for.
    lacks: frozenset[str]

    def require(self, member: Member) -> None:
        """Raise RemoteError if a member does not fit in."""

    def head(self, member: Member) -> bytes:
        """Return what stands before the content of a member that fits in."""

    def end(self, written: int) -> bytes:
        """Return what stands after the last member, with ``written`` bytes before it."""


class _Names:
    """The names of one file."""

    __slots__ = ("count", "first", "number", "passed")

    def __init__(self) -> None:
        self.count = self.passed = self.number = 0
        self.first: bytes | None = None


class Plan:
    """The members of an archive of a tree.

    Args:
        root: the attributes of the tree's root.
        tree: those of all below it.
        look: how they are to look.
        form: the archive's format.

    """

    def __init__(self, root: Stat, tree: Mapping[bytes, Stat], look: Look, form: Format) -> None:
        self._root, self._tree, self._look, self._form = root, tree, look, form
        #: Special files that are kept, and those that are left out: paths and types.
        self.kept: list[tuple[bytes, str]] = []
        self.left_out: list[tuple[bytes, str]] = []
        #: What is in the archive below the root, in its order.
        self.paths = [path for path in sorted(tree) if self._is_wanted(path, tree[path].type)]
        #: Those of each file that has several, and they by their paths.
        self._files: dict[tuple[object, ...], _Names] = {}
        self._names: dict[bytes, _Names] = {}
        #: Which mount each directory is in: a number of its own for each.
        self._mounts: dict[bytes, int] = {b"": 0}
        for path in self.paths:
            if (key := self._key(path)) is not None:
                names = self._names[path] = self._files.setdefault(key, _Names())
                names.count += 1

    def members(self) -> Iterator[Member]:
        """Yield them in their order: by the bytes of their paths, so parents come first.

        The sizes of files are those of the listing, and symlinks have no target yet.
        """
        yield self._member(b".", self._root, 1, None)
        number = 1
        for each in self._files.values():
            each.passed = 0
            each.first = None
        for path in self.paths:
            names = self._names.get(path)
            if names is None or not names.passed:
                number += 1
            if names is not None:
                names.passed += 1
                if names.passed == 1:
                    names.number, names.first = number, path
            yield self._member(path, self._tree[path], number, names)

    def _member(self, path: bytes, stat: Stat, number: int, names: _Names | None) -> Member:
        count = 1 if names is None else names.count
        earlier = None
        has_content = stat.type == "file"
        if names is not None:
            number = names.number
            earlier = names.first if names.passed > 1 else None
            has_content &= names.passed == (count if self._form.content_is_last else 1)
        owner = self._look.owner or (stat.uid, stat.gid)
        uid, gid = owner
        if uid is None or gid is None:
            raise unfit("EOVERFLOW", path, "its owner is not known here; name one for all files")
        mtime = self._look.mtime
        return Member(
            path,
            stat.type,
            _FORMATS[stat.type] | stat.mode & 0o7777,
            uid,
            gid,
            stat.mtime_ns if mtime is None else mtime * 10**9,
            stat.size if has_content else 0,
            stat.rdev if stat.type in ("char", "block") else 0,
            number,
            count,
            earlier,
            has_content,
        )

    def _is_wanted(self, path: bytes, kind: str) -> bool:
        if kind not in _FORMATS:
            raise unfit("EINVAL", path, f"it has a type that is not known, {kind!r}")
        if kind not in SPECIAL:
            return True
        is_kept = self._look.special and kind not in self._form.lacks
        (self.kept if is_kept else self.left_out).append((path, kind))
        return is_kept

    def _key(self, path: bytes) -> tuple[object, ...] | None:
        """Return what the names of one file have in common; None where it has one name alone.

        Inode numbers are a mount's own. Names in several mounts of one file system come as files
        of their own.
        """
        stat = self._tree[path]
        is_directory = stat.type == "dir"
        if not is_directory and (stat.nlink < 2 or stat.type == "symlink"):
            return None
        mount = self._mounts[path.rpartition(b"/")[0]]
        if is_directory:
            if path not in self._mounts:
                self._mounts[path] = len(self._mounts) if stat.submount else mount
            return None
        return mount, stat.type, stat.ino, stat.size, stat.mtime_ns, stat.ctime_ns


def unfit(code: str, path: bytes, message: str) -> RemoteError:
    """Return the error of a member that cannot be in the archive."""
    name = os.fsdecode(path)
    return RemoteError(code, f"{name}: {message}", None, name)


def require_numbers(member: Member) -> None:
    """Refuse numbers that no file has: whoever sent them is no daemon to believe.

    Raises:
        RemoteError: EOVERFLOW.

    """
    if (
        min(member.mode, member.uid, member.gid, member.size, member.names, member.rdev) < 0
        or member.rdev >= 1 << 64
    ):
        raise unfit("EOVERFLOW", member.path, "it has numbers that no file can have")
