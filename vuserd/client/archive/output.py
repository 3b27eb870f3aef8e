"""Where an archive goes: a descriptor, or whatever takes bytes in their order."""

import os
import select
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from vuserd.client.core.procedure import Do, Procedure, Sink, Write
from vuserd.client.files.sinks import StreamSink

#: What is gathered before it is handed on: bytes, and parts, of which one call takes 1024.
_PAGE: Final = 1 << 20
_PARTS: Final = 1000
#: As many as the largest block may lack.
_ZEROS: Final = bytes(512)


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
                _wait_for_room(self._fileno)

    def write_parts(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write all of them, few enough for one call."""
        try:
            written = os.writev(self._fileno, parts)
        except BlockingIOError:
            written = 0
        if written == sum(map(len, parts)):
            return
        for part in parts:
            if written < len(part):
                self.write(memoryview(part)[written:], 0)
            written = max(written - len(part), 0)


def _wait_for_room(fileno: int) -> None:
    poll = select.poll()  # which takes any descriptor; select() those below 1024
    poll.register(fileno, select.POLLOUT)
    poll.poll()


def sink_of(to: int | Callable[[memoryview], object]) -> Sink:
    """Return what writes to a descriptor, or hands bytes to a function."""
    return DescriptorSink(to) if isinstance(to, int) else StreamSink(to)


class Output:
    """Gathers small parts, which stay as they are until they are handed on.

    Args:
        sink: takes the bytes.
        settle: done before the sink is written to, which may take its time.

    """

    def __init__(self, sink: Sink, settle: Callable[[], Procedure[None]]) -> None:
        self._sink, self._settle = sink, settle
        self._gathered: list[bytes | bytearray | memoryview] = []
        self._waiting = 0
        #: Bytes that were put so far.
        self.size = 0

    def put(self, part: bytes | bytearray | memoryview) -> None:
        """Take a part; :meth:`flush` it some time."""
        if part:
            self._gathered.append(part)
            self._waiting += len(part)
            self.size += len(part)

    def put_member(self, head: bytes, content: bytes | bytearray | memoryview, block: int) -> None:
        """Take a head and what belongs behind it, padded to a whole number of blocks."""
        gathered, size = self._gathered, len(head)
        gathered.append(head)
        if content:
            gathered.append(content)
            size += len(content)
        if odd := (self.size + size) % block:
            gathered.append(_ZEROS[: block - odd])
            size += block - odd
        self._waiting += size
        self.size += size

    def pad(self, block: int) -> None:
        """Take zeros, up to a whole number of blocks."""
        if odd := self.size % block:
            self.put(_ZEROS[: block - odd])

    @property
    def is_full(self) -> bool:
        """Whether it is time to flush."""
        return self._waiting >= _PAGE or len(self._gathered) >= _PARTS

    def flush(self) -> Procedure[None]:
        """Hand on what was gathered."""
        if self._gathered:
            yield from self._settle()
            gathered, self._gathered = self._gathered, []
            begin, self._waiting = self.size - self._waiting, 0
            if isinstance(self._sink, DescriptorSink):
                yield Do(partial(self._sink.write_parts, gathered))
            else:
                yield Write(self._sink, memoryview(b"".join(gathered)), begin)

    def pass_on(self, payload: memoryview) -> Procedure[None]:
        """Hand on a large part as it is, behind what was gathered."""
        yield from self.flush()
        yield Write(self._sink, payload, self.size)
        self.size += len(payload)
