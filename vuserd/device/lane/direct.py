"""Requests of work in bulk: many are sent at once, and each costs as little as possible."""

import functools
from collections.abc import Sequence
from typing import Final, TypeAlias

from memory.form import Form
from protocol import fuse
from protocol.fuse import (
    HANDLE_WORD,
    NODE_WORD,
    READ_SIZE_WORD,
    ROOT_ID,
    UNIQUE_WORD,
    FileHandle,
    NodeId,
)
from vuserd.device.lane.exchange import Exchange
from vuserd.device.lane.slots import Waiting
from vuserd.device.request import Bulk, Target
from vuserd.device.results import Failed
from vuserd.errors import FileError

#: In the place of a handle, for a request that has none.
NO_HANDLE: Final = FileHandle(0)

#: The requests that can be sent so; those from READ on have a handle.
OPEN: Final = 0
GETATTR: Final = 1
READ: Final = 2
RELEASE: Final = 3
#: One of each, by these numbers.
_REQUESTS: Final = (
    fuse.open(ROOT_ID),
    fuse.getattr(ROOT_ID),
    fuse.read(ROOT_ID, NO_HANDLE, 0, 0),
    fuse.release(ROOT_ID, NO_HANDLE),
)

#: A request: its place in the bulk, where it stays the same until it is answered; which it is; a
#: file's node and handle; bytes of a READ, no more than :data:`~vuserd.device.request.SMALL_READ`,
#: and where they go.
Direction: TypeAlias = tuple[int, int, NodeId, FileHandle, int, Target | None]


class Direct(Exchange):
    """An exchange that sends a bulk's requests without keeping more of each than its place."""

    @functools.cached_property
    def _forms(self) -> list[Form]:
        """What slots keep of requests, by their numbers here."""
        forms = []
        for kind, request in enumerate(_REQUESTS):
            message, body = request.encode(0, self._who), request.reply_size or 0
            if kind == READ:
                forms.append(Form(message, fuse.OUT_HEADER_SIZE, has_target=True))
            else:
                forms.append(Form(message, fuse.OUT_HEADER_SIZE + body))
        return forms

    def send(self, bulk: Bulk, requests: Sequence[Direction]) -> None:
        """Send requests, or add them to those that wait; the caller publishes them.

        What may not be sent is settled with an error at once.

        Raises:
            BackendError: the backend is lost.

        """
        ring, by_head, observer, forms = self._ring, self._by_head, self._observer, self._forms
        take, words, first_words = ring.take, ring.words, ring.first_words
        if self._watch.is_parked:
            self._watch.wake()
        deadline = self._due if self.requests.is_reaping else self._deadline()
        asker = bulk.asker
        if asker is not self._backlog.asker and asker is not None:
            self._backlog.heard(asker)
        room = 0 if self._failure is not None or self._held_back else self._room()
        unique = self._unique
        for place, kind, node, handle, size, target in requests[:room]:
            unique += 2
            if target is not None:
                target.lend()
            head = take(forms[kind])
            begin = first_words[head]
            words[begin + UNIQUE_WORD] = unique
            words[begin + NODE_WORD] = node
            if kind > GETATTR:
                words[begin + HANDLE_WORD] = handle
            if target is not None:
                words[begin + READ_SIZE_WORD] = size
                ring.aim(head, target.address, size)
            by_head[head] = unique, bulk, place, deadline if kind != RELEASE else 0.0, target
            if observer is not None:
                observer.sent(unique, bulk.asked_at(place)[0])
        self._unique = unique
        for place, kind, *_ in requests[room:]:
            self._send_later(bulk, place, deadline if kind != RELEASE else 0.0)

    def _send_later(self, bulk: Bulk, place: int, deadline: float) -> None:
        """Add a request to those that wait, if it may be sent."""
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
