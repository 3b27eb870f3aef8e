"""Blocks of a large new file are set aside, where that costs nobody anything."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vuserd.client.files import room
from vuserd.client.files.room import set_aside
from vuserd.client.records import Stat
from vuserd.ctl.copying.atomic_file import new_file, open_directory

SIZE = 9 << 20


def source(size: int = SIZE, blocks: int | None = None) -> Stat:
    count = size // 512 if blocks is None else blocks
    return Stat("file", 0o100644, size, 5, 1, 0, 0, 0, count, 4096, 1, 2, 3)


@pytest.fixture
def fileno(tmp_path: Path) -> Iterator[int]:
    fileno = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    yield fileno
    os.close(fileno)


class Machine:
    """What the system says of a file, and what it was asked to set aside."""

    def __init__(self) -> None:
        self.device = os.makedev(8, 1)
        self.free = 4 * SIZE
        self.asked: list[int] = []
        self.error: OSError | None = None

    def fstat(self, _: int) -> Any:
        return SimpleNamespace(st_dev=self.device)

    def fstatvfs(self, _: int) -> Any:
        return SimpleNamespace(f_bavail=self.free // 4096, f_frsize=4096)

    def ioctl(self, _fileno: int, number: int, space: bytes) -> None:
        assert number == 0x4030582A
        assert len(space) == 48
        self.asked.append(int.from_bytes(space[16:24], "little"))
        if self.error is not None:
            raise self.error


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    like_os = SimpleNamespace(
        fstat=machine.fstat, fstatvfs=machine.fstatvfs, major=os.major, SEEK_SET=os.SEEK_SET
    )
    monkeypatch.setattr(room, "os", like_os)
    monkeypatch.setattr(room, "fcntl", SimpleNamespace(ioctl=machine.ioctl))
    return machine


class TestWhere:
    def test_a_large_file_on_a_block_device(self, machine: Machine) -> None:
        set_aside(-1, source())
        assert machine.asked == [SIZE]

    def test_not_a_small_one(self, machine: Machine) -> None:
        set_aside(-1, source(7 << 20))
        assert machine.asked == []

    def test_not_one_with_holes(self, machine: Machine) -> None:
        set_aside(-1, source(blocks=SIZE // 512 - 8))
        assert machine.asked == []

    def test_not_where_the_file_system_has_no_block_device(self, machine: Machine) -> None:
        machine.device = os.makedev(0, 31)
        set_aside(-1, source())
        assert machine.asked == []

    def test_not_where_less_than_as_much_would_be_left(self, machine: Machine) -> None:
        machine.free = 2 * SIZE - 4096
        set_aside(-1, source())
        assert machine.asked == []

    @pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSPC, errno.EDQUOT])
    def test_a_refusal_is_no_error(self, machine: Machine, number: int) -> None:
        machine.error = OSError(number, os.strerror(number))
        set_aside(-1, source())
        assert machine.asked == [SIZE]


def test_it_has_blocks_but_no_length_and_what_is_too_much_is_given_back(fileno: int) -> None:
    set_aside(fileno, source())
    found = os.fstat(fileno)
    assert found.st_size == 0
    if not found.st_blocks:
        pytest.skip("nothing is set aside on this file system")
    assert found.st_blocks * 512 >= SIZE
    os.pwrite(fileno, b"short", 0)
    os.ftruncate(fileno, 5)
    assert os.fstat(fileno).st_blocks * 512 <= 1 << 20
    assert os.pread(fileno, 10, 0) == b"short"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_file_that_replaces_another_is_left_to_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: asked.append(1))
    monkeypatch.setattr(os, "major", lambda _: 8)
    if is_there:
        (tmp_path / "name").write_text("older")
    directory = open_directory(str(tmp_path))
    try:
        with new_file(directory, "name", 0o644, source()):
            assert bool(asked) is not is_there
    finally:
        os.close(directory)
