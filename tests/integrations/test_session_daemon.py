"""The daemon of a test session: how it ends, and how its sessions hear of that."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vuserd.client import CannotConnect
from vuserd.integrations.pytest.daemon import SessionDaemon

pytestmark = pytest.mark.usefixtures("untraced")


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_it_ends_when_the_tests_are_killed() -> None:
    program = (
        "import os, signal\n"
        "from vuserd.integrations.pytest.daemon import SessionDaemon\n"
        "with SessionDaemon() as daemon, daemon.connect() as client:\n"
        "    print(client.status()['pid'], os.path.dirname(daemon.socket), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    pid, folder = done.stdout.split()
    deadline = time.monotonic() + 60
    while is_running(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shutil.rmtree(folder)  # which nobody is left to do


def serve_with_one_that_dies(daemon: SessionDaemon, directory: Path) -> None:
    with daemon, daemon.connect() as client:
        os.kill(client.status()["pid"], signal.SIGKILL)
        with pytest.raises(CannotConnect), daemon.serve(directory):
            pass


def test_one_that_dies_is_told_of_with_its_log(tmp_path: Path, rust_virtiofsd: str) -> None:
    daemon = SessionDaemon(rust_virtiofsd)
    with pytest.raises(RuntimeError, match=r"(?s)vuserd ended with -9: .*serving on"):
        serve_with_one_that_dies(daemon, tmp_path)
    assert not os.path.exists(os.path.dirname(daemon.socket))


def test_one_that_does_not_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    daemon = SessionDaemon()
    with pytest.raises(RuntimeError, match="vuserd does not start"), daemon:
        pass
    assert not os.path.exists(os.path.dirname(daemon.socket))


def test_it_ends_while_a_child_of_the_tests_runs() -> None:
    """One that was forked has the other end of its standard input, too."""
    program = (
        "import os, signal\n"
        "from vuserd.integrations.pytest.daemon import SessionDaemon\n"
        "with SessionDaemon():\n"
        "    child = os.fork()\n"
        "    child or signal.pause()\n"
        "os.kill(child, signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_no_configuration_can_say(tmp_path: Path, rust_virtiofsd: str) -> None:
    odd = tmp_path / "\udcff"
    odd.mkdir()
    with SessionDaemon(rust_virtiofsd) as daemon:
        for directory, name, words in (
            (tmp_path, "a/b", '"a/b" cannot be a name'),
            (odd, "odd", "surrogates not allowed"),
        ):
            with pytest.raises(RuntimeError, match=words), daemon.serve(directory, name):
                pass
        with daemon.serve(tmp_path, "good") as served:
            assert served.client.stat("good", "/").type == "dir"
