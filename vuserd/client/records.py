"""What the methods return, as typed records made of values from the wire.

Names and link targets are ``str`` as :func:`os.fsdecode` gives them: :func:`os.fsencode` gives the
bytes back.  Keys that a newer daemon adds are ignored; a missing or mistyped one is a
:class:`BadReply`.
"""

import os
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, NewType, NotRequired, TypedDict, TypeVar

from vuserd.client.errors import BadReply, RemoteError
from vuserd.wire.codec import name_bytes

T = TypeVar("T")

_STAT_NUMBERS = itemgetter(
    "mode", "size", "ino", "nlink", "uid", "gid", "rdev", "blocks", "blksize",
    "atime_ns", "mtime_ns", "ctime_ns",
)  # fmt: skip


class Stat(NamedTuple):
    """The attributes of a file, with the host's numbers; times are nanoseconds since 1970."""

    type: str  #: one of file, dir, symlink, fifo, socket, char, block
    mode: int  #: type and permission bits, as ``st_mode``
    size: int
    ino: int
    nlink: int
    uid: int | None  #: None where the daemon's backend cannot see whose it is
    gid: int | None  #: likewise
    rdev: int
    blocks: int  #: of 512 bytes
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    submount: bool = False  #: another file system is mounted here

    @classmethod
    def from_wire(cls, value: Any) -> "Stat":
        """Make it of the map that ``stat`` returns."""
        try:
            numbers: tuple[Any, ...] = _STAT_NUMBERS(value)
            kind, submount = value["type"], value.get("submount", False)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadReply(f"an incomplete stat from the daemon: {error!r}") from None
        if not isinstance(kind, str) or not _are_numbers(numbers):
            raise BadReply("a stat from the daemon has a field of the wrong type")
        mode, size, ino, nlink, uid, gid, rdev, blocks, blksize, *_ = numbers
        words = (mode, nlink, uid or 0, gid or 0, blksize)
        if min(size, ino, rdev, blocks, *words) < 0 or max(words) > _WORD:
            raise BadReply("a stat from the daemon has a number that no file can have")
        return cls(*(kind, *numbers, bool(submount)))

    def same_file(self, other: "Stat") -> bool:
        """Return whether two looks at one file saw the same version, as far as a stat can say.

        Files of two file systems can have all of it in common and other bytes.
        """
        return bool(_IDENTITY(self) == _IDENTITY(other))


def _are_numbers(fields: tuple[Any, ...]) -> bool:
    """Return whether all fields of a stat are integers, or owners that are not known."""
    if set(map(type, fields)) == {int}:
        return True
    others = fields[:_UID] + fields[_GID + 1 :]
    owners = fields[_UID : _GID + 1]
    return set(map(type, others)) == {int} and set(map(type, owners)) <= {int, type(None)}


#: The most that a number of 32 bits may be, and the fields of a stat that are one in FUSE. Others
#: have 64 bits, as all that MessagePack has; times alone may be negative.
_WORD: Final = 0xFFFF_FFFF
_WORDS: Final = frozenset({"mode", "nlink", "uid", "gid", "blksize"})
_LONG: Final = frozenset({"size", "ino", "rdev", "blocks"})
#: The most bytes of a file: offsets in it are loff_t.
_LONGEST: Final = (1 << 63) - 1


def require_possible(field: str, values: Sequence[Any]) -> None:
    """Refuse a field of many stats, whose types were looked at, if one value is out of its range.

    Raises:
        BadReply: no file can have it.

    """
    if field in _WORDS:
        different = {*values} - {None}  # few, most often
        is_possible = not different or 0 <= min(different) <= max(different) <= _WORD
    else:
        is_possible = field not in _LONG or not values or min(values) >= 0
    if not is_possible:
        raise BadReply(f"the daemon sent a {field!r} that no file can have")


_UID, _GID = Stat._fields.index("uid") - 1, Stat._fields.index("gid") - 1
_IDENTITY = itemgetter(*map(Stat._fields.index, ("ino", "size", "mtime_ns", "ctime_ns")))


class OpenedFile(NamedTuple):
    """A file that the daemon has open for its client: its number there, and what it was then."""

    file: int
    stat: Stat
    settled: bool  #: a later change is sure to show in its timestamps
    by_attributes: bool  #: what has these attributes elsewhere in the export is this file

    @classmethod
    def from_wire(cls, value: Any) -> "OpenedFile":
        """Make it of the map that ``open`` returns."""
        stat = Stat.from_wire(value)
        if stat.size > _LONGEST:
            raise BadReply("the daemon opened a file of a size that no file can have")
        return cls(
            field_of(value, "file"),
            stat,
            field_of(value, "settled", to_flag),
            field_of(value, "by_attributes", to_flag),
        )

    def is_same(self, other: "OpenedFile") -> bool:
        """Return whether another opening was of the same version of the same file, for certain."""
        return self.by_attributes and other.by_attributes and self.stat.same_file(other.stat)


class ExtentsPage(NamedTuple):
    """Where an open file has data: offsets and lengths, in bytes, and where to go on."""

    extents: list[tuple[int, int]]
    next: int | None

    @classmethod
    def from_wire(cls, value: Any) -> "ExtentsPage":
        """Make it of what ``extents`` returns."""
        pairs = [_pair(pair) for pair in field_of(value, "extents", to_list)]
        end = 0
        for offset, length in pairs:
            if offset < end or length <= 0:
                raise BadReply("the daemon sent extents that are not in order")
            end = offset + length
        following = value.get("next")
        if following is not None and to_int(following) < end:
            raise BadReply("the daemon sent extents that lead back")
        return cls(pairs, following)


class Entry(NamedTuple):
    """One name in a directory; ``stat`` where attributes were asked for and could be had."""

    name: str
    type: str  #: as Stat.type, or unknown
    ino: int
    stat: Stat | None = None

    @classmethod
    def from_wire(cls, value: Any) -> "Entry":
        """Make it of an element of a page's ``entries``."""
        return cls(*_entry_from_wire(value, "name"))


#: Where a listing or a walk goes on, opaque: what a page has as ``next``, and the call for the
#: following one takes as ``after``, on the same connection.
PageToken = NewType("PageToken", object)


class DirectoryPage(NamedTuple):
    """Some entries of a directory, and the token that asks for those after them."""

    entries: list[Entry]
    next: PageToken | None  #: None after the last page


class WalkEntry(NamedTuple):
    """One file below where a walk began; ``stat`` where attributes were asked for."""

    path: str  #: from where the walk began
    type: str  #: as Stat.type, or unknown
    ino: int
    stat: Stat | None = None

    @classmethod
    def from_wire(cls, value: Any) -> "WalkEntry":
        """Make it of an element of a page's ``entries``."""
        return cls(*_entry_from_wire(value, "path"))


class WalkProblem(NamedTuple):
    """A directory that could not be read, and why."""

    path: str
    error: RemoteError

    @classmethod
    def from_wire(cls, value: Any) -> "WalkProblem":
        """Make it of an element of a page's ``problems``."""
        return cls(field_of(value, "path", to_name), RemoteError.from_wire(value))


class WalkPage(NamedTuple):
    """A part of a tree, and the token that asks for the next one on the same connection."""

    entries: list[WalkEntry]
    problems: list[WalkProblem]
    next: PageToken | None  #: None after the last page

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing of the tree."""
        return not (self.entries or self.problems)


class BackendStatus(TypedDict):
    """The virtiofsd behind an export, as ``status`` has it."""

    kind: str
    version: str | None
    pid: int | None
    generation: int


class LossStatus(TypedDict):
    """How an export's backend was lost; ``when`` is in seconds since 1970."""

    cause: str
    reason: str
    when: float


class ExportStatus(TypedDict):
    """An export; what only managers of the daemon see, or only some states have, may be missing."""

    name: str
    state: str
    backend: BackendStatus | None
    reason: NotRequired[str]
    source: NotRequired[str]
    restarts: NotRequired[int]
    restarts_by_cause: NotRequired[dict[str, int]]
    last_loss: NotRequired[LossStatus | None]
    requests: NotRequired[int]
    in_flight: NotRequired[int]
    nodes: NotRequired[int]
    lookups: NotRequired[int]
    payloads: NotRequired[int]


class ClientStatus(TypedDict):
    """A connection; ``since`` is in seconds since 1970."""

    pid: int
    uid: int
    command: str | None
    requests: int
    in_flight: int
    bytes_read: int
    since: float


class RigStatus(TypedDict):
    """A rig."""

    netns: str
    socket: str
    state: str
    exports: list[str]
    clients: int
    reason: NotRequired[str]


class ListenerStatus(TypedDict):
    """A socket of the daemon's."""

    socket: str
    #: ``listening`` or ``failed``; a daemon of 0.1.0 or earlier does not say.
    state: NotRequired[str]
    activated: bool
    clients: int
    reason: NotRequired[str]


class OriginStatus(TypedDict):
    """Where this client came from."""

    socket: str
    rig: str | None
    #: Its network namespace: ``same`` as the socket's, a ``rig``'s, an ``other``, or ``unknown``.
    namespace: str


class ImagesStatus(TypedDict):
    """The cache of images."""

    count: int
    bytes: int
    hits: int
    misses: int


class Status(TypedDict):
    """The daemon's state; what stands below ``clients`` is for managers of the daemon alone."""

    version: str
    uptime_s: float
    exports: list[ExportStatus]
    rigs: list[RigStatus]
    origin: NotRequired[OriginStatus]
    clients: list[ClientStatus]
    pid: NotRequired[int]
    socket: NotRequired[str]
    listeners: NotRequired[list[ListenerStatus]]
    connections: NotRequired[int]
    requests: NotRequired[int]
    errors: NotRequired[int]
    bytes_read: NotRequired[int]
    bytes_of_images: NotRequired[int]
    bytes_loaded: NotRequired[int]
    images: NotRequired[ImagesStatus]


def status_from_wire(value: Any) -> Status:
    """Return what ``status`` returns, which is a map; what is in it is not checked."""
    status: Status = to_map(value)  # type: ignore[assignment]
    return status


class Backend(NamedTuple):
    """The virtiofsd behind an export."""

    kind: str
    version: str | None
    pid: int | None
    generation: int | None


class ExportInfo(NamedTuple):
    """A directory that the daemon publishes; ``reason`` says why no backend serves it."""

    name: str
    state: str
    backend: Backend | None = None
    reason: str | None = None

    @classmethod
    def from_wire(cls, value: Any) -> "ExportInfo":
        """Make it of an element of what ``exports`` returns."""
        name, state = field_of(value, "name", to_name), field_of(value, "state", str)
        backend = value.get("backend")
        if backend is not None:
            backend = Backend(
                field_of(backend, "kind", str),
                _optional(backend, "version", to_name),
                _optional(backend, "pid", to_int),
                _optional(backend, "generation", to_int),
            )
        return cls(name, state, backend, _optional(value, "reason", to_name))


class RigInfo(NamedTuple):
    """A network namespace with a socket of the daemon's inside."""

    netns: str
    socket: str
    state: str  #: listening, absent or failed
    exports: list[str]  #: that are seen in it
    clients: int
    reason: str | None = None  #: why it is not listening

    @classmethod
    def from_wire(cls, value: Any) -> "RigInfo":
        """Make it of an element of what ``rigs`` returns."""
        return cls(
            field_of(value, "netns", to_name),
            field_of(value, "socket", to_name),
            field_of(value, "state", str),
            [to_name(name) for name in field_of(value, "exports", to_list)],
            field_of(value, "clients"),
            _optional(value, "reason", to_name),
        )


class FsStat(NamedTuple):
    """The file system an export's path is on; sizes in units of ``frsize``."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    frsize: int
    namelen: int

    @classmethod
    def from_wire(cls, value: Any) -> "FsStat":
        """Make it of what ``statfs`` returns."""
        return cls(*(field_of(value, name) for name in cls._fields))


class ImageInfo(NamedTuple):
    """What ``fetch`` says beside the descriptor; ``cached`` where the daemon had the image."""

    size: int
    mtime_ns: int
    ino: int
    cached: bool

    @classmethod
    def from_wire(cls, value: Any) -> "ImageInfo":
        """Make it of what ``fetch`` returns."""
        size, mtime_ns, ino = (field_of(value, key) for key in ("size", "mtime_ns", "ino"))
        if size < 0:
            raise BadReply("the daemon sent an image of a negative size")
        return cls(size, mtime_ns, ino, bool(field_of(value, "cached", bool)))


class ApiInfo(NamedTuple):
    """What the daemon speaks; ``methods`` are maps with name, params, returns and since."""

    version: str
    api_level: int
    api_compatible: int
    methods: list[dict[str, Any]]
    errors: list[Any]

    @classmethod
    def from_wire(cls, value: Any) -> "ApiInfo":
        """Make it of what ``api_info`` returns."""
        return cls(
            field_of(value, "version", str),
            field_of(value, "api_level"),
            field_of(value, "api_compatible"),
            [to_map(method) for method in field_of(value, "methods", to_list)],
            field_of(value, "errors", to_list),
        )


def _entry_from_wire(value: Any, key: str) -> tuple[str, str, int, Stat | None]:
    """Return name or path, type, inode number and attributes of an entry: a listing's main work."""
    try:
        name, kind, ino = value[key], value["type"], value["ino"]
    except (KeyError, TypeError, IndexError):
        raise BadReply(f"the daemon sent an entry without {key!r}, 'type' or 'ino'") from None
    if type(name) is not str or not name.isascii():
        name = to_name(name)
    if type(kind) is not str or type(ino) is not int:
        raise BadReply("the daemon sent an entry with a field of the wrong type")
    if ino < 0:
        raise BadReply("the daemon sent an 'ino' that no file can have")
    return name, kind, ino, Stat.from_wire(value) if "mode" in value else None


def _pair(value: object) -> tuple[int, int]:
    pair = to_list(value)
    if len(pair) != 2:
        raise BadReply(f"the daemon sent {len(pair)} numbers where two belong")
    return to_int(pair[0]), to_int(pair[1])


def to_name(value: object) -> str:
    """Return a name or a link target from the wire as ``str``."""
    try:
        return os.fsdecode(name_bytes(value))
    except (TypeError, ValueError) as error:
        raise BadReply(f"a name from the daemon: {error}") from None


def to_list(value: object) -> list[Any]:
    """Return the array that it has to be."""
    return _typed(value, list)


def to_map(value: object) -> dict[str, Any]:
    """Return the map that it has to be."""
    return _typed(value, dict)


def to_int(value: object) -> int:
    """Return the integer that it has to be."""
    return _typed(value, int)


def to_flag(value: object) -> bool:
    """Return the truth value that it has to be."""
    return _typed(value, bool)


def to_length(value: object) -> int:
    """Return the number of bytes that ``load`` returns."""
    length: int = field_of(value, "length")
    if length < 0:
        raise BadReply("the daemon loaded a negative number of bytes")
    return length


def to_nothing(_: object) -> None:
    """Return None, where the method returns nil."""


def next_token(page: dict[str, Any]) -> PageToken | None:
    """Return what asks for the page after this one: opaque, but a key of what goes on."""
    token = page.get("next")
    if token is None:
        return None
    if not isinstance(token, bytes | str | int):
        raise BadReply(f"the daemon sent {type(token).__name__} in place of a token")
    if isinstance(token, str) and not _is_utf8(token):
        raise BadReply("the daemon sent a token that is no text")  # nor can it be sent back
    return PageToken(token)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def exports_from_wire(value: object) -> list[ExportInfo]:
    """Make the records of what ``exports`` returns."""
    return [ExportInfo.from_wire(export) for export in to_list(value)]


def rigs_from_wire(value: object) -> list[RigInfo]:
    """Make the records of what ``rigs`` returns."""
    return [RigInfo.from_wire(rig) for rig in to_list(value)]


def to_lines(value: object) -> list[str]:
    """Return the lines that ``reload`` returns; none where it returns nil."""
    return [] if value is None else [to_name(line) for line in to_list(value)]


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise BadReply(f"the daemon sent {type(value).__name__} in place of {kind.__name__}")
    return value


def field_of(value: Any, key: str, convert: Callable[[Any], Any] = to_int) -> Any:
    """Return one field of a map from the wire."""
    try:
        field = value[key]
    except (KeyError, TypeError, IndexError):
        raise BadReply(f"the daemon's answer has no {key!r}") from None
    return _typed(field, str) if convert is str else convert(field)


def _optional(value: dict[str, Any], key: str, convert: Callable[[Any], T]) -> T | None:
    """Return one field of a map from the wire; None where it is nil or missing."""
    field = value.get(key)
    return None if field is None else convert(field)
