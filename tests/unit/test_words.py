"""What a backend prints: logged while it is little, counted when it is much."""

import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_one_way_pair

from vuserd.backend.stderr import Words, is_harmless


class Backend:
    """Says what it is told to, to words that are read; ``logged`` is what was logged of it."""

    def __init__(self) -> None:
        self.logged: list[str] = []
        self.words = Words(self.logged.append)
        pair: tuple[MemorySendStream, MemoryReceiveStream] = memory_stream_one_way_pair()
        self._stderr, self._read = pair

    async def says(self, *said: bytes | float) -> None:
        """Say everything and end, with seconds of silence in between."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.words.read, self._read)
            for one in said:
                if isinstance(one, bytes):
                    await self._stderr.send_all(one)
                else:
                    await trio.sleep(one)
            await self._stderr.aclose()


@pytest.fixture
def backend() -> Backend:
    return Backend()


HARMLESS = (
    "[13:56:52Z WARN  virtiofsd::vhost_user] Front-end did not announce migration to begin",
    "[2026-11-28T13:56:56Z WARN  virtiofsd::sandbox] Couldn't set the process uid as root: -1",
    "[2026-11-28T13:56:56Z WARN  virtiofsd::sandbox] Couldn't set the process gid as root: -1",
    "fv_remove_watch: TODO! fd=7",
    "virtio_loop: Unexpected poll revents 11",
)


async def test_what_is_harmless_is_no_last_word(backend: Backend) -> None:
    await backend.says(*(f"{line}\n".encode() for line in (HARMLESS[0], "a fault", *HARMLESS)))
    assert backend.words.last() == "a fault"
    assert all(map(is_harmless, HARMLESS))
    assert not is_harmless("virtio_loop: Unexpected poll revents 8")


async def test_lines_are_logged_however_they_come(backend: Backend) -> None:
    await backend.says(b"one\ntw", b"o\n\n  \n", b"\xffthree \nand\x1b[2Ja rest")
    assert backend.logged == ["one", "two", "\ufffdthree", "and\\x1b[2Ja rest"]
    assert backend.words.last() == "one / two / \ufffdthree / and\\x1b[2Ja rest"


async def test_a_line_that_never_ends_is_logged_in_parts(backend: Backend) -> None:
    await backend.says(b"x" * 10_000)
    assert "".join(backend.logged) == "x" * 10_000
    assert max(map(len, backend.logged)) <= 2 * 4096


async def test_of_many_lines_few_are_logged_and_the_others_counted(
    backend: Backend,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(30_000))
    await backend.says(lines, 1.5, b"last\n")
    assert backend.logged[:20] == [f"line {number}" for number in range(20)]
    assert backend.logged[20:] == ["and 29980 more lines", "last"]
    assert backend.words.last().startswith("line 29996 / ")
    assert backend.words.last().endswith("line 29999 / last")


async def test_what_was_left_out_is_told_in_time(
    backend: Backend, autojump_clock: trio.testing.MockClock
) -> None:
    """And not when the backend says something again, or at its end."""
    told: list[tuple[float, str]] = []
    backend.words = Words(lambda words: told.append((autojump_clock.current_time(), words)))
    await backend.says(b"line\n" * 25, 100.0)
    assert told[-1] == (1.0, "and 5 more lines")


async def test_a_flood_is_read_a_little_at_a_time(
    backend: Backend, autojump_clock: trio.testing.MockClock
) -> None:
    """It would have the daemon do nothing but read, while others wait."""
    began = autojump_clock.current_time()
    await backend.says(b"x\n" * (1 << 19))
    assert autojump_clock.current_time() - began > 1.0
    assert sum(words == "x" for words in backend.logged) <= 40


async def test_others_have_their_turns_meanwhile(backend: Backend) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await backend.says(b"x\n" * 32_768)
        nursery.cancel_scope.cancel()
    assert turns >= 16
