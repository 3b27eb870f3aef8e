"""Requests of work in bulk: sent many at once, with the least that each can cost."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from protocol import fuse
from protocol.fuse import Credentials, FileHandle, NodeId
from vuserd.device.lane.exchange import Exchange
from vuserd.device.lane.slots import Waiting
from vuserd.device.request import Bulk, Target
from vuserd.device.results import Failed
from vuserd.errors import FileError

_Encode: TypeAlias = Callable[[int, Credentials, NodeId, FileHandle, int], bytes]
#: What there is to fill in where a request has no handle.
NO_HANDLE: Final = FileHandle(0)


class Form(NamedTuple):
    """One of the requests that can be sent so."""

    encode: _Encode
    reply: int  #: bytes of the reply in the slot's own room, with its header
    is_awaited: bool = True  #: whether it has a deadline, and is given up with its bulk


OPEN: Final = Form(fuse.encode_open, fuse.OUT_HEADER_SIZE + fuse.OPEN_REPLY)
READ: Final = Form(fuse.encode_read, fuse.OUT_HEADER_SIZE)
GETATTR: Final = Form(fuse.encode_getattr, fuse.OUT_HEADER_SIZE + fuse.GETATTR_REPLY)
RELEASE: Final = Form(fuse.encode_release, fuse.OUT_HEADER_SIZE, is_awaited=False)

#: A request: its place in the bulk, where it stays the same until it is answered; its form; a
#: file's node and handle; bytes of a READ, no more than :data:`~vuserd.device.request.SMALL_READ`,
#: and where they go.
Direction: TypeAlias = tuple[int, Form, NodeId, FileHandle, int, Target | None]


class Direct(Exchange):
    """An exchange that sends a bulk's requests without keeping more of each than its place."""

    def send(self, bulk: Bulk, requests: Sequence[Direction]) -> None:
        """Send requests, or have them wait as others do; the caller publishes them.

        What may not be sent is settled with an error at once.

        Raises:
            BackendError: the backend is lost.

        """
        add, by_head, observer, who = self._ring.add, self._by_head, self._observer, self._who
        if self._watch.is_parked:
            self._watch.wake()
        deadline = self._due if self.requests.is_reaping else self._deadline()
        asker = bulk.asker
        if asker is not self._backlog.asker and asker is not None:
            self._backlog.heard(asker)
        room = 0 if self._failure is not None or self._held_back else self._room()
        unique = self._unique
        for place, (encode, reply, is_awaited), node, handle, size, target in requests[:room]:
            unique += 2
            message = encode(unique, who, node, handle, size)
            if target is None:
                head = add(message, reply)
            else:
                target.lend()
                head = add(message, reply, target.address, size)
            by_head[head] = unique, bulk, place, deadline if is_awaited else 0.0, target
            if observer is not None:
                observer.sent(unique, bulk.asked_at(place)[0])
        self._unique = unique
        for place, form, *_ in requests[room:]:
            self._send_later(bulk, place, deadline if form.is_awaited else 0.0)

    def _send_later(self, bulk: Bulk, place: int, deadline: float) -> None:
        """Have a request wait as others do, if it may be sent."""
        asked = bulk.asked_at(place)
        if not deadline:
            self.post(asked[0])
            bulk.settle(place, b"")
            return
        try:
            self._admit(asked[0])
        except FileError as error:
            bulk.settle(place, Failed(error.again()))
            return
        self._wait(Waiting(asked, bulk, place, bulk.asker, deadline, None))
