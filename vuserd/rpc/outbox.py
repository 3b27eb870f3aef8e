"""Replies on their way to a client: sent at once if the socket takes them, else in their turn."""

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import trio

from vuserd.delivery.image import SealedImage
from vuserd.delivery.inline import FileContent
from vuserd.tasks.turns import Sharer
from vuserd.wire.descriptors import ancillary_with

#: One sendmsg takes this many pieces (UIO_MAXIOV is 1,024).
_PIECES: Final = 256
#: The most bytes that are copied at once for one client while others want anything.
_SHARE: Final = 128 << 10
#: Seconds that a reply may wait as the next one in the buffers that the backend wrote, which others
#: wait for, too.
_PATIENCE: Final = 0.1
#: Bytes, as the kernel counts them, that a client may leave unread and still be sent a descriptor:
#: some sixty replies of that kind. All that clients have not received yet count against one limit
#: (RLIMIT_NOFILE, unix(7)), and no client is to keep the others from theirs.
_MOST_UNREAD: Final = 48 << 10
#: Seconds between two looks whether they were read: nothing tells.
_LOOK: Final = 0.01
#: The most bytes of a reply that is not worth a look at what others want.
_SMALL: Final = 16 << 10
#: A plain number, which is passed on faster than the flag.
_NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)
_INT: Final = struct.Struct("=i")


class Reply:
    """Pieces to send, a descriptor beside the first, and what is given back when they are gone.

    Args:
        pieces: the bytes.
        descriptor: closed once it is sent, or never will be.
        content: what the pieces, or the descriptor, are of.
        payload: bytes of the client's budget that it takes.
        instead: what is sent where the kernel passes no more descriptors on.

    """

    __slots__ = ("_content", "_instead", "descriptor", "payload", "pieces", "since")

    def __init__(
        self,
        pieces: Sequence[bytes | memoryview],
        descriptor: int | None = None,
        content: FileContent | SealedImage | None = None,
        payload: int = 0,
        instead: bytes = b"",
    ) -> None:
        self.pieces: deque[bytes | memoryview] = deque(pieces)
        self.descriptor = descriptor
        self.payload = payload
        self._content = content
        self._instead = instead
        #: When it began to wait, or those before it had left.
        self.since = 0.0

    async def unload(self) -> None:
        """Return the backend's buffers, and keep a copy that counts against the client's budget.

        Other tasks have their turn after each buffer; nobody else may send meanwhile.
        """
        if isinstance(self._content, FileContent):
            for place, piece in enumerate(self.pieces):
                self.pieces[place] = bytes(piece)
                await trio.lowlevel.checkpoint()
            self._content.give_back()
            self._content = None

    def close(self) -> None:
        """Release what the reply holds."""
        self.close_descriptor()
        self.pieces.clear()
        if self._content is not None:
            self._content.give_back()
            self._content = None

    def do_without_descriptor(self) -> None:
        """Close the descriptor and send the refusal in its place."""
        self.close_descriptor()
        self.pieces = deque([self._instead])

    def close_descriptor(self) -> None:
        """Close the descriptor, if there is one."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class ReplyCounter(Protocol):
    """Counts the replies of a connection, and those of all others."""

    def gone(self, reply: Reply) -> None:
        """Uncount a reply that was closed, sent or not."""

    def is_only_client(self) -> bool:
        """Return whether no other client has requests in the daemon."""


class Outbox:
    """The replies of one connection, in order.

    Args:
        sock: connected, and not blocking.
        counter: is told of each.
        sharer: the client.

    """

    def __init__(self, sock: socket.socket, counter: ReplyCounter, sharer: Sharer) -> None:
        self._socket = sock
        self._counter = counter
        self._sharer = sharer
        self._waiting: deque[Reply] = deque()
        #: Whether the client has to read before it is sent more.
        self._is_full = False

    def send(self, reply: Reply) -> bool:
        """Send a reply, as far as the socket takes it; return whether nothing waits.

        So most replies need no other task than the one that has them. What waits is for
        :meth:`send_more`, and so is a fault of the socket.
        """
        if not self._waiting and self._send_whole(reply):
            return True
        self._waiting.append(reply)
        if len(self._waiting) == 1:
            with contextlib.suppress(OSError):
                self._send_some()
            if not self._waiting:
                return True
        reply.since = trio.current_time()
        return False

    def _send_whole(self, reply: Reply) -> bool:
        """Send the usual reply, one small piece, as cheaply as can be; return whether it left."""
        if len(reply.pieces) != 1 or reply.descriptor is not None:
            return False
        piece = reply.pieces[0]
        if len(piece) > _SMALL:
            return False
        try:
            sent = self._socket.send(piece, _NO_SIGNAL)
        except OSError:
            return False
        if sent < len(piece):
            reply.pieces[0] = memoryview(piece)[sent:]
            return False
        reply.close()
        self._counter.gone(reply)
        return True

    async def send_more(self, stall: float) -> bool:
        """Send some of what waits, as soon as the client takes it; return whether more does.

        Other tasks have their turn before.

        Raises:
            OSError: the client is gone.
            trio.TooSlowError: it took nothing for ``stall`` seconds.

        """
        if self._is_full:
            with trio.fail_after(stall):
                await self._wait_writable()
        else:  # to be told that it is not costs more
            await trio.lowlevel.checkpoint()
        with contextlib.suppress(BlockingIOError):
            self._send_some()
        return bool(self._waiting)

    def close(self) -> None:
        """Drop what was not sent."""
        while self._waiting:
            self._drop_first()

    async def _wait_writable(self) -> None:
        """Wait until the client takes more; let the buffers go that others wait for meanwhile."""
        look_at = self._waiting[0].since + _PATIENCE
        while True:
            now = trio.current_time()
            if look_at <= now:
                look_at = now + _PATIENCE
                if not self._counter.is_only_client():
                    for reply in [*self._waiting]:
                        await reply.unload()
            with trio.move_on_at(look_at):
                await trio.lowlevel.wait_writable(self._socket)
                while self._is_held_back():  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(_LOOK)
                return

    def _is_held_back(self) -> bool:
        """Return whether the next reply has a descriptor, and enough is unread already."""
        if self._waiting[0].descriptor is None:
            return False
        answer = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(_INT.size))
        return bool(_INT.unpack(answer)[0] > _MOST_UNREAD)

    def _send_some(self) -> None:
        """Send what one system call takes: a descriptor goes with the first byte of its own.

        Raises:
            BlockingIOError: the client has to read first.
            OSError: the client is gone.

        """
        self._is_full = True
        if self._is_held_back():
            raise BlockingIOError
        first = self._waiting[0]
        pieces: list[bytes | memoryview] = []
        for reply in self._waiting:
            if len(pieces) >= _PIECES or (reply.descriptor is not None and reply is not first):
                break
            pieces.extend(reply.pieces)
        del pieces[_PIECES:]
        if len(pieces) > 1 or len(pieces[0]) > _SHARE:
            self._shorten(pieces)
        ancillary = [] if first.descriptor is None else ancillary_with([first.descriptor])
        try:
            sent = self._socket.sendmsg(pieces, ancillary, _NO_SIGNAL)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or first.descriptor is None:
                raise
            first.do_without_descriptor()
            sent = 0
        else:
            first.close_descriptor()
            self._is_full = sent < sum(map(len, pieces))
        self._forget_sent(sent)

    def _shorten(self, pieces: list[bytes | memoryview]) -> None:
        """Leave no more than one client's share, if others may wait while the kernel copies it."""
        if self._sharer.is_alone():
            return
        room = _SHARE
        for index, piece in enumerate(pieces):
            if len(piece) >= room:
                pieces[index] = memoryview(piece)[:room]
                del pieces[index + 1 :]
                return
            room -= len(piece)

    def _forget_sent(self, sent: int) -> None:
        while self._waiting:
            pieces = self._waiting[0].pieces
            while pieces and sent >= len(pieces[0]):
                sent -= len(pieces.popleft())
            if pieces:
                if sent:
                    pieces[0] = memoryview(pieces[0])[sent:]
                return
            self._drop_first()
            if self._waiting:  # the client took its time with others, and not with this one
                self._waiting[0].since = trio.current_time()

    def _drop_first(self) -> None:
        reply = self._waiting.popleft()
        reply.close()
        self._counter.gone(reply)
