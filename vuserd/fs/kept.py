"""The interface of what a client keeps open in a backend between two of its calls."""

from abc import ABC, abstractmethod


class Kept(ABC):
    """An open file or an unfinished listing, which lapses when it is not used for a while.

    The client does not notice: the next use opens it anew.
    """

    is_file: bool = False

    @abstractmethod
    def lapse(self) -> None:
        """Give back all handles and nodes that the backend has for it."""
