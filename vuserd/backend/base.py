"""The interface of a backend, whether the daemon started or adopted it."""

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
            BackendDown: no backend listens on the socket.

        """

    @abstractmethod
    def last_words(self) -> str:
        """Return what is known about why the backend went away, for people; else an empty text."""

    def own_end(self) -> int | None:
        """Return how the process ended by itself: its exit status, or minus a signal's number."""
        return None

    async def has_opened(
        self,
        device: int,  # noqa: ARG002
        inode: int,  # noqa: ARG002
        sandbox: str,  # noqa: ARG002
        limiter: trio.CapacityLimiter,  # noqa: ARG002
    ) -> bool:
        """Return whether the backend serves this directory; True where that is not known.

        This is called once the backend has answered, before it is asked for any file. ``limiter``
        bounds the threads that may wait for this directory's file system for ever.
        """
        return True

    @abstractmethod
    def expect_end(self, *, expected: bool = True) -> None:
        """Expect a clean exit (or no longer expect one)."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until the process has ended; for ever if the daemon did not start it."""

    @abstractmethod
    async def stop(self) -> None:
        """End the process if the daemon started it. The connection is closed already."""
