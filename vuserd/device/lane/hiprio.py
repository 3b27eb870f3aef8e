"""The queue of requests that are not answered: FORGET, BATCH_FORGET and INTERRUPT."""

from collections import deque
from collections.abc import Callable, Iterator

from memory.virtqueue import Used, Virtqueue
from protocol import fuse
from protocol.fuse import Opcode
from vuserd.device.observer import Observer
from vuserd.device.queue import NotifiedQueue


class Hiprio:
    """Any number of requests on the hiprio queue: what finds no slot waits for one.

    Args:
        ring: the queue.
        encode: encodes a request, and returns its unique beside.
        taken: is called when the backend has taken some.

    """

    def __init__(
        self,
        ring: Virtqueue,
        encode: Callable[[fuse.Request], tuple[int, bytes]],
        taken: Callable[[], None],
    ) -> None:
        self.queue = NotifiedQueue(ring, self._take)
        self._encode = encode
        self._taken = taken
        self._waiting: deque[fuse.Request] = deque()
        #: By slot: uniques, and how many nodes are forgotten.
        self._sent: dict[int, tuple[int, int]] = {}
        #: Nodes that the backend is still to forget.
        self.owed = 0
        self.observer: Observer | None = None

    def __len__(self) -> int:
        return len(self._waiting) + self.queue.ring.outstanding

    def post(self, request: fuse.Request) -> None:
        """Send a request as soon as :meth:`submit` is called and there is a slot for it."""
        self._waiting.append(request)
        self.owed += _forgotten(request)

    def submit(self) -> None:
        """Submit those that wait, in order, as far as there are slots."""
        ring = self.queue.ring
        while self._waiting and ring.free:
            request = self._waiting.popleft()
            unique, message = self._encode(request)
            self._sent[ring.add(message, 0)] = unique, _forgotten(request)
            if self.observer is not None:
                self.observer.sent(unique, request)
            self.queue.offer()

    def abandon(self) -> None:
        """Drop all of them: the backend is lost."""
        self._waiting.clear()
        self._sent.clear()
        self.queue.ring.abandon()

    def _take(self, used: Iterator[Used]) -> None:
        for slot, _, _ in used:
            unique, nodes = self._sent.pop(slot)
            self.owed -= nodes
            if self.observer is not None:
                self.observer.ended(unique, 0, 0)
        self._taken()


def _forgotten(request: fuse.Request) -> int:
    """Return how many nodes a request tells the backend to forget."""
    return fuse.batch_forget_capacity(request.size) if request.opcode is Opcode.BATCH_FORGET else 0
