"""OpenSSH's sftp-server: bare, without crypto, and behind sshd with it.

There are two clients. :class:`SftpCommand` is what a user has, OpenSSH's ``sftp``, which takes one
file after the other. :class:`Sftp` is ours and shows what the server could do: it has many requests
in flight. SFTP version 3 (draft-ietf-secsh-filexfer-02), as much as is needed::

    packet   | length u32 | type u8 | request id u32 | ... |      all numbers big-endian
    string   | length u32 | bytes |
"""

import contextlib
import os
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from enum import IntEnum
from typing import Final, NamedTuple

from benchmarks.contender import Contender, Servers, Unavailable, WrongBytesError
from benchmarks.contenders.host import ToTmpfs, require
from benchmarks.contenders.sockets import buffered, fill, read_exactly
from benchmarks.corpus import SLOT, SMALL_READ, BigFile, SmallFiles
from benchmarks.processes import running

_PLACES: Final = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")
_PRIVSEP: Final = "/run/sshd"
_READ_MOST: Final = 255 << 10  #: what limits@openssh.com says
_READS: Final = 16  #: READs, or READDIRs, in flight
_SMALL: Final = 64  #: small files in flight
_DIRECTORIES: Final = 32  #: directories in flight


class _Packet(IntEnum):
    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    OPENDIR = 11
    READDIR = 12
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104


_OK: Final = 0
_EOF: Final = 1
_HEAD: Final = struct.Struct(">IBI")
_U32: Final = struct.Struct(">I")
_OPEN_READ: Final = struct.pack(">II", 1, 0)
_OFFSET_LENGTH: Final = struct.Struct(">QI")
_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES = 1, 2, 4, 8


class SftpEntry(NamedTuple):
    """A name of a directory with what its attributes say."""

    name: bytes
    size: int
    mode: int


class _Reply(NamedTuple):
    """A reply: its type, the request's id, and the rest; of DATA only how long it is."""

    kind: int
    id: int
    body: bytes
    length: int


class _SftpClient:
    """SFTP over a stream socket, several requests in flight."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._stream = buffered(sock)
        self._next = 0
        self._outgoing = bytearray()
        self._socket.sendall(struct.pack(">IBI", 5, _Packet.INIT, 3))
        (length,) = _U32.unpack(read_exactly(self._stream, 4))
        if read_exactly(self._stream, length)[0] != _Packet.VERSION:
            raise WrongBytesError("this is no sftp server")

    def close(self) -> None:
        """Disconnect."""
        self._stream.close()
        self._socket.close()

    def begin(self, kind: _Packet, *parts: bytes) -> int:
        """Queue a request; return its id."""
        self._next = (self._next + 1) & 0xFFFFFFFF
        body = b"".join(parts)
        self._outgoing += _HEAD.pack(len(body) + 5, kind, self._next) + body
        return self._next

    def flush(self) -> None:
        """Send what is queued."""
        if self._outgoing:
            self._socket.sendall(self._outgoing)
            self._outgoing.clear()

    def begin_read(self, handle: bytes, offset: int, length: int) -> int:
        """Queue a READ."""
        return self.begin(_Packet.READ, _string(handle), _OFFSET_LENGTH.pack(offset, length))

    def receive(self, place: Callable[[int], memoryview] | None = None) -> _Reply:
        """Receive the next reply; DATA goes to the memory that ``place`` gives for its id."""
        self.flush()
        length, kind, identifier = _HEAD.unpack(read_exactly(self._stream, 9))
        if kind == _Packet.DATA and place is not None:
            (count,) = _U32.unpack(read_exactly(self._stream, 4))
            view = place(identifier)[:count]
            fill(self._stream, view)
            return _Reply(kind, identifier, b"", count)
        return _Reply(kind, identifier, read_exactly(self._stream, length - 5), length - 5)

    def handle(self, kind: _Packet, *parts: bytes) -> bytes:
        """Open, and wait for the handle."""
        self.begin(kind, *parts)
        return _handle_of(self.receive())

    def close_handle(self, handle: bytes) -> None:
        """Close, and wait for the status."""
        self.begin(_Packet.CLOSE, _string(handle))
        _check_status(self.receive(), _OK)


def _string(value: bytes) -> bytes:
    """Encode a string."""
    return _U32.pack(len(value)) + value


def _handle_of(reply: _Reply) -> bytes:
    """Return the handle in a reply."""
    if reply.kind != _Packet.HANDLE:
        raise WrongBytesError(f"no handle but {reply}")
    return reply.body[4:]


def _check_status(reply: _Reply, code: int) -> None:
    """Refuse any other status."""
    if reply.kind != _Packet.STATUS or _U32.unpack_from(reply.body)[0] != code:
        raise WrongBytesError(f"not status {code} but {reply}")


def _names_of(body: bytes) -> list[SftpEntry]:
    """Decode the entries of a NAME reply."""
    (count,) = _U32.unpack_from(body)
    entries = []
    at = 4
    for _ in range(count):
        (length,) = _U32.unpack_from(body, at)
        name = body[at + 4 : at + 4 + length]
        at += 4 + length
        at += 4 + _U32.unpack_from(body, at)[0]  # the line that ls would print
        (flags,) = _U32.unpack_from(body, at)
        at += 4
        size = mode = 0
        if flags & _HAS_SIZE:
            (size,) = struct.unpack_from(">Q", body, at)
            at += 8
        if flags & _HAS_OWNER:
            at += 8
        if flags & _HAS_MODE:
            (mode,) = _U32.unpack_from(body, at)
            at += 4
        if flags & _HAS_TIMES:
            at += 8
        if name not in (b".", b".."):
            entries.append(SftpEntry(name, size, mode))
    return entries


class Sftp(Contender):
    """An sftp-server of its own on a socket pair; with ``crypto`` one that ssh and sshd lead to."""

    def __init__(self, *, crypto: bool = False) -> None:
        super().__init__()
        self._crypto = crypto

    def open(self) -> None:
        """Start the server and connect."""
        command = self._ssh_command() if self._crypto else [_find_server()]
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self.undo.enter_context(
                running(command, stdin=theirs.fileno(), stdout=theirs.fileno())
            )
        self._client = _SftpClient(ours)
        self.undo.callback(self._client.close)
        self._buffer = memoryview(bytearray(SMALL_READ))

    def servers(self) -> Servers:
        """Name the server, or ssh with all that is behind it."""
        return Servers((self._process.pid,))

    def _ssh_command(self) -> list[str]:
        """Return an ssh command whose far end is an sshd of our own, with throw-away keys."""
        sshd, keygen = require("sshd", "openssh-server"), require("ssh-keygen", "openssh-client")
        ssh, server = require("ssh", "openssh-client"), _find_server()
        if os.geteuid():
            raise Unavailable("sshd of one's own takes root")
        folder = self.undo.enter_context(tempfile.TemporaryDirectory(prefix="vuserd-bench-"))
        with contextlib.suppress(FileExistsError):
            os.mkdir(_PRIVSEP)
            self.undo.callback(os.rmdir, _PRIVSEP)
        for key in ("host", "user"):
            subprocess.run(
                [keygen, "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{key}"], check=True
            )
        options = {
            "HostKey": f"{folder}/host",
            "AuthorizedKeysFile": f"{folder}/user.pub",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PidFile": "none",
            "Subsystem": f"sftp {server}",
        }
        with open(f"{folder}/sshd_config", "w") as file:
            file.writelines(f"{name} {value}\n" for name, value in options.items())
        settings = [
            f"ProxyCommand={sshd} -i -f {folder}/sshd_config",
            f"UserKnownHostsFile={folder}/known",
            "StrictHostKeyChecking=no",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "Compression=no",
        ]
        chosen = [word for setting in settings for word in ("-o", setting)]
        return [ssh, "-F", "none", "-i", f"{folder}/user", *chosen, "root@bench", "-s", "sftp"]

    def read_file(self, file: BigFile, view: memoryview) -> None:
        """OPEN, READs, CLOSE of a large file."""
        client, size = self._client, file.size
        handle = client.handle(_Packet.OPEN, _string(file.path.encode()), _OPEN_READ)
        places: dict[int, memoryview] = {}
        offsets = deque(range(0, size, _READ_MOST))
        while offsets or places:
            while offsets and len(places) < _READS:
                part = view[offsets[0] : offsets[0] + _READ_MOST]
                places[client.begin_read(handle, offsets.popleft(), len(part))] = part
            reply = client.receive(places.__getitem__)
            if reply.length != len(places.pop(reply.id)):
                raise WrongBytesError(f"a short READ: {reply}")
        client.close_handle(handle)

    def read_path(self, path: str, undo: ExitStack) -> memoryview:
        """OPEN and READ one small file, without waiting for its CLOSE."""
        client = self._client
        handle = client.handle(_Packet.OPEN, _string(path.encode()), _OPEN_READ)
        client.begin_read(handle, 0, SMALL_READ)
        client.begin(_Packet.CLOSE, _string(handle))
        undo.callback(lambda: _check_status(client.receive(), _OK))
        return self._buffer[: client.receive(lambda _: self._buffer).length]

    def read_many(self, files: SmallFiles, slots: memoryview) -> list[memoryview]:
        """OPEN, one READ, CLOSE of each, 64 files in flight."""
        client = self._client
        parts = [memoryview(b"")] * len(files.files)
        opening: dict[int, int] = {}
        reading: dict[int, int] = {}
        following = iter(range(len(files.files)))
        left = len(files.files)

        def begin_one() -> None:
            if (index := next(following, None)) is not None:
                path = os.path.join(files.directory, files.files[index].path).encode()
                opening[client.begin(_Packet.OPEN, _string(path), _OPEN_READ)] = index

        def place(identifier: int) -> memoryview:
            return slots[reading[identifier] * SLOT :][:SLOT]

        for _ in range(_SMALL):
            begin_one()
        while left:
            reply = client.receive(place)
            if reply.id in opening:
                handle = _handle_of(reply)
                reading[client.begin_read(handle, 0, SLOT)] = opening.pop(reply.id)
                client.begin(_Packet.CLOSE, _string(handle))
            elif reply.id in reading:
                parts[reading[reply.id]] = place(reply.id)[: reply.length]
                del reading[reply.id]
            else:
                _check_status(reply, _OK)
                left -= 1
                begin_one()
        return parts

    def list(self, directory: str, *, recursive: bool) -> "list[SftpEntry]":
        """OPENDIR, READDIRs, CLOSE of a directory or of a tree's; attributes come always."""
        entries: list[SftpEntry] = []
        _Walk(self._client, entries.extend, recursive=recursive).run(directory.encode())
        return entries


def tally(entries: list[SftpEntry]) -> tuple[int, int]:
    """Count the entries and add up the sizes of files."""
    return len(entries), sum(one.size for one in entries if stat.S_ISREG(one.mode))


class SftpCommand(ToTmpfs):
    """``sftp -D sftp-server``: both without ssh between them, on a pair of pipes."""

    def __init__(self, tmpfs: str) -> None:
        super().__init__(tmpfs, ["sftp"], "openssh-client")

    def open(self) -> None:
        """Look for the server."""
        super().open()
        self._server = _find_server()

    def clear(self) -> None:
        """Remove the target: ``get -r`` would put the tree below it."""
        shutil.rmtree(self._target, ignore_errors=True)

    def names(self, directory: str) -> bytes:
        """List names, unsorted."""
        return self._batch(f"ls -1f {directory}")

    def attributes(self, directory: str) -> bytes:
        """List names and attributes, unsorted."""
        return self._batch(f"ls -lnf {directory}")

    def _run(self, source: str, target: str) -> None:
        self._batch(f"get -r {source} {target}")

    def _batch(self, line: str) -> bytes:
        command = ["sftp", "-q", "-b", "-", "-D", self._server]
        return subprocess.run(
            command, input=line.encode(), stdout=subprocess.PIPE, check=True
        ).stdout


def tally_names(output: bytes) -> tuple[int, None]:
    """Count lines but the first, which repeats the command."""
    return len(output.splitlines()) - 1, None


def tally_attributes(output: bytes) -> tuple[int, int]:
    """Count lines but the first, and add up the sizes in them."""
    lines = output.splitlines()[1:]
    return len(lines), sum(int(line.split()[4]) for line in lines)


def _find_server() -> str:
    for place in _PLACES:
        if os.access(place, os.X_OK):
            return place
    raise Unavailable("sftp-server is not installed (Debian package openssh-sftp-server)")


class _Open(NamedTuple):
    path: bytes
    handle: bytes


class _Walk:
    """Directories in flight; of each a few READDIRs at once when there is only one of them."""

    def __init__(
        self,
        client: _SftpClient,
        deliver: Callable[[list[SftpEntry]], None],
        *,
        recursive: bool,
    ) -> None:
        self._client, self._deliver, self._recursive = client, deliver, recursive
        self._at_once = 1 if recursive else _READS
        self._waiting: deque[bytes] = deque()
        self._opening: dict[int, bytes] = {}
        self._reading: dict[int, _Open] = {}
        self._reads: dict[bytes, int] = {}  #: READDIRs in flight, by handle
        self._ended: set[bytes] = set()
        self._closing: set[int] = set()

    def run(self, top: bytes) -> None:
        """Walk until nothing is left."""
        self._waiting.append(top)
        while self._waiting or self._opening or self._reading or self._closing:
            while self._waiting and len(self._opening) + len(self._reads) < _DIRECTORIES:
                path = self._waiting.popleft()
                self._opening[self._client.begin(_Packet.OPENDIR, _string(path))] = path
            self._take(self._client.receive())

    def _take(self, reply: _Reply) -> None:
        if reply.id in self._closing:
            self._closing.remove(reply.id)
            _check_status(reply, _OK)
        elif reply.id in self._opening:
            directory = _Open(self._opening.pop(reply.id), _handle_of(reply))
            self._reads[directory.handle] = 0
            for _ in range(self._at_once):
                self._read(directory)
        else:
            directory = self._reading.pop(reply.id)
            self._reads[directory.handle] -= 1
            self._take_names(directory, reply)

    def _read(self, directory: _Open) -> None:
        request = self._client.begin(_Packet.READDIR, _string(directory.handle))
        self._reading[request] = directory
        self._reads[directory.handle] += 1

    def _take_names(self, directory: _Open, reply: _Reply) -> None:
        if reply.kind == _Packet.NAME:
            entries = _names_of(reply.body)
            self._deliver(entries)
            if self._recursive:
                folders = (one.name for one in entries if stat.S_ISDIR(one.mode))
                self._waiting += [b"/".join((directory.path, name)) for name in folders]
            self._read(directory)
            return
        _check_status(reply, _EOF)
        if not self._reads[directory.handle]:
            del self._reads[directory.handle]
            self._closing.add(self._client.begin(_Packet.CLOSE, _string(directory.handle)))
