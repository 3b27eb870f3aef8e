"""A FUSE server that shows any tree that it is told to, however odd: ``oddfs.py MOUNTPOINT``.

It mounts /dev/fuse by itself (root), and takes trees from standard input: each a length and a
pickled :class:`~tests.systems.oddtree.Node`, answered by a line once it is shown. What the kernel
does not let through (a "/" in a name, an errno of 512) is the caller's to leave out. It ends with
its input, and with its mount. Numbers: linux/fuse.h, version 7.31.
"""

import ctypes
import errno
import io
import os
import pickle
import select
import stat
import struct
import sys
from dataclasses import replace
from enum import IntEnum
from typing import Final

from tests.systems.oddtree import LENGTH, Backing, Entry, Node, Time


class Operation(IntEnum):
    """What the kernel asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


_UNANSWERED: Final = {Operation.FORGET, Operation.BATCH_FORGET, Operation.INTERRUPT}
_HEADER: Final = struct.Struct("<IIQQ")  # of a request: length, operation, unique, node
_HEADER_BYTES: Final = 40
_REPLY: Final = struct.Struct("<IiQ")
_ATTRIBUTES: Final = struct.Struct("<6Q10I")
_ENTRY: Final = struct.Struct("<QQQQII")
_DIRENT: Final = struct.Struct("<QQII")
_READ: Final = struct.Struct("<QQI")
_OPENED: Final = struct.Struct("<QII")
_STATFS: Final = struct.Struct("<5Q4I24x")
_INITIALIZED: Final = struct.Struct("<IIIIHHIIHHI7I")
_GETATTR: Final = struct.Struct("<I4xQ")

_MAX_PAGES: Final = 1 << 22  # of INIT; with it, names may have 4,095 bytes (Linux 6.15)
_GETATTR_FH: Final = 1
_DIRECT_IO: Final = 1
_MOST_READ: Final = 128 << 10
_ROOT: Final = 1
_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1


class Refusal(Exception):  # noqa: N818 - an answer, and no fault of the server
    """The operation is answered with an errno."""


class Server:
    """The tree that is shown, and what is open of it."""

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._numbers: dict[object, int] = {}
        self._looked_up: dict[object, int] = {}
        self._cursors: dict[int, int] = {}  # of directories that are open
        self._files: dict[int, int] = {}  # descriptors of backing files
        self._last = _ROOT  # neither nodes nor handles get a number twice

    def show(self, root: Node) -> None:
        self._nodes = {_ROOT: root}
        self._numbers.clear()
        self._looked_up.clear()

    def answer(self, operation: int, number: int, body: bytes) -> bytes:
        """Return the reply's content, or raise Refusal."""
        if operation == Operation.INIT:
            limits = (12, 10, _MOST_READ, 1, 32, 0, 0, *[0] * 7)
            return _INITIALIZED.pack(7, 31, _MOST_READ, _MAX_PAGES, *limits)
        node = self._nodes.get(number)
        if node is None:
            if operation in (Operation.RELEASE, Operation.RELEASEDIR):
                self._close(body)
            raise Refusal(errno.ESTALE)
        try:
            name = Operation(operation).name
        except ValueError:
            raise Refusal(errno.ENOSYS) from None
        if operation in (Operation.RELEASE, Operation.RELEASEDIR):
            self._close(body)
        if name in node.errors:
            raise Refusal(node.errors[name])
        match operation:
            case Operation.LOOKUP:
                return self._look_up(number, node, body.rstrip(b"\0"))
            case Operation.GETATTR:
                return _OPENED.pack(0, 0, 0) + self._attributes(number, self._now(node, body))
            case Operation.READLINK:
                return _content_of(node)
            case Operation.OPEN | Operation.OPENDIR:
                return self._open(node)
            case Operation.READ:
                return self._read(node, *_READ.unpack_from(body))
            case Operation.READDIR:
                return self._list(number, node, *_READ.unpack_from(body))
            case Operation.STATFS:
                return _STATFS.pack(0, 0, 0, 0, 0, node.blksize, 4095, node.blksize, 0)
        return b""

    def _new_number(self) -> int:
        self._last += 1
        return self._last

    def _look_up(self, parent: int, node: Node, name: bytes) -> bytes:
        key: object
        if node.backing is not None:
            found, key = _backed(node.backing, name)
        else:
            for index, entry in enumerate(node.entries):
                if entry.name == name:
                    found, key = entry.node, (parent, index)
                    break
            else:
                raise Refusal(errno.ENOENT)
        if "ENTRY" in found.errors:  # a look-up of this name alone
            raise Refusal(found.errors["ENTRY"])
        if found.later_modes:
            turn = self._looked_up.get(key, 0)
            self._looked_up[key] = turn + 1
            modes = (found.mode, *found.later_modes)
            mode = modes[turn % len(modes)]
            found, key = replace(found, mode=mode), (key, mode)
        number = self._numbers.get(key) or self._new_number()
        self._numbers[key] = number
        self._nodes[number] = found
        return _ENTRY.pack(number, 0, 0, 0, 0, 0) + self._attributes(number, found)

    def _attributes(self, number: int, node: Node) -> bytes:
        size = len(node.content) if node.size is None else node.size
        times = node.times
        return _ATTRIBUTES.pack(
            number if node.ino is None else node.ino,
            size & _U64,
            node.blocks & _U64,
            *(time.seconds & _U64 for time in times),
            *(time.nanoseconds & _U32 for time in times),
            node.mode & _U32,
            node.nlink,
            *node.owner,
            0,
            node.blksize,
            0,
        )

    def _now(self, node: Node, body: bytes) -> Node:
        """Return a node as its backing file is by now."""
        if node.backing is None:
            return node
        flags, handle = _GETATTR.unpack_from(body)
        if flags & _GETATTR_FH and handle in self._files:
            return _of_host(os.fstat(self._files[handle]), node.backing)
        return _of_host(_host_stat(node.backing.path), node.backing)

    def _open(self, node: Node) -> bytes:
        handle = self._new_number()
        if node.backing is not None and node.is_file():
            self._files[handle] = os.open(node.backing.path, os.O_RDONLY)
        self._cursors[handle] = 0
        return _OPENED.pack(handle, _DIRECT_IO if node.direct else 0, 0)

    def _close(self, body: bytes) -> None:
        [handle] = struct.unpack_from("<Q", body)
        self._cursors.pop(handle, None)
        if handle in self._files:
            os.close(self._files.pop(handle))

    def _read(self, node: Node, handle: int, offset: int, size: int) -> bytes:
        if handle in self._files:
            return os.pread(self._files[handle], size, offset)
        return node.content[offset : offset + size]

    def _list(self, number: int, node: Node, handle: int, offset: int, size: int) -> bytes:
        records = [(number, b".", 4), (number, b"..", 4)] if node.dots else []
        entries = node.entries
        if node.backing is not None:
            names = os.listdir(node.backing.path)
            entries = tuple(Entry(name, _backed(node.backing, name)[0]) for name in names)
        for entry in entries:
            kind = stat.S_IFMT(entry.node.mode) >> 12 if entry.type is None else entry.type
            ino = entry.node.ino if entry.ino is None else entry.ino
            records.append((7 if ino is None else ino, entry.name, kind))
        begin = offset if node.offsets is None else self._cursors.get(handle, 0)
        reply = b""
        for index in range(begin, len(records)):
            ino, name, kind = records[index]
            after = index + 1
            if node.offsets:
                after = node.offsets[index % len(node.offsets)]
            record = _DIRENT.pack(ino & _U64, after & _U64, len(name), kind) + name
            record += bytes(-len(record) % 8)
            if len(reply) + len(record) > size:
                break
            reply += record
            self._cursors[handle] = index + 1
        return reply


def _content_of(node: Node) -> bytes:
    return node.content if node.backing is None else os.readlink(node.backing.path)


def _host_stat(path: bytes) -> os.stat_result:
    try:
        return os.lstat(path)
    except OSError as error:
        raise Refusal(error.errno) from None


def _backed(parent: Backing, name: bytes) -> tuple[Node, object]:
    """Return what stands below a directory of the host's, and which file of the host's it is."""
    below = parent._replace(path=os.path.join(parent.path, name))
    status = _host_stat(below.path)
    return _of_host(status, below), (status.st_dev, status.st_ino)


def _of_host(status: os.stat_result, backing: Backing) -> Node:
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    coarse = [Time(*divmod(time - time % backing.grain_ns, 10**9)) for time in times]
    return Node(
        mode=status.st_mode,
        size=status.st_size,
        ino=status.st_ino,
        times=(coarse[0], coarse[1], coarse[2]),
        nlink=status.st_nlink,
        blocks=status.st_blocks,
        direct=True,  # the kernel would keep pages of a file that changes behind it
        backing=backing,
    )


def _mount(place: str, user: str) -> int:
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40755,user_id={user},group_id=0,allow_other"
    options += f",max_read={_MOST_READ}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"odd", os.fsencode(place), b"fuse.odd", 0, options.encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    return fuse


def _serve_one(server: Server, fuse: int) -> None:
    try:
        request = os.read(fuse, 1 << 20)
    except OSError as error:
        if error.errno == errno.ENODEV:  # unmounted
            sys.exit(0)
        if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
            return
        raise
    length, operation, unique, number = _HEADER.unpack_from(request)
    if operation in _UNANSWERED:
        return
    code, content = 0, b""
    try:
        content = server.answer(operation, number, request[_HEADER_BYTES:length])
    except Refusal as refusal:
        [code] = refusal.args
    try:
        os.write(fuse, _REPLY.pack(_REPLY.size + len(content), -code, unique) + content)
    except OSError as error:
        # The caller is gone; or the kernel does not take the reply, and ends the request itself.
        if error.errno not in (errno.ENOENT, errno.EINVAL):
            raise


def main() -> None:
    """Serve until the mount or the orders end."""
    fuse = _mount(*sys.argv[1:3])
    server = Server()
    orders = io.FileIO(sys.stdin.fileno())
    poll = select.poll()
    for source in (fuse, orders.fileno()):
        poll.register(source, select.POLLIN)
    while True:
        for source, _ in poll.poll():
            if source == fuse:
                _serve_one(server, fuse)
                continue
            header = orders.read(LENGTH.size)
            if not header:
                return
            message = b""
            while len(message) < LENGTH.unpack(header)[0]:
                message += orders.read(LENGTH.unpack(header)[0] - len(message))
            server.show(pickle.loads(message))
            print("shown", flush=True)


if __name__ == "__main__":
    main()
