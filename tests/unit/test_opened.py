"""Which directory a process has opened, by what the kernel shows."""

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from vuserd.backend import process as process_module
from vuserd.backend.find import BackendKind, Program
from vuserd.backend.opened import has_opened
from vuserd.backend.process import BackendOptions, start_backend


@contextmanager
def holder(directory: Path) -> Iterator[int]:
    """Run a process that has a directory open, and no other."""
    descriptor = os.open(directory, os.O_PATH)
    try:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor], cwd="/")
    finally:
        os.close(descriptor)
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def identity(directory: Path | str) -> tuple[int, int]:
    status = os.stat(directory)
    return status.st_dev, status.st_ino


def test_by_a_descriptor_or_by_the_root(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with holder(tmp_path) as process:
        for sandbox in ("none", "landlock"):
            assert has_opened(process, sandbox, *identity(tmp_path))
            assert not has_opened(process, sandbox, *identity(tmp_path / "other"))
        for sandbox in ("namespace", "chroot"):
            assert has_opened(process, sandbox, *identity("/"))
            assert not has_opened(process, sandbox, *identity(tmp_path))


def test_a_process_that_has_ended(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        pass
    assert not has_opened(process, "namespace", *identity(tmp_path))
    with pytest.raises(OSError, match="No such"):
        has_opened(process, "none", *identity(tmp_path))


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
async def test_what_cannot_be_seen_is_not_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: type[OSError],
) -> None:
    def refuse(*_: object) -> bool:
        raise error

    monkeypatch.setattr(process_module, "has_opened", refuse)
    program = Program("/bin/true", BackendKind.RUST, "1")
    with caplog.at_level(logging.WARNING):
        async with start_backend(program, "/", "none", BackendOptions(), "files") as backend:
            limiter = trio.CapacityLimiter(1)
            assert not await backend.has_opened(*identity(tmp_path), "none", limiter)
    assert ("does not show which directory" in caplog.text) == (error is PermissionError)
