"""Which requests hang the backend: those that it works on for longer than any may take."""

from typing import Final

from vuserd.device.gate import Gate
from vuserd.device.lane.slots import Sent, Slots

#: Seconds for a backend that has been silent to show that it is alive.
PROBE_TIME: Final = 1.0


class Attribution:
    """Finds the requests that hang the backend, and reports them to a gate.

    Args:
        gate: is told.
        timeout: seconds that each request has.

    """

    def __init__(self, gate: Gate, timeout: float) -> None:
        self.gate = gate
        self._timeout = timeout
        #: The uniques of those that were found to hang it, and have not been answered since.
        self._hung: set[int] = set()

    def find(self, slots: Slots, now: float, *, heard: float) -> None:
        """Report what hangs the backend and was not reported yet.

        The backend takes requests in the order of the ring. So it is at what was put there before
        something that it has answered; where it has long answered nothing, its threads are at the
        oldest. What is overdue besides waited for others, and is not to blame.

        Args:
            slots: the requests that it has.
            now: the time.
            heard: when it last answered anything.

        """
        is_quiet = heard + self._timeout / 2 <= now
        taken = self.gate.threads if is_quiet else 0
        for place, one in enumerate(slots.outstanding()):
            is_taken = place < taken or one.unique < slots.latest
            is_overdue = one.deadline <= now and (is_quiet or one.deadline)
            if is_taken and is_overdue and one.unique not in self._hung:
                self._hung.add(one.unique)
                self.gate.hung(one.asked[0], one.path, one.asker)

    @property
    def is_listening(self) -> bool:
        """Whether it matters which requests are answered: they hung before, or are held back."""
        return bool(self._hung or self.gate.held)

    def answered(self, one: Sent, now: float) -> None:
        """Report that a request was answered, if the gate wants to know."""
        request = one.asked[0]
        if one.unique not in self._hung:
            self.gate.answered(request)
            return
        self._hung.discard(one.unique)
        if now <= one.deadline + PROBE_TIME:
            self.gate.was_late(request, one.path, one.asker)
