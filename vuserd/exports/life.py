"""Where one export is in its life: its state, why, and the calls that wait for another state."""

from collections.abc import Callable
from typing import Any

import trio

from vuserd.backend.base import Backend
from vuserd.errors import BackendDown, printable
from vuserd.exports.states import CALLS_WAIT, Event, ExportState, is_final, next_state


class Life:
    """The state of one export, which nothing but an event changes.

    Args:
        name: the export's.
        on_change: called after each event.

    """

    def __init__(self, name: str, on_change: Callable[[], object]) -> None:
        self.state = ExportState.STARTING
        #: Why it is in that state, for people; empty where nothing need be said.
        self.reason = ""
        #: Set by the first event.
        self.settled = trio.Event()
        self._name = name
        self._on_change = on_change
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def has_ended(self) -> bool:
        """Whether no backend will come any more."""
        return is_final(self.state)

    @property
    def waiting(self) -> int:
        """Calls that wait for another state."""
        return len(self._changed)

    def happen(self, event: Event, reason: str = "") -> bool:
        """Go on to the state that follows an event; return whether there is anything new.

        Raises:
            RuntimeError: the event cannot happen in the present state.

        """
        before = self.state, self.reason
        self.state, self.reason = next_state(self.state, event), printable(reason)
        self.settled.set()
        self._changed.unpark_all()
        self._on_change()
        return (self.state, self.reason) != before

    def describe(self, generation: int, backend: Backend | None) -> dict[str, Any]:
        """Return the export, with the backend that serves, as the RPC's ``exports`` shows it."""
        described: dict[str, Any] = {"name": self._name, "state": str(self.state), "backend": None}
        if backend is not None:
            described["backend"] = {
                "kind": str(backend.kind),
                "version": backend.version,
                "pid": backend.pid,
                "generation": generation,
            }
        return described | ({"reason": self.reason} if self.reason else {})

    async def wait_changed(self, deadline: float) -> None:
        """Wait for the next event, where that may bring a backend.

        Raises:
            BackendDown: it may not, or none came until the deadline.

        """
        if self.state in CALLS_WAIT:
            with trio.move_on_at(deadline) as patience:
                await self._changed.park()
            if not patience.cancelled_caught:
                return
        why = f": {self.reason}" if self.reason else ""
        raise BackendDown(f"export {self._name} is {self.state}{why}")
