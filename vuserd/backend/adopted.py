"""A backend that the daemon did not start: connect to its socket, leave its process alone."""

import re
import socket
import struct
from typing import Final

import trio

from vuserd.backend.base import Backend
from vuserd.errors import BackendDown, os_reason

#: The sockets of the unit vuserd-backend@.socket, by the names of its instances.
_OF_UNIT: Final = re.compile(r"/run/vuserd/backend/([^/]+)\.sock")


class AdoptedBackend(Backend):
    """The backend behind a unix socket. A virtiofsd takes a single connection in its life."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def connect(self) -> trio.SocketStream:
        """Connect, and ask the kernel for the id of the backend's process."""
        try:
            stream = await trio.open_unix_socket(self._path)
        except OSError as error:
            raise BackendDown(
                f"no backend serves {self._path}: {os_reason(error)}; {self._advice()}"
            ) from error
        try:
            stream.socket.getpeername()
        except OSError:  # EAGAIN, which trio takes for a connection that is on its way
            stream.socket.close()
            raise BackendDown(
                f"no backend takes connections at {self._path}, and no more of them may wait there"
            ) from None
        credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = struct.unpack("=iII", credentials)[0] or None
        return stream

    def _advice(self) -> str:
        if instance := _OF_UNIT.fullmatch(self._path):
            return f"systemctl enable --now 'vuserd-backend@{instance[1]}.socket'"
        return f"start a virtiofsd with --socket-path={self._path}"

    def last_words(self) -> str:
        """Return nothing: the log belongs to the user who started the backend."""
        return ""

    def expect_end(self, *, expected: bool = True) -> None:
        """Do nothing: the log belongs to the user who started the backend."""

    async def wait(self) -> None:
        """Wait for ever: of an adopted backend only the connection shows that it has ended."""
        await trio.sleep_forever()

    async def stop(self) -> None:
        """Leave the process to its owner."""
