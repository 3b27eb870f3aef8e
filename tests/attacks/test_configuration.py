"""What the daemon obeys, files and programs, is nobody else's to write, replace or point to."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.attacks.daemons import call
from tests.attacks.people import MALLORY, VICTIM, run_as
from tests.attacks.threats import Who, threat
from tests.running import REPOSITORY, RunningDaemon
from tests.systems.oddtree import directory, odd_file_system
from vuserd.check.configured import listener_result, metrics_result
from vuserd.check.machine import Mark
from vuserd.config.files import config_files, read_config
from vuserd.config.model import ListenConfig
from vuserd.errors import ConfigurationErrors, UnsafePath
from vuserd.listen.sockets import listening
from vuserd.metrics.exporter import _remove, _replace
from vuserd.trust.path import name_of

_EXPORT: Final = '[[export]]\nname = "{name}"\npath = "{path}"\nbackend = "{backend}"\n'
_LISTEN: Final = '[[listen]]\nsocket = "{socket}"\n'
_LAB: Final = 2001

_of_files = threat(
    "configuration",
    who=Who.NEIGHBOUR,
    against="root, or whoever runs the daemon",
    does="writes a configuration, a file of conf.d beside one, or a link to one, and names a"
    " program in it",
    promise="the file is refused, with its name and its owner, and nothing of it is done",
)
_of_programs = threat(
    "program",
    who=Who.NEIGHBOUR,
    against="root",
    does="writes, replaces, or leads a link to, a backend's program that root's daemon would run",
    promise="root runs no such program, not even to ask for its version",
)
_of_metrics = threat(
    "metrics-file",
    who=Who.FOLDER_OWNER,
    against="files of root's",
    does="leads the path of metrics_file, or its temporary file, to another folder or file",
    promise="nothing is written or removed outside the folder that the path leads to by right",
)


@pytest.fixture
def mark(ground: Path) -> Path:
    """Give a path where the attacker's program says who has run it."""
    (ground / "marks").mkdir()
    (ground / "marks").chmod(0o777)
    return ground / "marks" / "mark"


def evil(path: Path, mark: Path) -> None:
    path.write_text(f"#!/bin/sh\nid -u > {mark}\necho 'virtiofsd 1.13.2'\n")
    path.chmod(0o755)


def refusal(configuration: Path, user: int = 0) -> str:
    """Read a configuration as a user; return what is said about it."""
    said, say = os.pipe()

    def read() -> None:
        try:
            read_config(config_files(str(configuration), {}, user), "@s")
        except ConfigurationErrors as error:
            os.write(say, str(error).encode())

    assert run_as(user, read, group=user) == 0
    os.close(say)
    with open(said) as words:
        return words.read()


@_of_files
@pytest.mark.parametrize("victim", [0, VICTIM])
@pytest.mark.parametrize(
    "change",
    [
        "their own",
        "a link of theirs",
        "written by them",
        "writable by a group",
        "in a folder of theirs",
    ],
)
def test_a_file_of_others(ground: Path, mark: Path, victim: int, change: str) -> None:
    """In conf.d, in a folder that everybody may write: the victim only named a file beside it."""
    shared = ground / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    own = shared / "my.toml"
    own.write_text("")
    os.chown(own, victim, victim)
    file = shared / "conf.d" / "a.toml"
    text = _EXPORT.format(name="x", path=ground / "export", backend=f"{shared}/evil")

    def prepare() -> None:
        evil(shared / "evil", mark)
        file.parent.mkdir()
        if change == "a link of theirs":
            file.symlink_to(own)
        else:
            file.write_text(text)

    assert run_as(MALLORY, prepare) == 0
    if change in ("written by them", "writable by a group", "in a folder of theirs"):
        os.chown(file, victim, _LAB)
        file.chmod({"written by them": 0o646, "writable by a group": 0o664}.get(change, 0o644))
        if change != "in a folder of theirs":
            os.chown(file.parent, victim, victim)
    if change == "in a folder of theirs" and victim:
        assert refusal(own, victim) == ""  # it says what the victim wrote, who is not root
        return
    words = refusal(own, victim)
    assert words.startswith(f"{file}: ")
    who = {"written by them": "everybody", "writable by a group": f"group {_LAB}"}
    assert who.get(change, name_of(MALLORY)) in words


@_of_files
def test_the_file_that_was_named(ground: Path) -> None:
    file = ground / "my.toml"
    file.write_text("")
    assert refusal(file) == ""
    os.chown(file, MALLORY, MALLORY)
    assert "would decide what root does" in refusal(file)


def test_who_calls_sudo(ground: Path) -> None:
    """Who may become root is obeyed by root already."""
    file = ground / "my.toml"
    file.write_text(_LISTEN.format(socket="relative"))
    os.chown(file, MALLORY, MALLORY)

    def said(user: int) -> str:
        return command(["check", "--config", str(file)], {"SUDO_UID": str(user)})

    assert "would decide" in said(VICTIM)
    assert "would decide" not in said(MALLORY)
    assert "a relative path" in said(MALLORY)


def command(arguments: list[str], variables: Mapping[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-m", "vuserd.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def _own(path: Path, mark: Path) -> None:
    evil(path / "evil", mark)


def _lead(path: Path, mark: Path) -> None:
    evil(path / "evil", mark)
    (path / "link").symlink_to("evil")


@_of_programs
@pytest.mark.parametrize("make", [_own, _lead])
@pytest.mark.parametrize("wanted", ["serve", "check"])
def test_a_program_of_others(
    ground: Path, mark: Path, make: Callable[[Path, Path], None], wanted: str
) -> None:
    """As the configured one, and as the first one on the PATH."""
    theirs = ground / "theirs"
    theirs.mkdir()
    os.chown(theirs, MALLORY, MALLORY)
    assert run_as(MALLORY, lambda: make(theirs, mark)) == 0
    path = theirs / ("link" if make is _lead else "evil")
    file = ground / "vuserd.toml"
    file.write_text(
        _LISTEN.format(socket=ground / "s")
        + _EXPORT.format(name="x", path=ground / "export", backend=path)
    )
    if wanted == "check":
        os.symlink("evil", theirs / "virtiofsd")
        said = command(["check", "--config", str(file)], {"PATH": f"{theirs}:{os.environ['PATH']}"})
    else:
        with RunningDaemon({}, ground / "s", None, "--config", str(file), configured=True):
            said = str(call(ground / "s", "exports"))
    assert "who would decide what root does" in said
    assert not mark.exists()


@_of_programs
def test_a_program_that_can_be_replaced(ground: Path, mark: Path, rust_virtiofsd: str) -> None:
    """In a folder of a group's: by the backend's next start it may be another one."""
    folder = ground / "tools"
    folder.mkdir()
    os.chown(folder, 0, _LAB)
    folder.chmod(0o775)
    (folder / "virtiofsd").symlink_to(rust_virtiofsd)
    file = ground / "vuserd.toml"
    export = _EXPORT.format(name="x", path=ground / "export", backend=folder / "virtiofsd")
    file.write_text(_LISTEN.format(socket=ground / "s") + export)

    def replace() -> None:
        evil(folder / "new", mark)
        os.rename(folder / "new", folder / "virtiofsd")

    with RunningDaemon({}, ground / "s", None, "--config", str(file), configured=True):
        assert f"group {_LAB} may write {folder}" in str(call(ground / "s", "exports"))
        assert run_as(MALLORY, replace, groups=[_LAB]) == 0
        error, _ = call(ground / "s", "reload", "x")
        assert error["code"] == "BACKEND_DOWN"
    assert not mark.exists()


@_of_metrics
def test_metrics_in_a_folder_of_others(ground: Path) -> None:
    theirs, secret = ground / "theirs", ground / "secret"
    for folder in (theirs, secret):
        folder.mkdir()
    os.chown(theirs, MALLORY, MALLORY)
    (secret / "file").write_text("root's")
    file = theirs / "sub" / "file"

    def prepare() -> None:
        file.parent.mkdir()
        (theirs / "sub" / "file.tmp").symlink_to(secret / "file")

    assert run_as(MALLORY, prepare) == 0
    _replace(str(file), "metrics")
    assert file.read_text() == "metrics"
    assert run_as(MALLORY, lambda: lead_away(theirs, secret)) == 0
    with pytest.raises(Exception, match="where this leads"):
        _replace(str(file), "metrics")
    _remove(str(file))
    assert os.listdir(secret) == ["file"]
    assert (secret / "file").read_text() == "root's"


@threat(
    "file-system-of-others",
    who=Who.FOLDER_OWNER,
    against="the daemon's thread, and its end",
    does="mounts a file system that answers nothing where the daemon's socket or metrics are to be",
    promise="nothing is made there: the daemon says whose it is, and what to do",
)
def test_a_folder_on_a_file_system_of_others(ground: Path) -> None:
    """That a path is walked that far is bounded, as it has to be for exports."""
    theirs = ground / "theirs"
    file = str(theirs / "file")
    with odd_file_system(theirs, directory({}), MALLORY):
        with pytest.raises(UnsafePath, match=f"a file system of {name_of(MALLORY)}'s"):
            _replace(file, "metrics")
        with (
            pytest.raises(UnsafePath, match=f"a file system of {name_of(MALLORY)}'s"),
            listening(ListenConfig(file)),
        ):
            pass
        for result in (metrics_result(file), listener_result(ListenConfig(file))):
            assert result.mark is Mark.PROBLEM


def lead_away(theirs: Path, secret: Path) -> None:
    os.rename(theirs / "sub", theirs / "was")
    (theirs / "sub").symlink_to(secret)
