"""Which requests hang the backend: those that it works on for longer than any may take."""

from typing import Final

from vuserd.device.gate import Gate
from vuserd.device.lane.slots import Slot, Slots

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
        #: Those that were found to hang it, and have not been answered since.
        self._hung: set[Slot] = set()

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
        for place, slot in enumerate(slots.outstanding()):
            is_taken = place < taken or slot.unique < slots.latest
            is_overdue = slot.deadline <= now and (is_quiet or slot.deadline)
            if is_taken and is_overdue and slot not in self._hung:
                assert slot.request is not None
                self._hung.add(slot)
                self.gate.hung(slot.request, slot.path, slot.asker)

    def answered(self, slot: Slot, now: float) -> None:
        """Report that a request was answered, if the gate wants to know."""
        if not (self._hung or self.gate.held):
            return
        assert slot.request is not None
        if slot not in self._hung:
            self.gate.answered(slot.request)
            return
        self._hung.discard(slot)
        if now <= slot.deadline + PROBE_TIME:
            self.gate.was_late(slot.request, slot.path, slot.asker)
