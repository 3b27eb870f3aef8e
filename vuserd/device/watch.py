"""Deadlines and signs of life: what is overdue is ended, and a backend that is silent is found."""

import itertools
import math
from collections.abc import Callable
from typing import Final

import trio

from vuserd.device.queue import NotifiedQueue
from vuserd.device.request import InFlight

#: Seconds for a backend that has been silent to show that it is alive.
PROBE_TIME: Final = 1.0


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

    """

    def __init__(
        self, timeout: float, requests: NotifiedQueue[InFlight], hiprio: NotifiedQueue[InFlight]
    ) -> None:
        #: Requests whose caller waits, by unique: the oldest deadline is the first.
        self.awaited: dict[int, InFlight] = {}
        #: The few bulk requests in the backend; each keeps its place until its deadline at the
        #: latest, whether its caller still waits or not.
        self.turns: dict[int, InFlight] = {}
        self._timeout = timeout
        self._requests = requests
        self._hiprio = hiprio
        #: The latest probe's unique, when it was sent, and until when it is waited for.
        self._probe = 0
        self._probed = -math.inf
        self._patience = -math.inf
        #: When to look once more at what was overdue: by then a probe has shown what else goes on.
        self._next_look = math.inf
        self._something = trio.lowlevel.ParkingLot()

    def begin(self, entry: InFlight) -> None:
        """Start a request's deadline."""
        entry.deadline = trio.current_time() + self._timeout
        self.awaited[entry.unique] = entry
        self.wake()

    def wake(self) -> None:
        """Begin to watch, if there was nothing to watch before."""
        if self._something:
            self._something.unpark_all()

    async def run(
        self,
        look: Callable[[float], None],
        end: Callable[[InFlight], None],
        end_turn: Callable[[InFlight], None],
        probe: Callable[[], InFlight],
    ) -> str:
        """Watch until the backend is silent; return what to say of it.

        All requests have the same time, so the oldest one's deadline is the next: one task with one
        timer costs a request less than a cancel scope of its own.

        Args:
            look: is called with the time whenever something may be overdue, before it is ended.
            end: takes a request that is overdue off ``awaited``, and wakes who waits for it.
            end_turn: takes one off ``turns``, and lets the next one have its turn.
            probe: sends one that any backend answers at once.

        """
        while True:
            times = self._times()
            if not times:
                await self._something.park()
                continue
            # What is begun meanwhile is overdue after its own time at the earliest.
            await trio.sleep_until(min(*times, trio.current_time() + self._timeout))
            now = trio.current_time()
            look(now)
            is_overdue = self._end_overdue(now, end)
            if is_overdue:
                self._next_look = now + PROBE_TIME
            elif now >= self._next_look:
                self._next_look = math.inf
            for entry in [entry for entry in self.turns.values() if entry.deadline <= now]:
                end_turn(entry)
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

    def makes_progress(self) -> bool:
        """Return whether :meth:`run` has its turns: what is overdue is ended, or only just so."""
        oldest = next(iter(self.awaited.values()), None)
        return oldest is None or trio.current_time() < oldest.deadline + PROBE_TIME

    def _times(self) -> list[float]:
        """Return when there is something to do next."""
        times = [entry.deadline for entry in itertools.islice(self.awaited.values(), 1)]
        times += [entry.deadline for entry in self.turns.values()]
        if self._next_look < math.inf:
            times.append(self._next_look)
        others = (self._unheard_at(), self._requests_silent_at(), self._hiprio_silent_at())
        return times + [time for time in others if time is not None]

    def _end_overdue(self, now: float, end: Callable[[InFlight], None]) -> bool:
        """End what is overdue; tell whether there was anything."""
        found = False
        while self.awaited:
            oldest = next(iter(self.awaited.values()))
            if oldest.deadline > now:
                break
            end(oldest)
            found = True
        return found

    def _ask(self, patience: float, probe: Callable[[], InFlight]) -> None:
        """Send a probe, unless there is one; wait for it until then, and no longer."""
        if self._is_in_doubt():
            self._patience = min(self._patience, patience)
        elif self._probe not in self.awaited:
            self._probe = probe().unique
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
