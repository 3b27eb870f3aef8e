"""Who decides which requests a backend is given, and is told of those that hung it."""

from collections.abc import Sized
from typing import Protocol

from protocol import fuse
from vuserd.users.asker import Asker


class Gate(Protocol):
    """What a :class:`~vuserd.device.channel.FuseChannel` asks, once it has one."""

    #: How many requests the backend works at at once: as many threads as it has.
    threads: int
    #: What is held back, now as later: while it is empty, nobody is asked.
    held: Sized

    def admit(self, request: fuse.Request) -> None:
        """Let a request pass.

        Raises:
            HeldBack: it hung the backend, and is not to be asked again yet.

        """

    def answered(self, request: fuse.Request) -> None:
        """Note that a request was answered, in time."""

    def path(self, request: fuse.Request) -> bytes | None:
        """Return where a request's node is now; None where that is not known."""

    def hung(self, request: fuse.Request, path: bytes | None, asker: Asker | None) -> None:
        """Note that the backend has worked at a request for longer than any may take.

        Args:
            request: what hung.
            path: where its node was, unless that is to be found out now.
            asker: on whose behalf it was.

        """

    def was_late(self, request: fuse.Request, path: bytes | None, asker: Asker | None) -> None:
        """Take that back: the backend was slow, or stood still with all else."""
