"""Deadlines and signs of life: what is overdue is ended, and a backend that is silent is found."""

import math
from collections.abc import Callable

import trio

from vuserd.device.lane.backlog import Backlog
from vuserd.device.lane.hung import PROBE_TIME, Attribution
from vuserd.device.lane.slots import Slots
from vuserd.device.queue import NotifiedQueue
from vuserd.device.request import Batch


class _Probe(Batch):
    """A request whose reply only has to come."""

    __slots__ = ()

    def resume(self) -> None:
        """Do nothing: that it was answered is known by then."""


class Watch:
    """Watches over a session's requests and over the queues that they are on.

    An overdue request says little about a backend, which may still answer others. So a probe is
    sent, which any backend answers at once. If the whole queue stays silent, the backend is lost:
    its socket may still be open, but its rings are dead. A queue that has only abandoned requests
    is probed as well, after the time of a call, since all callers may leave before theirs is over.
    The hiprio queue has no replies, but a backend takes its requests at once, so no probe is needed
    there.

    Args:
        timeout: seconds for each request, the same for all.
        requests: the queue whose requests are answered.
        hiprio: the queue whose requests are only taken.
        slots: what the former has.
        backlog: what is to get a slot there.

    """

    def __init__(
        self,
        timeout: float,
        requests: NotifiedQueue,
        hiprio: NotifiedQueue,
        slots: Slots,
        backlog: Backlog,
    ) -> None:
        self._timeout = timeout
        self._requests = requests
        self._hiprio = hiprio
        self._slots = slots
        self._backlog = backlog
        #: Finds what hangs the backend, if anybody is to be told.
        self.attribution: Attribution | None = None
        #: The latest probe, when it was sent, and until when it is waited for.
        self._probe: Batch | None = None
        self._probed = -math.inf
        self._patience = -math.inf
        #: When to look once more at what was overdue: by then a probe has shown what else goes on.
        self._next_look = math.inf
        #: Whether there is nothing to watch, and :meth:`wake` has to be called for what comes next.
        self.is_parked = False
        self._something = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        """Begin to watch, if there was nothing to watch before."""
        self.is_parked = False
        self._something.unpark_all()

    async def run(
        self, end_overdue: Callable[[float], bool], probe: Callable[[Batch], None]
    ) -> str:
        """Watch until the backend is silent; return what to say of it.

        All requests have the same time, so none that begins during a sleep is overdue before that
        ends: one task with one timer, and now and then a look at all of them, cost a request
        less than anything of its own.

        Args:
            end_overdue: ends what is overdue by then; returns whether a caller waited for it.
            probe: sends a request that any backend answers at once.

        """
        while True:
            due = self._due()
            if due == math.inf:
                self.is_parked = True
                await self._something.park()
                continue
            due = min(due, trio.current_time() + self._timeout)
            await trio.sleep_until(due)
            await self._take_replies(due)
            now = trio.current_time()
            if self.attribution is not None:
                self.attribution.find(self._slots, now, heard=self._requests.heard)
            is_overdue = end_overdue(now)
            if is_overdue:
                self._next_look = now + PROBE_TIME
            elif now >= self._next_look:
                self._next_look = math.inf
            for silent, why in (
                (self._requests_silent_at(), "answers nothing any more"),
                (self._hiprio_silent_at(), "takes nothing from its hiprio queue any more"),
            ):
                if silent is not None and silent <= now:
                    return f"the backend {why}"
            if is_overdue:
                self._ask(now + PROBE_TIME, probe)
            elif (unheard := self._unheard_at()) is not None and unheard <= now:
                self._ask(now + self._timeout, probe)

    async def _take_replies(self, due: float) -> None:
        """Let replies that have come be taken before deadlines are looked at.

        Where this process stood still (stopped, or its machine was) the backend may have, too.
        """
        if trio.current_time() > due + PROBE_TIME:
            await trio.sleep(PROBE_TIME)
        else:
            await trio.lowlevel.checkpoint()

    def makes_progress(self) -> bool:
        """Return whether :meth:`run` has its turns: what is overdue is ended, or only just so."""
        return trio.current_time() < self._next_deadline() + PROBE_TIME

    def _next_deadline(self) -> float:
        return min(self._slots.next_deadline(), self._backlog.next_deadline())

    def _due(self) -> float:
        """Return when there is something to do next."""
        others = (self._unheard_at(), self._requests_silent_at(), self._hiprio_silent_at())
        times = [time for time in others if time is not None]
        return min(self._next_deadline(), self._next_look, *times)

    def _ask(self, patience: float, probe: Callable[[Batch], None]) -> None:
        """Send a probe, unless there is one; wait for it until then, and no longer."""
        if self._is_in_doubt():
            self._patience = min(self._patience, patience)
        elif self._probe is None or not self._probe.missing:
            self._probe = _Probe()
            probe(self._probe)
            self._probed = trio.current_time()
            self._patience = patience

    def _unheard_at(self) -> float | None:
        """Return when a backend that has requests, and answers none, is to be asked."""
        if not self._requests.ring.outstanding or self._is_in_doubt():
            return None
        return self._requests.heard + self._timeout

    def _is_in_doubt(self) -> bool:
        """Return whether nothing was answered since the latest probe."""
        return self._requests.heard < self._probed

    def _requests_silent_at(self) -> float | None:
        """Return when a backend that answers neither the probe nor anything else is lost."""
        if not self._is_in_doubt():
            return None
        return max(self._patience, self._requests.heard + self._timeout)

    def _hiprio_silent_at(self) -> float | None:
        """Return when a backend is lost that takes nothing of what is on the hiprio queue."""
        if not self._hiprio.ring.outstanding:
            return None
        return self._hiprio.heard + self._timeout + PROBE_TIME
