"""What a client keeps open in a backend between two of its calls, and why it may not go on."""

from abc import ABC, abstractmethod

from vuserd.errors import CallError, ErrorCode


class Kept(ABC):
    """An open file or an unfinished listing, which lapses when it is not used for a while.

    The client does not notice: the next use opens it anew.
    """

    is_file: bool = False

    @abstractmethod
    def lapse(self) -> None:
        """Give back all handles and nodes that the backend has for it."""


def replaced() -> CallError:
    """Return the error of a listing whose directory is another one by now."""
    return CallError(
        ErrorCode.CHANGED,
        "the directory was replaced since a part of it was read, or it is not known whether it was;"
        " begin again",
    )
