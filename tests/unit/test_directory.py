"""What stands at an export's path, and when the daemon looks."""

import errno
import os
import threading
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from vuserd.exports.directory import Lookout, Sight, Standing, look_at

HERE = Standing(1, 0, 1, 2)


def test_a_directory_is_told_from_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("a")
    first, second = look_at(str(tmp_path / "a")), look_at(str(tmp_path / "b"))
    through = look_at(str(tmp_path / "link"))
    assert first.standing == through.standing != second.standing
    assert through.resolved == str(tmp_path / "a")
    assert first.standing is not None
    status = os.stat(tmp_path / "a")
    assert (first.standing.device, first.standing.inode) == (status.st_dev, status.st_ino)
    assert first.reason == ""


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in (
        ("none", "no such file"),
        ("file", "not a directory"),
        ("file/below", "not a directory"),
        ("loop", "too many levels"),
        ("n" * 300, "name too long"),
    ):
        sight = look_at(str(tmp_path / name))
        assert sight.standing is None
        assert words in sight.reason


class Libc:
    """A libc whose statx fails with ``number``, or knows less than is asked for."""

    def __init__(self, number: int) -> None:
        self._number = number

    def statx(self, *_: object) -> int:
        import ctypes

        ctypes.set_errno(self._number)
        return -1 if self._number else 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, 0])
def test_an_old_kernel_or_a_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Without statx, or with a statx without mounts: as much as stat tells."""
    monkeypatch.setattr("vuserd.exports.directory.ctypes.CDLL", lambda *_, **__: Libc(number))
    status = os.stat(tmp_path)
    sight = look_at(str(tmp_path))
    assert sight.standing is not None
    assert sight.standing[2:] == (status.st_dev, status.st_ino)
    assert sight.standing.mount == 0


def test_a_file_system_that_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vuserd.exports.directory.ctypes.CDLL", lambda *_, **__: Libc(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        look_at(str(tmp_path))


class Looks:
    """What takes the place of :func:`look_at`: counts, and may wait for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.told: list[Sight] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self.error: OSError | None = None
        monkeypatch.setattr("vuserd.exports.directory.look_at", self._look)

    def _look(self, path: str) -> Sight:
        self.count += 1
        self.may_end.wait(10)
        if self.error is not None:
            raise self.error
        return Sight(HERE, "", path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


async def test_a_crowd_shares_one_look(looks: Looks, mock_clock: MockClock) -> None:
    del mock_clock  # which stands still: what is new stays so
    lookout = Lookout("/srv", looks.told.append)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            lookout.begin(nursery)
            nursery.start_soon(lookout.wait)
    assert looks.count == 1
    assert looks.told == [Sight(HERE, "", "/srv")]
    assert (lookout.is_due, lookout.is_stale) == (False, False)


async def test_a_look_that_does_not_come_back_keeps_nobody(looks: Looks) -> None:
    lookout = Lookout("/srv", looks.told.append)
    looks.may_end.clear()
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        lookout.begin(nursery)
        await lookout.wait()
        assert 0.9 < trio.current_time() - begun < 5
        begun = trio.current_time()
        for _ in range(10):  # no other look is begun, and no other wait
            lookout.begin(nursery)
            await lookout.wait()
        assert trio.current_time() - begun < 0.5
        assert looks.count == 1
        assert lookout.is_due
        lookout.stop()  # and the nursery ends
        lookout.begin(nursery)
    looks.may_end.set()
    assert looks.told == []


async def test_a_late_look_is_told(looks: Looks) -> None:
    lookout = Lookout("/srv", looks.told.append)
    looks.may_end.clear()
    async with trio.open_nursery() as nursery:
        lookout.begin(nursery)
        await wait_all_tasks_blocked()
        looks.may_end.set()
    assert looks.told == [Sight(HERE, "", "/srv")]


async def test_a_look_that_fails_tells_nothing(looks: Looks) -> None:
    lookout = Lookout("/srv", looks.told.append)
    looks.error = OSError(errno.EIO, "Input/output error")
    async with trio.open_nursery() as nursery:
        lookout.begin(nursery)
    assert looks.told == []
    assert not lookout.is_due  # it is not asked without a pause
    assert await lookout.see() is None
    looks.error = None
    assert await lookout.see() == Sight(HERE, "", "/srv")


async def test_it_never_looks_by_itself(looks: Looks, mock_clock: MockClock) -> None:
    lookout = Lookout("/srv", looks.told.append)
    assert await lookout.see() is not None
    mock_clock.jump(3600)
    await wait_all_tasks_blocked()
    assert looks.count == 1
    assert lookout.is_stale
