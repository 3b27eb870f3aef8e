"""What a client has open in a backend between two of its calls."""

from abc import ABC, abstractmethod


class Kept(ABC):
    """An open file or a listing that goes on: it lapses when it is not used for a while.

    The client does not notice: what has lapsed is opened anew when it is used again.
    """

    is_file: bool = False

    @abstractmethod
    def lapse(self) -> None:
        """Give back all that the backend has open or knows for it."""
