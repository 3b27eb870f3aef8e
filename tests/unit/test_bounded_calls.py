"""Calls that Python would repeat for ever, and that end here."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from vuserd.trust import bounded_calls
from vuserd.trust.bounded_calls import open_entry, status_of


class Interrupted:
    """A call that is interrupted some times, and then is what it was."""

    def __init__(self, call: object, times: int) -> None:
        self._call, self.left = call, times

    def __call__(self, *arguments: object) -> object:
        self.left -= 1
        if self.left >= 0:
            ctypes.set_errno(errno.EINTR)
            return -1
        return self._call(*arguments)  # type: ignore[operator]

    def raising(self, *arguments: object) -> object:
        if (result := self(*arguments)) == -1:
            raise InterruptedError(errno.EINTR, "")
        return result


def test_an_entry_as_the_system_has_it(tmp_path: Path) -> None:
    (tmp_path / "entry").write_text("text")
    folder = os.open(tmp_path, os.O_PATH)
    entry = open_entry(folder, "entry", os.O_RDONLY)
    try:
        assert os.read(entry, 9) == b"text"
        assert not os.get_inheritable(entry)
        assert status_of(entry) == os.fstat(entry)
        with pytest.raises(FileNotFoundError, match="other"):
            open_entry(folder, "other", os.O_RDONLY)
        with pytest.raises(ValueError, match="null"):
            open_entry(folder, "entry\0more", os.O_RDONLY)
    finally:
        os.close(entry)
        os.close(folder)
    with pytest.raises(OSError, match="Bad file"):
        status_of(entry)


@pytest.mark.parametrize("times", [1, 7, 8])
def test_a_few_interruptions_are_a_signal_s(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    folder = os.open("/", os.O_PATH)
    opening = Interrupted(bounded_calls._openat, times)
    monkeypatch.setattr(bounded_calls, "_openat", opening)
    looking = Interrupted(os.stat, times)
    monkeypatch.setattr(os, "stat", looking.raising)
    try:
        if times == 8:
            with pytest.raises(InterruptedError):
                open_entry(folder, "tmp", os.O_PATH)
            with pytest.raises(InterruptedError):
                status_of(folder)
        else:
            os.close(open_entry(folder, "tmp", os.O_PATH))
            assert status_of(folder) == os.fstat(folder)
    finally:
        os.close(folder)
    assert opening.left == looking.left == (0 if times == 8 else -1)
