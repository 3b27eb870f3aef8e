"""What an archive is made of reaches a descriptor whole, whatever that takes at once."""

import fcntl
import os
import threading

import pytest

from vuserd.client.archive.output import DescriptorSink, Output, sink_of
from vuserd.client.core.procedure import Do, Procedure, Running, Write

PARTS: list[bytes | memoryview] = [
    b"head",
    memoryview(b"content" * 10_000),
    b"\0",
    b"another" * 20_000,
    b"end",
]


@pytest.mark.parametrize("blocks", [True, False])
def test_parts_to_a_pipe_that_has_no_room_for_all(*, blocks: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, blocks)
    if not blocks:  # nothing at all has room at first
        os.write(writer, bytes(1 << 16))
    found = bytearray()

    def read() -> None:
        while part := os.read(reader, 5000):
            found.extend(part)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        DescriptorSink(writer).write_parts(PARTS)
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)
    assert bytes(found).lstrip(b"\0") == b"".join(PARTS)


def test_a_pipe_with_a_large_number_that_has_no_room() -> None:
    """select(2) knows descriptors below 1024 alone."""
    reader, low = os.pipe()
    writer = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1024)
    os.close(low)
    os.set_blocking(writer, False)
    os.write(writer, bytes(1 << 16))
    thread = threading.Timer(0.1, os.read, (reader, 1 << 16))
    thread.start()
    try:
        DescriptorSink(writer).write(memoryview(b"more"), 0)
        assert os.read(reader, 10) == b"more"
    finally:
        thread.join()
        os.close(writer)
        os.close(reader)


def settled() -> Procedure[None]:
    yield from ()


def handed_on(out: Output) -> bytes:
    """Flush; return what the sink is given."""
    running = Running(out.flush())
    step = running.next_step()
    assert isinstance(step, Write)
    assert step.offset == out.size - len(step.payload)
    assert running.next_step() is None
    return bytes(step.payload)


def test_parts_are_gathered_for_a_function() -> None:
    out = Output(sink_of(lambda _: None), settled)
    out.put(b"abc")
    out.put(b"")
    out.pad(4)
    out.pad(4)
    assert handed_on(out) == b"abc\0"
    out.put(b"defgh")
    assert handed_on(out) == b"defgh"
    assert out.size == 9
    assert Running(out.flush()).next_step() is None


def test_members_are_padded() -> None:
    out = Output(sink_of(lambda _: None), settled)
    for content in (b"", b"abc", memoryview(b"defgh")):
        out.put_member(b"he", content, 4)
    assert handed_on(out) == b"he\0\0heabc\0\0\0hedefgh\0"


def test_it_is_full_by_bytes_and_by_parts() -> None:
    out = Output(sink_of(0), settled)
    out.put(bytes(1 << 20))
    assert out.is_full
    assert isinstance(Running(out.flush()).next_step(), Do)
    fullness = []
    for _ in range(1000):
        out.put(b"x")
        fullness.append(out.is_full)
    assert fullness == [False] * 999 + [True]
