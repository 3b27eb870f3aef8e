"""A daemon for the clients' tests: files in memory, served in a thread over a real unix socket.

It works by itself, so tests need not script each answer; faults are requested by its attributes.
"""

import fcntl
import mmap
import os
import socket
import stat as modes
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.fake.tree_pages import below, page_of
from vuserd.wire.bin_head import encode_bin_response_head
from vuserd.wire.codec import MessageDecoder, Request, encode_response, name_bytes, wire_name

_FORMATS = {
    "file": modes.S_IFREG,
    "dir": modes.S_IFDIR,
    "symlink": modes.S_IFLNK,
    "fifo": modes.S_IFIFO,
    "char": modes.S_IFCHR,
}


#: The content of the one file of some size.
IMAGE = os.urandom(300_001)


@dataclass
class Node:
    """A file; ``content`` is a link's target, too, and a directory has ``children``.

    ``size`` and ``blocks`` are what its attributes say, where that is not so; ``extents`` are where
    it has data, where that is not everywhere.
    """

    type: str = "file"
    content: bytes = b""
    children: dict[bytes, "Node"] = field(default_factory=dict)
    permissions: int = 0o644
    mtime_ns: int = 1_600_000_000_123_456_789
    ctime_ns: int = 1_600_000_000_123_456_789
    rdev: int = 0
    size: int | None = None
    blocks: int | None = None
    extents: list[tuple[int, int]] | None = None

    def stat(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "mode": _FORMATS[self.type] | self.permissions,
            "size": len(self.content) if self.size is None else self.size,
            "ino": id(self) & 0xFFFF_FFFF,
            "nlink": 1,
            "uid": 1000,
            "gid": 100,
            "rdev": self.rdev,
            "blocks": -(-len(self.content) // 512) if self.blocks is None else self.blocks,
            "blksize": 4096,
            "atime_ns": 1_500_000_000_000_000_001,
            "mtime_ns": self.mtime_ns,
            "ctime_ns": self.ctime_ns,
        }


def directory(**children: Node) -> Node:
    return Node("dir", children={name.encode(): node for name, node in children.items()})


def sealed_image(content: bytes) -> int:
    """Return a sealed memfd with these bytes."""
    descriptor = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class FaultError(Exception):
    """An answer that is an error map."""

    def __init__(self, code: str, message: str, **fields: Any) -> None:
        self.wire = {"code": code, "message": message, **fields}


class FakeDaemon:
    """``with FakeDaemon(path, root) as daemon: ...``: exports ``root`` as ``kernels``."""

    def __init__(self, address: str, root: Node) -> None:
        self.address = address
        self.root = root
        #: Reply only when so many requests have come, to the last one first; with 1 in their order,
        #: however many come together.
        self.hold = 1
        self.api_level = 1
        #: Entries of a page of a tree, and the most bytes of a file in it.
        self.tree_limit, self.tree_most = 1000, 1 << 20
        #: Send in pieces of so many bytes; None for as large as they come.
        self.piece: int | None = None
        #: Close a connection once it has been sent so many bytes.
        self.cut_after: int | None = None
        #: Called with each request before it is answered.
        self.before: Callable[[Request], None] = lambda _request: None
        #: Whole responses, in place of what these methods would answer.
        self.raw: dict[str, Callable[[Request], bytes]] = {}
        #: Results, in place of what these methods would answer.
        self.results: dict[str, Any] = {}
        #: Read nothing while this is not set.
        self.reads = threading.Event()
        self.reads.set()
        #: Methods that it does not know.
        self.unknown: set[str] = {"tree"}
        self.requests: list[Request] = []
        #: How often memory was attached.
        self.attached = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        #: Attached memory, by the connection that it is attached on, and its number there.
        self.memories: dict[tuple[int, int], mmap.mmap] = {}
        #: Files that clients have open, likewise: the numbers of all connections begin alike.
        self.open: dict[tuple[int, int], Node] = {}
        #: Whether timestamps show every change from now on.
        self.settled = True
        #: Whether attributes identify a file.
        self.by_attributes = True
        #: The most extents that are told at once.
        self.extents_limit = 1000
        #: What clients still had open when they closed their connection properly.
        self.left: list[tuple[int, int]] = []
        #: The connection that this thread serves, as ``number``, and what came and was not used.
        self._here = threading.local()
        self._threads: list[threading.Thread] = []
        self._encoding = threading.Lock()
        self._connections: list[socket.socket] = []
        self._ended: list[socket.socket] = []  # by this side

    def __enter__(self) -> Self:
        self._listener.bind(self.address)
        self._listener.listen()
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.reads.set()
        self.refuse_clients()
        self._threads[0].join()  # there will be no more connections
        self.cut_connections()
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._connections):
            sock.close()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._start(self._serve, connection, len(self._connections))

    def _serve(self, connection: socket.socket, number: int) -> None:
        self._here.number, self._here.opened, self._here.attached = number, 0, 0
        self._here.received = received = deque[int]()
        decoder = MessageDecoder()
        held: list[Request] = []
        left = self.cut_after if self.cut_after is not None else 1 << 60
        try:
            while data := self._receive(connection):
                decoder.feed(data)
                for message in decoder:
                    assert isinstance(message, Request)
                    self.requests.append(message)
                    held.append(message)
                if len(held) < self.hold:
                    continue
                for request in held if self.hold == 1 else reversed(held):
                    frame, descriptors = self._answer(request)
                    self._send(connection, frame[:left], descriptors)
                    left -= len(frame)
                    if left <= 0:
                        connection.shutdown(socket.SHUT_RDWR)
                        return
                held.clear()
            if connection not in self._ended:
                self.left += [key for key in [*self.open, *self.memories] if key[0] == number]
            for request in held:  # of a client that has shut its side, or as end_connections() does
                self._send(connection, *self._answer(request))
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client went away
        finally:
            for key in [key for key in list(self.open) if key[0] == number]:
                del self.open[key]
            for key in [key for key in list(self.memories) if key[0] == number]:
                self.memories.pop(key).close()
            for descriptor in received:
                os.close(descriptor)

    def end_connections(self) -> None:
        """End like a daemon that is stopped: answer what clients have sent so far, and no more."""
        self._end(socket.SHUT_RD)

    def cut_connections(self) -> None:
        """End like a daemon that is killed: answer nothing any more."""
        self._end(socket.SHUT_RDWR)

    def _end(self, how: int) -> None:
        """End the connections that there are; those that clients make meanwhile are the next's."""
        self._ended = [*self._connections]
        for connection in self._ended:
            with suppress(OSError):  # the client was first
                connection.shutdown(how)

    def refuse_clients(self) -> None:
        """Listen no more."""
        with suppress(OSError):  # it does not, already
            self._listener.shutdown(socket.SHUT_RDWR)

    @property
    def connections(self) -> int:
        """How many connections there were."""
        return len(self._connections)

    def wait_for_requests(self, count: int) -> None:
        """Wait until that many have come."""
        deadline = time.monotonic() + 10
        while len(self.requests) < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def wait_for_no_memory(self) -> None:
        """Wait until no connection has any memory attached."""
        deadline = time.monotonic() + 10
        while self.memories:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _receive(self, connection: socket.socket) -> bytes:
        self.reads.wait()
        data, descriptors, _, _ = socket.recv_fds(connection, 65536, 16)
        self._here.received.extend(descriptors)
        return data

    def _send(self, connection: socket.socket, frame: bytes, descriptors: list[int]) -> None:
        if descriptors:
            try:
                sent = socket.send_fds(connection, [frame[:1]], descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            frame = frame[sent:]
        step = self.piece or len(frame)
        for start in range(0, len(frame), step or 1):
            connection.sendall(frame[start : start + step])

    def _answer(self, request: Request) -> tuple[bytes, list[int]]:
        """Return a response, and the descriptors to send with it."""
        self.before(request)
        msgid, method, params, _ = request
        if method in self.raw:
            return self.raw[method](request), []
        if method in self.results:
            return self._encoded(msgid, None, self.results[method]), []
        try:
            if method in self.unknown:
                raise FaultError("UNKNOWN_METHOD", f"no method {method}")
            result = getattr(self, "do_" + method)(*params)
        except FaultError as fault:
            return self._encoded(msgid, fault.wire, None), []
        if method in ("read", "tree"):
            return encode_bin_response_head(msgid, len(result)) + result, []
        if method == "fetch":
            answer, descriptor = result
            return self._encoded(msgid, None, answer), [descriptor]
        return self._encoded(msgid, None, result), []

    def _encoded(self, msgid: int, error: object, result: object) -> bytes:
        """Encode a response: the daemon does so in one thread, and with one packer."""
        with self._encoding:
            return encode_response(msgid, error, result)

    def find(self, export: object, path: object, *, follow: bool = True) -> Node:
        if export != "kernels":
            raise FaultError("UNKNOWN_EXPORT", f"no export {export}", export=export)
        node, trail = self.root, [self.root]
        for name in filter(None, name_bytes(path).split(b"/")):
            if node.type != "dir":
                raise FaultError("ENOTDIR", "not a directory", errno=20)
            if name not in (b".", b".."):
                if name not in node.children:
                    raise FaultError("ENOENT", "no such file or directory", errno=2)
                trail.append(node.children[name])
            elif name == b".." and len(trail) > 1:
                trail.pop()
            node = trail[-1]
        if follow and node.type == "symlink":
            return self.find(export, node.content)
        return node

    def do_api_info(self) -> Any:
        methods = [{"name": "read", "params": [], "returns": "bin", "since": 1}]
        return {
            "version": "9.9",
            "api_level": self.api_level,
            "api_compatible": 1,
            "methods": methods,
            "errors": ["CHANGED"],
            "later": "ignored",
        }

    def do_exports(self) -> Any:
        backend = {"kind": "rust", "version": "1.13.2", "pid": 42, "generation": 1}
        return [
            {"name": "kernels", "state": "ready", "backend": backend},
            {"name": "broken", "state": "failed", "backend": None, "reason": "no virtiofsd"},
        ]

    def do_stat(self, export: object, path: object, options: dict[str, Any]) -> Any:
        if options.get("file") is not None:
            return self.opened(options["file"]).stat()
        return self.find(export, path, follow=options.get("follow", True)).stat()

    def do_open(self, export: object, path: object) -> Any:
        node = self.find(export, path)
        if node.type != "file":
            raise FaultError("EISDIR" if node.type == "dir" else "EINVAL", f"it is a {node.type}")
        if sum(key[0] == self._here.number for key in list(self.open)) >= 64:
            raise FaultError("TOO_LARGE", "a client may have 64 files open", limit=64)
        self._here.opened += 1
        number = self._here.opened
        self.open[self._here.number, number] = node
        own = {"file": number, "settled": self.settled, "by_attributes": self.by_attributes}
        return node.stat() | own

    def opened(self, file: int) -> Node:
        node = self.open.get((self._here.number, file))
        if node is None:
            raise FaultError("BAD_REQUEST", f"there is no open file {file}")
        return node

    def do_close(self, file: int) -> None:
        self.opened(file)
        del self.open[self._here.number, file]

    def do_extents(self, _export: object, _path: object, file: int, offset: int) -> Any:
        node = self.opened(file)
        parts = [(0, node.stat()["size"])] if node.extents is None else node.extents
        cut = [(max(begin, offset), begin + length) for begin, length in parts]
        there = [[begin, end - begin] for begin, end in cut if begin < end]
        page = there[: self.extents_limit]
        return {"extents": page, "next": sum(page[-1]) if len(there) > len(page) else None}

    def do_readlink(self, export: object, path: object) -> Any:
        node = self.find(export, path, follow=False)
        if node.type != "symlink":
            raise FaultError("EINVAL", "not a symbolic link", errno=22)
        return wire_name(node.content)

    def do_readdir(self, export: object, path: object, options: dict[str, Any]) -> Any:
        node = self.find(export, path)
        if node.type != "dir":
            raise FaultError("ENOTDIR", "not a directory", errno=20)
        listing, first = divmod(options["after"] or self._here.number << 32, 1 << 32)
        if listing != self._here.number:
            raise FaultError("BAD_REQUEST", "not the token of a page that goes on here")
        page = list(node.children.items())[first : first + options["limit"]]
        entries: Any = []
        for name, child in page:
            entry = {"name": wire_name(name), "type": child.type, "ino": id(child) & 0xFFFF_FFFF}
            entries.append(entry | child.stat() if options["attrs"] else entry)
        if options.get("columns"):
            assert self.api_level >= 3
            columns = dict.fromkeys(["name", "type", "ino"]) | dict.fromkeys(
                key for entry in entries for key in entry
            )
            entries = {key: [entry.get(key) for entry in entries] for key in columns}
        following = first + len(page)
        more = following < len(node.children)
        return {"entries": entries, "next": listing << 32 | following if more else None}

    def do_tree(self, export: object, path: object, options: dict[str, Any]) -> bytes:
        node = self.find(export, path)
        if node.type != "dir":
            raise FaultError("ENOTDIR", "not a directory", errno=20)
        begin = int(options["after"] or 0)
        nodes = list(below(node))
        end = begin + self.tree_limit
        following = b"%d" % end if end < len(nodes) else None
        return page_of(nodes[begin:end], self.tree_most, following)

    def do_read(
        self,
        export: object,
        path: object,
        offset: int,
        length: int,
        options: dict[str, Any] | None = None,
    ) -> bytes:
        file = (options or {}).get("file")
        node = self.find(export, path) if file is None else self.opened(file)
        if node.type != "file":
            raise FaultError("EISDIR" if node.type == "dir" else "EINVAL", f"it is a {node.type}")
        return node.content[offset : offset + length]

    def do_fetch(self, export: object, path: object) -> tuple[dict[str, Any], int]:
        node = self.find(export, path)
        content = self.do_read(export, path, 0, len(node.content))
        descriptor = sealed_image(content)
        answer = {key: node.stat()[key] for key in ("size", "mtime_ns", "ino")}
        return answer | {"cached": False}, descriptor

    def take_descriptor(self) -> int:
        """Return the descriptor that came with the request that is answered, for who asks."""
        descriptor: int = self._here.received.popleft()
        return descriptor

    def do_attach(self, size: int) -> int:
        descriptor = self.take_descriptor()
        self.attached += 1
        self._here.attached += 1
        number: int = self._here.attached
        self.memories[self._here.number, number] = mmap.mmap(descriptor, size)
        os.close(descriptor)
        return number

    def memory(self, identifier: int) -> tuple[int, int]:
        key = self._here.number, identifier
        if key not in self.memories:
            raise FaultError("BAD_REQUEST", f"there is no attached memory {identifier}")
        return key

    def do_load(
        self, memory: int, address: int, export: object, path: object, options: dict[str, Any]
    ) -> Any:
        mapping = self.memories[self.memory(memory)]
        length = 1 << 62 if options["length"] is None else options["length"]
        content = self.do_read(export, path, options["offset"], length, options)
        mapping[address : address + len(content)] = content
        return {"length": len(content)}

    def do_detach(self, memory: int) -> None:
        self.memories.pop(self.memory(memory)).close()

    def do_statfs(self, export: object) -> Any:
        self.find(export, "")
        keys = ("blocks", "bfree", "bavail", "files", "ffree", "bsize", "frsize", "namelen")
        return {key: number for number, key in enumerate(keys)}

    def do_reload(self, export: object) -> Any:
        if export is None:
            return ["limits: changed", "rig lab: added, absent"]
        self.find(export, "")
        return [f"export {export}: backend replaced"]

    def do_rigs(self) -> Any:
        lab = {"netns": "lab", "socket": "@vuserd", "state": "listening", "exports": ["kernels"]}
        bench = {"netns": "bench", "socket": "@vuserd", "state": "failed", "exports": []}
        return [lab | {"clients": 2}, bench | {"clients": 0, "reason": "permission denied"}]

    def do_origin(self) -> Any:
        return {"socket": self.address, "rig": None, "namespace": "same"}

    def do_walk(self, export: object, path: object, options: dict[str, Any]) -> Any:
        """Return a page for each name of a directory, and nothing of what is below."""
        names = sorted(self.find(export, path).children)
        at = 0 if options["after"] is None else int.from_bytes(options["after"], "big")
        entries = [{"path": wire_name(name), "type": "file", "ino": 1} for name in names[at:][:1]]
        more = (at + 1).to_bytes(8, "big") if at + 1 < len(names) else None
        return {"entries": entries, "problems": [], "next": more}

    def do_status(self) -> Any:
        kernels = {
            "name": "kernels",
            "state": "up",
            "source": "/srv/kernels",
            "backend": {"kind": "rust", "version": "1.13.2", "pid": 4242, "generation": 3},
            "nodes": 3,
            "lookups": 4,
            "in_flight": 0,
            "requests": 99,
            "restarts": 1,
            "restarts_by_cause": {"killed": 1},
            "last_loss": {"cause": "killed", "reason": "it ended", "when": 1_600_000_000.5},
        }
        broken = {"name": "broken", "state": "failed", "backend": None, "reason": "no virtiofsd"}
        client = {
            "pid": 77,
            "uid": 0,
            "command": "vuserctl",
            "requests": len(self.requests),
            "in_flight": 1,
            "bytes_read": 1000 * len(self.requests),
            "since": 1_600_000_000.0,
        }
        stranger = client | {"pid": 78, "uid": 4_000_000_000, "command": None, "requests": 7}
        return {
            "version": "9.9",
            "pid": os.getpid(),
            "uptime_s": 3723.5,
            "socket": self.address,
            "listeners": [{"socket": self.address, "activated": True, "clients": 1}],
            "exports": [kernels, broken],
            "rigs": self.do_rigs(),
            "clients": [stranger, client],
            "connections": 1,
            "requests": 100,
            "errors": 3,
            "bytes_read": 5 << 20,
            "bytes_of_images": 3 << 20,
            "bytes_loaded": 0,
            "images": {"count": 2, "bytes": 1 << 20, "hits": 10, "misses": 4},
        }
