"""The interface of what decides which requests may go to a backend that some have hung."""

from collections.abc import Sized
from typing import Protocol

from protocol import fuse
from vuserd.users.asker import Asker


class Gate(Protocol):
    """Asked by a :class:`~vuserd.device.lane.lane.Lane` about each request."""

    #: How many requests the backend works on at once: the number of its threads.
    threads: int
    #: The requests that are held back, a live view: while it is empty, :meth:`admit` is not called.
    held: Sized

    def admit(self, request: fuse.Request) -> None:
        """Let a request pass.

        Raises:
            HeldBack: it has hung the backend before, and may not be sent again yet.

        """

    def answered(self, request: fuse.Request) -> None:
        """Record that a request was answered in time."""

    def path(self, request: fuse.Request) -> bytes | None:
        """Return the present path of a request's node; None if it is not known."""

    def hung(self, request: fuse.Request, path: bytes | None, asker: Asker | None) -> None:
        """Record that the backend has worked on a request for longer than any may take.

        Args:
            request: the request that hung.
            path: the path of its node when it was sent; None to look it up now.
            asker: the user on whose behalf it was sent.

        """

    def was_late(self, request: fuse.Request, path: bytes | None, asker: Asker | None) -> None:
        """Withdraw a :meth:`hung`: the backend was only slow, or everything stood still."""
