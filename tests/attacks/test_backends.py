"""Backends that were broken into: what one can do to the daemon, to others' backends and memory."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.attacks.breaking_in import KEPT, keep_a_backends_capabilities, ways_into
from tests.attacks.daemons import call
from tests.attacks.people import VICTIM, run_as
from tests.attacks.threats import Who, threat
from tests.running import REPOSITORY, RunningDaemon
from vuserd.backend import landlock

#: The daemon's own user, as a service has one.
SERVICE: Final = 61_010

_CONFIGURATION: Final = """
sandbox = "{sandbox}"
[[listen]]
socket = "{ground}/run/s"
mode = "0666"
[[export]]
name = "good"
path = "{ground}/export"
backend = "{good}"
users = [1001]
[[export]]
name = "evil"
path = "{ground}/export"
backend = "{evil}"
users = [1001]
"""

_INSIDE = threat(
    "break-in",
    who=Who.BACKEND,
    against="the daemon and all whose memory it has",
    does="opens the daemon's memory, its descriptors and those of clients in /proc, takes them by"
    " pidfd_getfd, traces it, without a sandbox and as the daemon's own user",
    promise="nobody without CAP_SYS_PTRACE, which no backend has, gets into the daemon",
)


@contextmanager
def _serving(
    ground: Path,
    user: int | None,
    good: str,
    evil: str,
    sandbox: str = "auto",
    program: Sequence[str] | None = None,
) -> Iterator[RunningDaemon]:
    """Run a daemon as a user with two exports and a backend for each."""
    configuration = ground / "vuserd.toml"
    configuration.write_text(
        _CONFIGURATION.format(ground=ground, good=good, evil=evil, sandbox=sandbox)
    )
    (ground / "run").mkdir()
    os.chown(ground / "run", user or 0, user or 0)
    socket = ground / "run" / "s"
    arguments = ("--config", str(configuration))
    with RunningDaemon(
        {}, socket, None, *arguments, user=user, configured=True, program=program
    ) as daemon:
        yield daemon


def _fetch_and_load(socket: str) -> int:
    memory = os.memfd_create("secret", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 8192)
    return int(
        call(socket, "fetch", "good", "/hello")[0] is not None
        or call(socket, "attach", 8192, descriptors=(memory,)) != (None, 1)
    )


def _get_in(process: int, begin: Callable[[], None] = lambda: None) -> int:
    """Try all ways into a process; return how many there were."""
    begin()
    ways = ways_into(process)
    print("open:", ways)
    return len(ways)


@_INSIDE
def test_a_backend_does_not_get_into_its_daemon(ground: Path, rust_virtiofsd: str) -> None:
    with _serving(ground, SERVICE, rust_virtiofsd, rust_virtiofsd, "none") as daemon:
        process = daemon.process.pid
        assert run_as(SERVICE, lambda: _get_in(process)) == 0
        # The daemon sees of itself what it needs, and serves.
        assert run_as(VICTIM, lambda: _fetch_and_load(daemon.socket)) == 0
        assert run_as(SERVICE, lambda: _get_in(process)) == 0


def _get_in_as_a_backend(process: int) -> int:
    return _get_in(process, keep_a_backends_capabilities)


@_INSIDE
def test_nor_does_one_of_root_s(ground: Path, virtiofsd: str) -> None:
    """Nor would it into a dumpable daemon that has more capabilities than the backend."""
    with _serving(ground, None, virtiofsd, virtiofsd) as daemon:
        process = daemon.process.pid
        assert run_as(VICTIM, lambda: _fetch_and_load(daemon.socket)) == 0
        assert run_as(0, lambda: _get_in_as_a_backend(process)) == 0


@_INSIDE
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here")
def test_nor_into_one_of_root_s_that_has_no_more_capabilities(
    ground: Path, rust_virtiofsd: str
) -> None:
    """As a unit may limit it: then all that keeps a backend out is what the daemon does itself."""
    names = ",+".join(("-all", *KEPT))
    limited = ["setpriv", f"--bounding-set={names}", sys.executable, "-m", "vuserd.cli"]
    with _serving(ground, None, rust_virtiofsd, rust_virtiofsd, "none", limited) as daemon:
        process = daemon.process.pid
        assert call(daemon.socket, "api_info")[0] is None
        assert run_as(0, lambda: _get_in_as_a_backend(process)) == 0


#: A backend that was broken into before it began: it tries what the test says, then it serves.
_BROKEN_INTO: Final = """#!/bin/sh
case "$*" in *--fd=*) {attack} <{ground}/process >{ground}/found 2>&1 ;; esac
exec {backend} "$@"
"""
_ATTACK: Final = """#!{python} -I
import sys
import time
sys.path.insert(0, {repository!r})
from tests.attacks.breaking_in import keep_a_backends_capabilities, ways_into
keep_a_backends_capabilities()
print(ways_into(int(sys.stdin.read())))
"""


@threat(
    "break-in-next-door",
    who=Who.BACKEND,
    against="the backends of other exports, and so their users",
    does="opens another backend's memory and descriptors, takes them, traces it, without a sandbox"
    " and as the same user",
    promise="each backend without a sandbox is set apart by Landlock, where the kernel has it",
)
@pytest.mark.skipif(not landlock.can_set_apart(), reason="no Landlock here")
def test_nor_does_it_get_into_another_backend(ground: Path, rust_virtiofsd: str) -> None:
    attack, evil, process = ground / "attack", ground / "evil", ground / "process"
    attack.write_text(_ATTACK.format(python=sys.executable, repository=str(REPOSITORY)))
    evil.write_text(_BROKEN_INTO.format(attack=attack, ground=ground, backend=rust_virtiofsd))
    for program in (attack, evil):
        program.chmod(0o755)
    process.write_text("0")
    with _serving(ground, None, rust_virtiofsd, str(evil), "none") as daemon:
        error, exports = call(daemon.socket, "exports")
        assert error is None
        [other] = [each["backend"]["pid"] for each in exports if each["name"] == "good"]
        process.write_text(str(other))
        assert call(daemon.socket, "reload", "evil")[0] is None
        assert (ground / "found").read_text() == "[]\n"
        assert call(daemon.socket, "read", "evil", "/hello", 0, 10) == (None, b"hello\n")


def test_a_process_that_does_not_hide_is_open_in_all_these_ways() -> None:
    def get_in() -> int:
        child = os.fork()
        if not child:
            os.execvp("sleep", ["sleep", "60"])
        try:
            while Path(f"/proc/{child}/comm").read_text() != "sleep\n":
                time.sleep(0.002)
            return _get_in(child)
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)

    ptrace_scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if ptrace_scope.exists() and ptrace_scope.read_text() != "0\n":
        pytest.skip("Yama keeps processes from each other here")
    assert run_as(SERVICE, get_in) == 7
