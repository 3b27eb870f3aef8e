"""Daemons forked from a process that has imported vuserd: that takes most of what a start takes.

A run starts a thousand daemons. Tests of how the commands start execute them: tests/system, e2e's
test_serve, test_surroundings, test_standard_streams and others.
"""

import array
import atexit
import ctypes
import importlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

#: What a daemon imports, sooner or later.
_IMPORTED = ("vuserd.cli", "vuserd.config.files")
#: What coverage tells the processes in its environment that are to be traced.
_TRACED = "COVERAGE_PROCESS_CONFIG"
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_DUMPABLE = 4


class ForkedDaemon(subprocess.Popen[bytes]):
    """``vuserd`` with arguments, as if it had been executed; ``user`` is whom it becomes."""

    def __init__(
        self,
        arguments: Sequence[str],
        errors: IO[bytes],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        descriptors: int | None = None,
        user: int | None = None,
    ) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(folder or Path.cwd()),
            "descriptors": hard if descriptors is None else (descriptors, descriptors),
            "user": user,
        }
        self.args = ["vuserd", *arguments]
        self.stdin = self.stdout = self.stderr = None
        self.pid = _template.fork(json.dumps(request).encode(), [1, errors.fileno()])
        self.returncode: int | None = None
        # What waiting for a child takes.
        self._waitpid_lock = threading.Lock()
        self._child_created = True


class _Template:
    """The process that is forked, started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def fork(self, request: bytes, descriptors: list[int]) -> int:
        with self._lock:
            if self._socket is None:
                self._start()
            assert self._socket is not None
            socket.send_fds(self._socket, [request], descriptors)
            return int(self._socket.recv(100))

    def stop(self) -> None:
        with self._lock:
            if self._process is not None and self._socket is not None:
                self._socket.close()
                self._process.wait()
                self._process = self._socket = None

    def _start(self) -> None:
        # Its grandchildren become this process's children when their parent ends.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(other.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parent.parent,
                env={name: value for name, value in os.environ.items() if name != _TRACED},
                pass_fds=[other.fileno()],
            )


_template = _Template()
#: End the process that daemons are forked from, where there is one.
stop_template = _template.stop
atexit.register(stop_template)


def _serve(connection: socket.socket) -> None:
    """Fork whenever that is requested; return in the child, once it is what was requested."""
    length = array.array("i").itemsize * 2
    while True:
        request, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(length))
        if not request:
            os._exit(0)
        descriptors = array.array("i", ancillary[0][2])
        if _TRACED in json.loads(request)["environment"]:
            importlib.import_module("coverage")
        reader, writer = os.pipe()
        between = os.fork()
        if not between:
            child = os.fork()
            if not child:
                connection.close()
                os.close(reader)
                os.close(writer)
                _become(json.loads(request), *descriptors)
                return
            os.write(writer, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)
        connection.send(os.read(reader, 100))
        for descriptor in (*descriptors, reader, writer):
            os.close(descriptor)


def _become(request: dict[str, Any], output: int, errors: int) -> None:
    for descriptor, standard in ((output, 1), (errors, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(request["descriptors"]))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if _TRACED in os.environ:
        importlib.import_module("coverage").process_startup()
    tempfile.tempdir = None
    sys.argv = ["vuserd", *request["arguments"]]
    if (user := request["user"]) is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        # That user may trace it, as whatever this user has started.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


if __name__ == "__main__":
    for module in _IMPORTED:
        importlib.import_module(module)
    _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(importlib.import_module("vuserd.cli").main())
