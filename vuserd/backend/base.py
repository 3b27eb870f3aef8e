"""What the device asks of a backend, started or adopted."""

from abc import ABC, abstractmethod

import trio

from vuserd.backend.find import BackendKind


class Backend(ABC):
    """One backend for one session: connect once, stop once."""

    kind: BackendKind = BackendKind.UNKNOWN
    version: str | None = None
    pid: int | None = None

    @abstractmethod
    async def connect(self) -> trio.SocketStream:
        """Return the one vhost-user connection; the caller closes it.

        Raises:
            BackendDown: there is nobody behind the socket.

        """

    @abstractmethod
    def last_words(self) -> str:
        """Return what is known of why it went away, for people; empty when nothing is."""

    def own_end(self) -> int | None:
        """Return how its process ended where it was not for us: its status, or minus the signal."""
        return None

    async def has_opened(
        self,
        device: int,  # noqa: ARG002
        inode: int,  # noqa: ARG002
        sandbox: str,  # noqa: ARG002
        limiter: trio.CapacityLimiter,  # noqa: ARG002
    ) -> bool:
        """Tell whether this directory is the one that it serves; True where that is not known.

        It is asked of one that has answered, and that has been asked for no file yet. ``limiter``
        is of threads that may wait for this directory's file system for ever.
        """
        return True

    @abstractmethod
    def expect_end(self, *, expected: bool = True) -> None:
        """Take note that it is to end in good order; or is not, after all."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until its process has ended; for ever where that is not ours to know."""

    @abstractmethod
    async def stop(self) -> None:
        """End it, if it is ours to end. The connection is closed already."""
