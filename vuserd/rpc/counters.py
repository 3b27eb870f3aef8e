"""What all connections have done so far, in plain numbers: counting must cost a call nothing."""

from bisect import bisect_left
from typing import Final

#: Upper ends of the classes that the times of calls are counted in, seconds, the ends included.
SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10,
)  # fmt: skip

#: How calls may end that are no errors of :class:`vuserd.errors.ErrorCode` and no errno.
OK: Final = "OK"
GONE: Final = "GONE"  #: the client went away first
#: What a call of a method that does not exist, or a request that is none, is counted as.
NO_METHOD: Final = "none"
#: What a backend calls an errno that this machine has no name for begins so.
_NAMELESS: Final = "ERRNO_"
_OTHER: Final = "OTHER"


class MethodCounts:
    """The calls of one method."""

    __slots__ = ("by_second", "ends", "seconds")

    def __init__(self) -> None:
        #: By how they ended: OK, GONE, or an error's code.
        self.ends: dict[str, int] = {OK: 0}
        #: By how long they took: one more class than there are ends, for those that took longer.
        self.by_second = [0] * (len(SECONDS) + 1)
        #: How long all of them took.
        self.seconds = 0.0


class Counters:
    """What all connections have done so far."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests = 0
        self.errors = 0
        #: Bytes of files by the way that they went: in replies, as images, into attached memory.
        self.bytes_read = 0
        self.bytes_of_images = 0
        self.bytes_loaded = 0
        #: Requests in the daemon now.
        self.in_flight = 0
        self.methods: dict[str, MethodCounts] = {}

    def count(self, method: str, end: str, seconds: float) -> None:
        """Count a call that has ended; ``method`` is a name of the daemon's, or NO_METHOD."""
        try:
            counts = self.methods[method]
        except KeyError:
            counts = self.methods[method] = MethodCounts()
        try:
            counts.ends[end] += 1
        except KeyError:
            end = _OTHER if end.startswith(_NAMELESS) else end
            counts.ends[end] = counts.ends.get(end, 0) + 1
        counts.by_second[bisect_left(SECONDS, seconds)] += 1
        counts.seconds += seconds


class ClientCounters:
    """What one client did and was given, counted among what all did."""

    def __init__(self, together: Counters) -> None:
        self.requests = 0
        #: Bytes of files, in whatever way.
        self.bytes_read = 0
        self._together = together

    def count_request(self) -> None:
        """Count a request that was read."""
        self.requests += 1
        self._together.requests += 1

    def count_read(self, size: int) -> None:
        """Count bytes of a file in a reply."""
        self.bytes_read += size
        self._together.bytes_read += size

    def count_image(self, size: int) -> None:
        """Count bytes of a file as an image."""
        self.bytes_read += size
        self._together.bytes_of_images += size

    def count_loaded(self, size: int) -> None:
        """Count bytes of a file in the client's own memory."""
        self.bytes_read += size
        self._together.bytes_loaded += size
