"""FUSE as virtio-fs carries it: opcodes, requests with the exact size of their replies, replies.

Source: ``include/uapi/linux/fuse.h``, version 7.38. One function a request, named after it, makes
the request and tells the exact size of its reply; ``decode_*`` decodes the reply's body. Directory
entries have their own module, :mod:`protocol.dirent`. Numbers are in the machine's byte order.

::

    request  | len u32 | opcode u32 | unique u64 | nodeid u64 | uid, gid, pid u32 | 0 u32 |
             | body: len - 40 bytes |
    reply    | len u32 | error i32 | unique u64 | body: len - 16 bytes, none after an error |
"""

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from functools import partial
from itertools import chain
from typing import Final, NamedTuple, NewType

from protocol import Check, MalformedError

#: What a backend calls an inode that was looked up; valid with its session only.
NodeId = NewType("NodeId", int)
#: What a backend calls an open file or directory.
FileHandle = NewType("FileHandle", int)

ROOT_ID: Final = NodeId(1)
MAJOR: Final = 7
MINOR: Final = 38
#: The oldest minor whose reply to INIT is 64 bytes and whose flags this module understands.
OLDEST_MINOR: Final = 27
PAGE_SIZE: Final = 4096
#: FUSE_NAME_MAX since Linux 6.14: PATH_MAX - 1. Most file systems have 255, which is theirs to say.
NAME_MAX: Final = 4095
#: Linux's largest errno; a reply's error lies in -4095..0.
MAX_ERRNO: Final = 4095


class Opcode(IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51


class InitFlag(IntFlag):
    """Capability bits of INIT that a reader has a use for; bits from 32 up travel in ``flags2``."""

    ASYNC_READ = 1 << 0
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    SUBMOUNTS = 1 << 27
    INIT_EXT = 1 << 30


class AttributeFlag(IntFlag):
    """``FUSE_ATTR_*``."""

    SUBMOUNT = 1 << 0  #: the directory is the root of a mount inside the export


_GETATTR_FH: Final = 1 << 0

_IN_HEADER = struct.Struct("=IIQQIIII")
_OUT_HEADER = struct.Struct("=IiQ")
#: Returns length, error and ``unique`` of a reply of at least that size, unchecked.
unpack_out_header: Final = _OUT_HEADER.unpack_from
IN_HEADER_SIZE: Final = _IN_HEADER.size
OUT_HEADER_SIZE: Final = _OUT_HEADER.size


class Credentials(NamedTuple):
    """Who asks, in the backend's eyes."""

    uid: int
    gid: int
    pid: int


class Request(NamedTuple):
    """A request before it has its ``unique``.

    ``reply_size`` is the exact number of bytes after the 16-byte out-header that the backend must
    be given to write; None for a request that is never answered, which goes on the hiprio queue.
    """

    opcode: Opcode
    node: NodeId
    body: bytes
    reply_size: int | None

    @property
    def size(self) -> int:
        """Bytes of the request as encoded."""
        return IN_HEADER_SIZE + len(self.body)

    def encode(self, unique: int, who: Credentials) -> bytes:
        """Encode header and body."""
        opcode, node, body, _ = self
        uid, gid, pid = who
        size = IN_HEADER_SIZE + len(body)
        return _IN_HEADER.pack(size, opcode, unique, node, uid, gid, pid, 0) + body


#: Makes a request of its fields, in half the time that the class takes.
_request: Callable[[tuple[Opcode, NodeId, bytes, int]], Request] = partial(tuple.__new__, Request)


def decode_reply_header(reply: bytes, unique: int, used: int) -> int:
    """Check a reply's out-header against the request's ``unique`` and the ``used`` ring's length.

    Returns:
        The errno, 0 for success.

    Raises:
        MalformedError: another length than the header's or less than a header, another
            request's reply, an error outside -4095..0, or a body after an error.

    """
    if used < OUT_HEADER_SIZE:
        raise MalformedError(f"{used} bytes used where an out-header belongs", Check.REPLY_LENGTH)
    if len(reply) < OUT_HEADER_SIZE:
        raise MalformedError(f"a reply of {len(reply)} bytes", Check.REPLY_LENGTH)
    size, error, answered = _OUT_HEADER.unpack_from(reply)
    if answered != unique:
        raise MalformedError(
            f"a reply to request {answered} in the buffers of request {unique}", Check.REPLY_UNIQUE
        )
    if size != used:
        raise MalformedError(f"a reply of {size} bytes in {used} bytes used", Check.REPLY_LENGTH)
    if not -MAX_ERRNO <= error <= 0:
        raise MalformedError(f"error {error} in a reply", Check.REPLY_ERROR)
    if error and size != OUT_HEADER_SIZE:
        raise MalformedError(f"{size - OUT_HEADER_SIZE} bytes after an error", Check.REPLY_LENGTH)
    return -int(error)


# --- INIT -----------------------------------------------------------------------------------------

_INIT_IN = struct.Struct("=IIIII44x")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")


def init(flags: InitFlag, max_readahead: int) -> Request:
    """INIT: versions and capabilities, with the second word of flags (INIT_EXT)."""
    flags |= InitFlag.INIT_EXT
    body = _INIT_IN.pack(MAJOR, MINOR, max_readahead, flags & 0xFFFFFFFF, flags >> 32)
    return Request(Opcode.INIT, NodeId(0), body, _INIT_OUT.size)


class InitReply(NamedTuple):
    """What the backend makes of INIT."""

    minor: int
    flags: InitFlag
    max_write: int  #: bytes
    max_pages: int  #: of one request's payload

    @property
    def max_read(self) -> int:
        """Bytes that one READ may ask for."""
        return self.max_pages * PAGE_SIZE


def decode_init(body: bytes) -> InitReply:
    """Decode ``struct fuse_init_out``.

    Raises:
        MalformedError: a version that this module does not speak.

    """
    major, minor, _, low, _, _, max_write, _, max_pages, _, high = _unpack(_INIT_OUT, body)
    if major != MAJOR or minor < OLDEST_MINOR:
        raise MalformedError(f"FUSE {major}.{minor}, older than {MAJOR}.{OLDEST_MINOR}")
    flags = InitFlag(low | (high << 32 if low & InitFlag.INIT_EXT else 0))
    # Without MAX_PAGES the kernel's old limit of 32 pages holds.
    pages = max_pages if flags & InitFlag.MAX_PAGES else 32
    if not pages:
        raise MalformedError("requests of no pages at all")
    return InitReply(minor, flags, max_write, pages)


# --- nodes ----------------------------------------------------------------------------------------

# Times before 1970 are negative: the kernel casts these fields, declared unsigned, to time64_t.
_ATTRIBUTES = struct.Struct("=QQQqqqIIIIIIIIII")
_ENTRY_HEAD = struct.Struct("=QQQQII")
_ATTR_HEAD = struct.Struct("=QII")
ATTRIBUTES_SIZE: Final = _ATTRIBUTES.size
ENTRY_SIZE: Final = _ENTRY_HEAD.size + ATTRIBUTES_SIZE


class Attributes(NamedTuple):
    """``struct fuse_attr``; sizes in bytes, ``blocks`` of 512 bytes, times in seconds.

    A file system may say anything here: a type that does not exist, a size beyond ``off_t``, a
    fraction of more than a second. It is passed on as it is.
    """

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atime_nsec: int
    mtime_nsec: int
    ctime_nsec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    """A node that a lookup returned: one lookup count of it has to be given back.

    The root's count is not: where a file system numbers two files alike, a backend may take one of
    them for the root of the export.
    """

    node: NodeId
    attributes: Attributes


def decode_attributes_at(buffer: bytes, offset: int) -> Attributes:
    """Decode ``struct fuse_attr`` at ``offset``, where there are as many bytes."""
    return Attributes._make(_ATTRIBUTES.unpack_from(buffer, offset))


def encode_attributes(attributes: Attributes) -> bytes:
    """Encode ``struct fuse_attr``, as :func:`decode_attributes_at` reads it."""
    return _ATTRIBUTES.pack(*attributes)


def version_bytes(attributes: bytes) -> bytes:
    """Return inode number, size, mtime and ctime of a ``struct fuse_attr``, to compare them."""
    return attributes[:16] + attributes[32:48] + attributes[52:60]


def decode_entry_at(buffer: bytes, offset: int) -> Entry | None:
    """Decode ``struct fuse_entry_out`` at ``offset``; None for node id 0, which is no entry.

    Raises:
        MalformedError: there are fewer bytes than an entry has.

    """
    if len(buffer) - offset < ENTRY_SIZE:
        raise MalformedError(f"{len(buffer) - offset} bytes where an entry of {ENTRY_SIZE} belongs")
    node = _ENTRY_HEAD.unpack_from(buffer, offset)[0]
    if node == 0:
        return None
    return Entry(NodeId(node), decode_attributes_at(buffer, offset + _ENTRY_HEAD.size))


def _name(name: bytes) -> bytes:
    if not 1 <= len(name) <= NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise ValueError(f"not the name of a directory entry: {name!r}")
    return name + b"\0"


def lookup(parent: NodeId, name: bytes) -> Request:
    """LOOKUP: the node of ``name`` in ``parent``; success gives one lookup count."""
    return Request(Opcode.LOOKUP, parent, _name(name), ENTRY_SIZE)


def decode_lookup(body: bytes) -> Entry | None:
    """Decode the reply to LOOKUP; None means there is no such name."""
    if len(body) != ENTRY_SIZE:
        raise MalformedError(f"a reply to LOOKUP of {len(body)} bytes")
    return decode_entry_at(body, 0)


_FORGET_SIZE: Final = 16
_BATCH_FORGET_HEAD = struct.Struct("=II")


class Forget(NamedTuple):
    """Lookup counts of one node to give back."""

    node: NodeId
    lookups: int


def batch_forget(forgets: Sequence[tuple[NodeId, int]]) -> Request:
    """BATCH_FORGET: many of them in one request, each as :class:`Forget`."""
    numbers = [*chain.from_iterable(forgets)]
    nodes, lookups = numbers[0::2], numbers[1::2]
    if 0 in nodes or ROOT_ID in nodes or min(lookups, default=1) < 1:
        node, count = next(one for one in forgets if one[0] in (0, ROOT_ID) or one[1] < 1)
        raise ValueError(f"FORGET of {count} lookups of node {node}")
    body = _BATCH_FORGET_HEAD.pack(len(nodes), 0) + struct.pack(f"={len(numbers)}Q", *numbers)
    return Request(Opcode.BATCH_FORGET, NodeId(0), body, None)


def batch_forget_each(nodes: Sequence[NodeId]) -> Request:
    """BATCH_FORGET of one lookup count of each node."""
    if 0 in nodes or ROOT_ID in nodes:
        raise ValueError(f"FORGET of node {0 if 0 in nodes else ROOT_ID}")
    numbers = [1] * (2 * len(nodes))
    numbers[0::2] = nodes
    body = _BATCH_FORGET_HEAD.pack(len(nodes), 0) + struct.pack(f"={len(numbers)}Q", *numbers)
    return Request(Opcode.BATCH_FORGET, NodeId(0), body, None)


def batch_forget_capacity(size: int) -> int:
    """How many forgets a BATCH_FORGET of ``size`` bytes holds."""
    return (size - IN_HEADER_SIZE - _BATCH_FORGET_HEAD.size) // _FORGET_SIZE


_GETATTR_IN = struct.Struct("=IIQ")
_GETATTR: Final = Opcode.GETATTR
_GETATTR_BY_NODE: Final = _GETATTR_IN.pack(0, 0, 0)
GETATTR_REPLY: Final = _ATTR_HEAD.size + ATTRIBUTES_SIZE


def getattr(node: NodeId, handle: FileHandle | None = None) -> Request:  # noqa: A001
    """GETATTR: the attributes of a node, or of the open file behind ``handle``."""
    body = _GETATTR_BY_NODE if handle is None else _GETATTR_IN.pack(_GETATTR_FH, 0, handle)
    return _request((_GETATTR, node, body, GETATTR_REPLY))


def decode_attributes(body: bytes) -> Attributes:
    """Decode ``struct fuse_attr_out``."""
    if len(body) != _ATTR_HEAD.size + ATTRIBUTES_SIZE:
        raise MalformedError(f"a reply to GETATTR of {len(body)} bytes")
    return decode_attributes_at(body, _ATTR_HEAD.size)


def attributes_of(body: bytes) -> bytes:
    """Return the ``struct fuse_attr`` in a ``struct fuse_attr_out``, as it is."""
    if len(body) != GETATTR_REPLY:
        raise MalformedError(f"a reply to GETATTR of {len(body)} bytes")
    return body[_ATTR_HEAD.size :]


def readlink(node: NodeId) -> Request:
    """READLINK: the target of a symlink, without a NUL."""
    return Request(Opcode.READLINK, node, b"", PAGE_SIZE)


def decode_readlink(body: bytes) -> bytes:
    """Decode a target: up to 4096 bytes, of which Linux follows 1 to 4095 without NUL."""
    return bytes(body)


# --- open files and directories -------------------------------------------------------------------

_OPEN_IN = struct.Struct("=II")
_OPEN_OUT = struct.Struct("=QII")
_READ_IN = struct.Struct("=QQIIQII")
_RELEASE_IN = struct.Struct("=QIIQ")
#: Members of an enumeration take longer to find than globals.
_OPEN: Final = Opcode.OPEN
_READ: Final = Opcode.READ
_RELEASE: Final = Opcode.RELEASE
_OPEN_READ_ONLY: Final = _OPEN_IN.pack(0, 0)
OPEN_REPLY: Final = _OPEN_OUT.size


def open(node: NodeId, flags: int = 0) -> Request:  # noqa: A001
    """Make OPEN, for a regular file; ``flags`` as in open(2), O_RDONLY by default."""
    body = _OPEN_IN.pack(flags, 0) if flags else _OPEN_READ_ONLY
    return _request((_OPEN, node, body, OPEN_REPLY))


def opendir(node: NodeId) -> Request:
    """OPENDIR: a handle that READDIR and READDIRPLUS take."""
    return Request(Opcode.OPENDIR, node, _OPEN_IN.pack(0, 0), _OPEN_OUT.size)


def decode_open(body: bytes) -> FileHandle:
    """Decode the reply to OPEN and OPENDIR: the handle, which RELEASE or RELEASEDIR gives back."""
    if len(body) != OPEN_REPLY:
        raise MalformedError(f"a reply of {len(body)} bytes where {OPEN_REPLY} belong")
    handle: FileHandle = _OPEN_OUT.unpack(body)[0]
    return handle


def _read(opcode: Opcode, node: NodeId, handle: FileHandle, offset: int, size: int) -> Request:
    return _request((opcode, node, _READ_IN.pack(handle, offset, size, 0, 0, 0, 0), size))


def read(node: NodeId, handle: FileHandle, offset: int, size: int) -> Request:
    """READ ``size`` bytes at ``offset``; the reply's body is the bytes, fewer at the file's end."""
    return _read(_READ, node, handle, offset, size)


def readdir(node: NodeId, handle: FileHandle, offset: int, size: int) -> Request:
    """READDIR: ``size`` bytes of names, types and inode numbers, from ``offset`` (opaque) on."""
    return _read(Opcode.READDIR, node, handle, offset, size)


def readdirplus(node: NodeId, handle: FileHandle, offset: int, size: int) -> Request:
    """READDIRPLUS: READDIR and a LOOKUP of every entry but "." and ".."."""
    return _read(Opcode.READDIRPLUS, node, handle, offset, size)


def release(node: NodeId, handle: FileHandle) -> Request:
    """RELEASE a handle of OPEN."""
    return _request((_RELEASE, node, _RELEASE_IN.pack(handle, 0, 0, 0), 0))


def releasedir(node: NodeId, handle: FileHandle) -> Request:
    """RELEASEDIR a handle of OPENDIR."""
    return Request(Opcode.RELEASEDIR, node, _RELEASE_IN.pack(handle, 0, 0, 0), 0)


# Words of 64 bits in an encoded request: all that differs between two OPENs, or two READs of a file
# from its beginning, or two of GETATTR or RELEASE.

UNIQUE_WORD: Final = 1
NODE_WORD: Final = 2
#: The handle of READ and RELEASE.
HANDLE_WORD: Final = 5
#: How many bytes READ is to read, with its flags, of which there are none.
READ_SIZE_WORD: Final = 7

_LSEEK_IN = struct.Struct("=QQII")
_LSEEK_OUT = struct.Struct("=Q")


class Whence(IntEnum):
    """What LSEEK looks for; the other ways of lseek(2) never reach a file system."""

    DATA = 3  #: the next byte that is not in a hole, from the offset on
    HOLE = 4  #: the next hole; the end of the file is one


def lseek(node: NodeId, handle: FileHandle, offset: int, whence: Whence) -> Request:
    """LSEEK: where data or a hole begins, from ``offset`` on; ENXIO where there is none."""
    body = _LSEEK_IN.pack(handle, offset, whence, 0)
    return Request(Opcode.LSEEK, node, body, _LSEEK_OUT.size)


def decode_lseek(body: bytes) -> int:
    """Decode the reply to LSEEK: an offset."""
    return _unpack(_LSEEK_OUT, body)[0]


# --- the rest -------------------------------------------------------------------------------------

_STATFS_OUT = struct.Struct("=QQQQQIII28x")


class FileSystemStatistics(NamedTuple):
    """``struct fuse_kstatfs``: counts of blocks of ``frsize`` bytes and of inodes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int
    frsize: int


def statfs(node: NodeId) -> Request:
    """STATFS: the file system that holds ``node``."""
    return Request(Opcode.STATFS, node, b"", _STATFS_OUT.size)


def decode_statfs(body: bytes) -> FileSystemStatistics:
    """Decode the reply to STATFS."""
    return FileSystemStatistics._make(_unpack(_STATFS_OUT, body))


def interrupt(unique: int) -> Request:
    """INTERRUPT: the request of that ``unique`` is no longer wanted."""
    return Request(Opcode.INTERRUPT, NodeId(0), struct.pack("=Q", unique), None)


def _unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise MalformedError(f"a reply of {len(body)} bytes where {layout.size} belong")
    return layout.unpack(body)
