"""An open directory, in which the backend reads on before more of it is wanted.

It is asked for the next reply as soon as it has given one, where that is taken off the ring: it has
work while one reply is decoded and another packed, sent and asked for::

    read() <- replies that came <- errand: READDIR, READDIR, ... -> backend

While another client wants anything, it is asked for what is wanted at once, and for no more.
"""

import contextlib
import math
from collections import deque
from typing import Final, NamedTuple

import trio

from memory.arena import Buffer
from protocol import fuse
from protocol.dirent import DIRENT_SIZE, LONGEST_RECORD
from protocol.dirent_columns import decode_directory_columns, last_offset
from protocol.fuse import ENTRY_SIZE, FileHandle
from vuserd.device.procedure import Errand, Procedure
from vuserd.device.results import Failed, length_of
from vuserd.device.session import Session
from vuserd.errors import BackendError
from vuserd.fs.nodes import Node, NodeTable
from vuserd.tasks.turns import SHARER, Sharer
from vuserd.users.asker import ASKER

#: Bytes of a directory that are read at once, without and with attributes: no other task runs while
#: they are decoded, and a backend with one thread serves no other request while it reads them.
_BATCH_SIZE: Final = 64 << 10
_BATCH_SIZE_PLUS: Final = 32 << 10
#: How many times as much is read while no other client asks, and how many replies may wait then.
_ALONE: Final = 8
_MOST_AHEAD: Final = 3
#: Nodes that the backend may have to keep, for replies that wait or until it has forgotten them,
#: when it is asked for more than is wanted at once. What the next reply brings has to fit, too, in
#: what it may owe in all (vuserd/device/lane/backlog.py).
_MOST_NODES: Final = 1690
#: Bytes of an entry whose name is not long, without and with its attributes.
_USUAL: Final = DIRENT_SIZE + 16
_USUAL_PLUS: Final = ENTRY_SIZE + _USUAL
#: What part of a page is too few to be asked for, where the next page is wanted at once.
_FEW: Final = 8


class Wanted(NamedTuple):
    """Entries that somebody wants."""

    offset: int  #: where they begin
    number: int  #: how many of them belong to this page
    page: int  #: how many are wanted at once after those; 0 for none

    @property
    def few(self) -> int:
        """As many entries as a page may lack rather than to ask for them alone."""
        return self.page // _FEW


class OpenDirectory:
    """A directory that is open in the backend, and the replies that came before they were wanted.

    One task at a time reads in it.
    """

    def __init__(self, session: Session, nodes: NodeTable, node: Node, handle: FileHandle) -> None:
        self.node = node
        self._session = session
        self._lane = session.lane
        self._nodes = nodes
        self._handle = handle
        #: Bytes of a record, on average, without and with attributes.
        self._record = {False: float(_USUAL), True: float(_USUAL_PLUS)}
        #: Replies that came, with their offsets; whether they are with attributes.
        self._replies: deque[tuple[int, bytes]] = deque()
        self._plus = False
        #: What asks for replies, one after the other, while there is use for them.
        self._errand: Errand[None] | None = None
        #: What it asks for; or what comes next, if that is known.
        self._wanted: Wanted | None = None
        #: Whether somebody waits for a reply, and why there is none.
        self._is_wanted = False
        self._arrival = trio.lowlevel.ParkingLot()
        self._failure: Failed | None = None

    async def read(self, wanted: Wanted, *, plus: bool, reads_on: bool = True) -> bytes:
        """Return a reply to READDIR or READDIRPLUS.

        With ``reads_on`` the backend may be asked for what follows.

        Raises:
            FileError: what the backend says.

        """
        if self._next_offset != wanted.offset or self._plus != plus:
            self.drop_ahead()
        self._is_wanted = True
        try:
            if not self._replies and self._errand is None:
                self._wanted, self._plus = wanted, plus
                [buffer] = await self._session.payloads.take(1)
                self._ask(buffer, reads_on=reads_on)
            while not self._replies and self._errand is not None:
                await self._arrival.park()
            failure, self._failure = self._failure, None
            if not self._replies and failure is not None:
                failure.unwrap()
        except BaseException:
            self.drop_ahead()
            raise
        finally:
            self._is_wanted = False
        _, body = self._replies.popleft()
        if reads_on:
            self._go_on()
        return body

    def read_ahead(self, wanted: Wanted, *, plus: bool) -> None:
        """Ask for what :meth:`read` is going to want, if no other client wants anything."""
        if self._next_offset != wanted.offset or self._plus != plus:
            self.drop_ahead()
            self._wanted, self._plus = wanted, plus
        self._go_on()

    def counted(self, body: bytes, count: int, *, plus: bool) -> None:
        """Record how many were in a reply: the next ones are of about the same size."""
        if count:
            self._record[plus] = len(body) / count

    def drop_ahead(self) -> None:
        """Give up what was asked for, and what came."""
        errand, self._errand = self._errand, None
        if errand is not None:
            errand.abandon()
        self._wanted = self._failure = None
        while self._replies:
            _, body = self._replies.popleft()
            if self._plus:
                # What came may show only now that the backend broke the protocol: the session
                # knows, and is lost. Whoever ends a listing is not to blame, and may have others
                # to end.
                with contextlib.suppress(BackendError):
                    self._lane.decoded(self._undo_read, body)

    def close(self) -> None:
        """Close the directory."""
        self.drop_ahead()
        self._lane.post(fuse.releasedir(self.node.id, self._handle))

    @property
    def _next_offset(self) -> int | None:
        """Where the next reply begins that came, or is asked for."""
        if self._replies:
            return self._replies[0][0]
        return None if self._wanted is None else self._wanted.offset

    def _go_on(self) -> None:
        """Ask for the next reply, unless one is asked for, or none may be."""
        if self._errand is None and self._may_go_on(SHARER.get()):
            buffer = self._session.payloads.try_take()
            if buffer is not None:
                self._ask(buffer, reads_on=True)

    def _may_go_on(self, sharer: Sharer | None) -> bool:
        """Return whether there is use for another reply, and nobody but ``sharer`` waits for it."""
        if self._wanted is None or len(self._replies) >= _MOST_AHEAD:
            return False
        if self._plus:
            waiting = sum(len(body) for _, body in self._replies) / self._record[True]
            if self._lane.owed + waiting > _MOST_NODES:
                return False
        return not self._lane.is_shared and (sharer is None or sharer.is_alone())

    def _ask(self, buffer: Buffer, *, reads_on: bool) -> None:
        """Ask for what is wanted, in an errand that has the buffer from now on."""
        replies = self._reading(buffer, SHARER.get(), reads_on=reads_on)
        self._errand = Errand(self._lane, ASKER.get(), replies, self._ended)
        self._errand.resume()
        self._lane.requests.publish()

    def _reading(self, buffer: Buffer, sharer: Sharer | None, *, reads_on: bool) -> Procedure[None]:
        """Ask for one reply after the other, as long as there is use for them."""
        try:
            goes_on = True
            while goes_on and self._wanted is not None:
                wanted = self._wanted
                undo = self._undo_read if self._plus else None
                [result] = yield [(self._request(wanted), buffer, undo)]
                body = bytes(buffer.view[: length_of(result)])
                self._replies.append((wanted.offset, body))
                self._wanted = self._following(wanted, body)
                self._arrival.unpark_all()
                goes_on = reads_on and self._may_go_on(sharer)
        finally:
            buffer.give_back()

    def _ended(self, _: None, failure: Exception | None) -> None:
        """Take the end of the errand; nobody is told of a failure where nobody waits."""
        self._errand = None
        if failure is not None and self._is_wanted:
            self._failure = Failed(failure)
        self._arrival.unpark_all()

    def _following(self, wanted: Wanted, body: bytes) -> Wanted | None:
        """Return what is wanted after a reply; None where only who decodes it can tell."""
        offset = last_offset(body, plus=self._plus)
        left = wanted.number - math.ceil(len(body) / self._record[self._plus])
        if 0 <= left <= wanted.few:
            left = wanted.page
        if offset is None or left <= 0:  # the page ends before the reply does, or with it
            return None
        return Wanted(offset, left, wanted.page)

    def _request(self, wanted: Wanted) -> fuse.Request:
        # Room for about as many entries as are wanted: each further one is read in vain, and with
        # READDIRPLUS costs a descriptor in the backend.
        number = wanted.number - wanted.few // 2
        size = max(LONGEST_RECORD, math.ceil(number * self._record[self._plus]))
        most = _BATCH_SIZE_PLUS if self._plus else _BATCH_SIZE
        if not self._lane.is_shared:
            most *= _ALONE
        size = min(size, self._session.max_read, most)
        ask = fuse.readdirplus if self._plus else fuse.readdir
        return ask(self.node.id, self._handle, wanted.offset, size)

    def _undo_read(self, body: bytes) -> None:
        """Give back the lookup counts of a reply to READDIRPLUS."""
        entries, _ = decode_directory_columns(body, plus=True)
        self._nodes.forget_each(entries.nodes)
        self._nodes.flush()
