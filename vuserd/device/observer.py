"""The interface of an observer of a session's FUSE requests."""

from typing import Protocol

from protocol import fuse


class Observer(Protocol):
    """Told by a :class:`~vuserd.device.lane.lane.Lane` of its requests. Nothing may raise.

    A request that never reached the ring is not reported.
    """

    def sent(self, unique: int, request: fuse.Request) -> None:
        """Observe that a request is given to the device."""

    def ended(self, unique: int, error: int, length: int) -> None:
        """Observe a reply: its errno, 0 for success, and the length of its body in bytes.

        For a request without a reply, such as FORGET, both are 0.
        """

    def timed_out(self, unique: int) -> None:
        """Observe that a request has timed out; its reply may still come."""

    def lost(self) -> None:
        """Observe that the backend is gone, and with it all pending requests."""
