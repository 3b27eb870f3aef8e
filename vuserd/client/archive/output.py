"""Where an archive goes: a descriptor, or whatever takes bytes in their order."""

import os
import select
from collections.abc import Callable
from typing import Final

from vuserd.client.core.procedure import Procedure, Sink, Write
from vuserd.client.files.sinks import StreamSink

#: What is gathered before it is handed on, in bytes.
_PAGE: Final = 1 << 20


class DescriptorSink:
    """A file, a pipe or a socket that is open for writing."""

    blocks = True  # an asynchronous client writes in a thread

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno

    def write(self, payload: memoryview, _: int) -> None:
        """Write all of it, waiting where there is no room."""
        while payload:
            try:
                payload = payload[os.write(self._fileno, payload) :]
            except BlockingIOError:
                select.select((), (self._fileno,), ())


def sink_of(to: int | Callable[[memoryview], object]) -> Sink:
    """Return what writes to a descriptor, or hands bytes to a function."""
    return DescriptorSink(to) if isinstance(to, int) else StreamSink(to)


class Output:
    """Gathers small parts.

    Args:
        sink: takes the bytes.
        settle: done before the sink is written to, which may take its time.

    """

    def __init__(self, sink: Sink, settle: Callable[[], Procedure[None]]) -> None:
        self._sink, self._settle = sink, settle
        self._gathered = bytearray()
        #: Bytes that were put so far.
        self.size = 0

    def put(self, part: bytes | memoryview) -> None:
        """Take a part; :meth:`flush` it some time."""
        self._gathered += part
        self.size += len(part)

    def pad(self, block: int) -> None:
        """Take zeros, up to a whole number of blocks."""
        self.put(bytes(-self.size % block))

    @property
    def is_full(self) -> bool:
        """Whether it is time to flush."""
        return len(self._gathered) >= _PAGE

    def flush(self) -> Procedure[None]:
        """Hand on what was gathered."""
        if self._gathered:
            yield from self._settle()
            gathered, self._gathered = self._gathered, bytearray()
            with memoryview(gathered) as view:
                yield Write(self._sink, view, self.size - len(gathered))

    def pass_on(self, payload: memoryview) -> Procedure[None]:
        """Hand on a large part as it is, behind what was gathered."""
        yield from self.flush()
        yield Write(self._sink, payload, self.size)
        self.size += len(payload)
