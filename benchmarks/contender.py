"""A contender: a way to reach the files, with the processes behind it."""

import contextlib
from typing import NamedTuple


class Servers(NamedTuple):
    """The processes behind a contender, by their roots; its own process is its client."""

    server: tuple[int, ...] = ()  #: the daemon, or what stands in its place
    backend: tuple[int, ...] = ()  #: virtiofsd


class WrongBytesError(Exception):
    """A contender was fast and wrong."""


class Unavailable(Exception):  # noqa: N818 - it is no fault
    """The machine has no such thing; the message says what and why."""


class Contender:
    """One way to reach the files. It is made in the program and opened in a process of its own.

    Attributes:
        backend: which virtiofsd is behind it; empty for a peer.
        undo: what :meth:`close` does; subclasses add to it while they open.

    """

    backend = ""

    def __init__(self) -> None:
        self.undo = contextlib.ExitStack()

    def open(self) -> None:
        """Connect.

        Raises:
            Unavailable: the machine lacks what it takes.

        """

    def servers(self) -> Servers:
        """Return which processes are behind it."""
        return Servers()

    def close(self) -> None:
        """End what :meth:`open` began."""
        self.undo.close()
