"""A program that Landlock confines: what it can read and write, and what it cannot."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from vuserd.backend import landlock

needs_landlock = pytest.mark.skipif(
    not landlock.is_available(), reason="no Landlock of Linux 6.2 or newer here"
)


def run(directory: Path, script: str, program: str = "/bin/sh") -> subprocess.CompletedProcess[str]:
    command = landlock.command([program, "-c", script], str(directory))
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    (folder / "link").symlink_to("../secret")
    return folder


@needs_landlock
def test_what_is_below_the_directory_can_be_read(shared: Path) -> None:
    ended = run(shared, f"cat {shared}/below/file; ls {shared}; cat /proc/self/comm")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "insidebelow\nlink\ncat\n"


@needs_landlock
@pytest.mark.parametrize(
    "deed",
    [
        "cat {0}/../secret",
        "cat {0}/link",
        "ls {0}/..",
        "echo no >{0}/below/file",
        "echo no >{0}/new",
        "echo no >>{0}/../secret",
        "truncate -s 1 {0}/../secret",
        "rm {0}/below/file",
        "mkdir {0}/new",
        "mv {0}/below {0}/other",
        "ln {0}/../secret {0}/new",
        "touch /tmp/vuserd-test-landlock",
        "cat /etc/passwd",
        "mount --bind {0} {0}",
        "cat /proc/{1}/mem",
    ],
)
def test_nothing_else_can_be_done(shared: Path, deed: str) -> None:
    ended = run(shared, deed.format(shared, os.getpid()))
    assert ended.returncode != 0
    assert "outside" not in ended.stdout
    assert (shared / "below" / "file").read_text() == "inside"
    assert (shared.parent / "secret").read_text() == "outside"
    assert sorted(os.listdir(shared)) == ["below", "link"]


@needs_landlock
def test_a_program_in_a_folder_of_its_own(tmp_path: Path, shared: Path) -> None:
    own = tmp_path / "libexec"
    own.mkdir()
    (own / "part").write_text("echo its own part")
    (own / "program").write_text(f"#!/bin/sh\n. {own}/part\n")
    (own / "program").chmod(0o755)
    assert run(shared, "", str(own / "program")).stdout == "its own part\n"


@needs_landlock
def test_a_home_is_not_what_belongs_to_a_program(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "program").write_text(f"#!/bin/sh\ncat {tmp_path}/secret\n")
    (tmp_path / "program").chmod(0o755)
    ended = run(shared, "", str(tmp_path / "program"))
    assert "outside" not in ended.stdout
    assert "ermission denied" in ended.stderr


@pytest.mark.parametrize(
    ("directory", "program", "words"),
    [("/nowhere", "/bin/true", "No such file"), ("/usr", "/nowhere/at/all", "No such file")],
)
@needs_landlock
def test_what_cannot_be_run_is_told(directory: str, program: str, words: str) -> None:
    ended = run(Path(directory), "", program)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Landlock: ")
    assert words in ended.stderr


@pytest.mark.parametrize(
    ("version", "rights", "size"),
    [(3, 0x7FFF, 8), (4, 0x7FFF, 16), (5, 0xFFFF, 16), (7, 0xFFFF, 24)],
)
def test_each_version_withholds_what_it_knows(version: int, rights: int, size: int) -> None:
    handled, attributes = landlock._handled(version)
    assert handled == rights
    assert len(attributes) == size
    assert int.from_bytes(attributes[:8], "little") == rights


@pytest.mark.parametrize(("answer", "available"), [(-1, False), (2, False), (3, True)])
def test_an_old_kernel_has_none(
    monkeypatch: pytest.MonkeyPatch, answer: int, *, available: bool
) -> None:
    class Libc:
        def syscall(self, *_: object) -> int:
            return answer

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    assert landlock.is_available() is available
