"""vuserctl with a daemon that is silent: --timeout, and the line that says what is waited for."""

import os
import pty
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake.rpc_server import FakeDaemon
from tests.unit.conftest import Run
from vuserd.ctl.waiting import where_to_look

SEE = "'systemctl status vuserd' and 'journalctl -u vuserd'"


@pytest.fixture(autouse=True)
def _no_own_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@pytest.mark.parametrize(
    "command",
    [["ls", "kernels:"], ["cat", "kernels:image"], ["status"], ["tree", "kernels:"], ["exports"]],
)
def test_a_daemon_that_does_not_answer(
    run: Run, fake_daemon: FakeDaemon, command: list[str]
) -> None:
    fake_daemon.reads.clear()
    code, out, err = run(*command, "--timeout", "0.2")
    assert (code, out) == (1, "")
    file = f"{command[1]}: " if command[0] in ("ls", "cat") else ""
    assert err == f"vuserctl: {file}the daemon did not answer within 0.2 s; see {SEE}\n"


def test_a_get_is_told_by_its_name(run: Run, fake_daemon: FakeDaemon, here: Path) -> None:
    fake_daemon.raw["open"] = lambda _: b""  # no answer
    code, _, err = run("--timeout", "0.2", "get", "kernels:image")
    assert (code, os.listdir(here)) == (1, [])
    assert err == f"vuserctl: kernels:image: the daemon did not answer within 0.2 s; see {SEE}\n"


def test_a_queue_that_is_full(run: Run, tmp_path: Path) -> None:
    """Nobody accepts, and nobody may connect any more."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        first.connect(str(tmp_path / "full"))
        arguments = ("--socket", str(tmp_path / "full"), "--timeout", "0.2", "status")
        code, _, err = run(*arguments, socket=False)
    assert code == 1
    assert "its queue is full, and stayed so for 0.2 s" in err


def test_diff_is_in_trouble(run: Run, fake_daemon: FakeDaemon) -> None:
    fake_daemon.reads.clear()
    assert run("--timeout", "0.2", "diff", "kernels:", ".")[0] == 2


def test_what_answers_in_time(run: Run) -> None:
    assert run("--timeout", "60", "ls", "kernels:boot") == (0, "a\nb\n", "")


@pytest.mark.parametrize("how", ["a call", "connecting"])
def test_a_terminal_is_told(fake_daemon: FakeDaemon, tmp_path: Path, how: str) -> None:
    """One line, and no more than that; then it goes on."""
    code = (
        "import sys; from vuserd.ctl import main, waiting;"
        "waiting.SILENCE = 0.1; sys.exit(main.main())"
    )
    address = fake_daemon.address
    if how == "a call":
        fake_daemon.reads.clear()
    else:
        address = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        first.connect(str(tmp_path / "full"))
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", code, "--socket", address, "ls", "kernels:boot"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
            os.close(theirs)
            told = b""
            while not told.endswith(b"\n"):
                told += os.read(ours, 4096)
            words = (
                f"vuserctl: still waiting for the daemon's answer to 'ls kernels:boot'; see {SEE}"
            )
            assert told.decode() == f"\r\x1b[K{words}\r\n"
            fake_daemon.reads.set()
            if how == "a call":
                assert process.communicate()[0] == b"a\nb\n"
            process.kill()
        os.close(ours)


def test_where_to_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert where_to_look(None) == where_to_look("/run/vuserd/vuserd.sock") == SEE
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert where_to_look(None) == SEE
    own = "'systemctl --user status vuserd' and 'journalctl --user -u vuserd'"
    assert where_to_look(str(tmp_path / "vuserd.sock")) == own
    (tmp_path / "vuserd.sock").touch()
    assert where_to_look(None) == own
    assert where_to_look("/run/vuserd/vuserd.sock") == SEE
