"""vuserctl with a daemon that is silent: --timeout, and the line that says what is waited for."""

import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake.rpc_server import FakeDaemon
from tests.unit.conftest import Run
from vuserd.ctl.waiting import state_of_service, where_to_look

SEE = "'systemctl status vuserd' and 'journalctl -u vuserd'"
OWN = "'systemctl --user status vuserd' and 'journalctl --user -u vuserd'"


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


SAID = "vuserd: /etc/vuserd/vuserd.toml, line 3: unknown key 'exprot'"
FAILED = "LoadState=loaded\nActiveState=failed\nResult=exit-code"
STATE = f"vuserd.service is failed (exit-code) and said last: {SAID}"


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Have systemctl show these properties, and the journal one message; return the calls' file."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()

    def use(shown: str) -> Path:
        for name, output in {"systemctl": shown, "journalctl": SAID}.items():
            lines = ["#!/bin/sh", f"echo {name} $* >>{calls}", f"cat <<'END'\n{output}\nEND\n"]
            (programs / name).write_text("\n".join(lines))
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        return calls

    return use


def test_the_state_of_the_service(
    systemd: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = systemd(FAILED)
    assert state_of_service(None) == state_of_service("/run/vuserd/vuserd.sock") == STATE
    assert state_of_service(str(tmp_path / "vuserd.sock")) == ""
    assert "--user" not in calls.read_text()
    assert calls.read_text().count("journalctl") == 2
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert state_of_service(str(tmp_path / "vuserd.sock")) == STATE
    assert calls.read_text().count("--user") == 2
    assert "_SYSTEMD_USER_UNIT=vuserd.service" in calls.read_text()


@pytest.mark.parametrize(
    ("shown", "state"),
    [
        (FAILED.replace("loaded", "not-found"), ""),
        ("LoadState=loaded\nActiveState=active\nResult=success", ""),
        ("LoadState=loaded\nActiveState=inactive\nResult=success", ""),
        (
            "LoadState=loaded\nActiveState=activating\nResult=success",
            f"vuserd.service is activating and said last: {SAID}",
        ),
        ("", ""),
    ],
)
def test_other_states(systemd: Callable[[str], Path], shown: str, state: str) -> None:
    systemd(shown)
    assert state_of_service(None) == state


def test_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state_of_service(None) == ""


def test_a_service_that_failed(
    run: Run,
    systemd: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    systemd(FAILED)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    code, _, err = run("--socket", str(tmp_path / "vuserd.sock"), "exports", socket=False)
    assert code == 1
    assert err.endswith(f"; {STATE}; see {OWN}\n")


@pytest.mark.parametrize("how", ["a call", "connecting", "a service that failed"])
def test_a_terminal_is_told(
    fake_daemon: FakeDaemon,
    tmp_path: Path,
    how: str,
    systemd: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line, and no more than that; then it goes on."""
    more = f"; see {SEE}"
    if how == "a service that failed":
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        systemd(FAILED)
        more = f"; {STATE}; see {OWN}"
    code = (
        "import sys; from vuserd.ctl import main, waiting;"
        "waiting.SILENCE = 0.1; sys.exit(main.main())"
    )
    address = fake_daemon.address
    if how == "a call":
        fake_daemon.reads.clear()
    else:
        address = str(tmp_path / "vuserd.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "vuserd.sock"))
        listener.listen(0)
        first.connect(str(tmp_path / "vuserd.sock"))
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", code, "--socket", address, "ls", "kernels:boot"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
            os.close(theirs)
            told = b""
            while not told.endswith(b"\n"):
                told += os.read(ours, 4096)
            words = f"vuserctl: still waiting for the daemon's answer to 'ls kernels:boot'{more}"
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
    assert where_to_look(str(tmp_path / "vuserd.sock")) == OWN
    (tmp_path / "vuserd.sock").touch()
    assert where_to_look(None) == OWN
    assert where_to_look("/run/vuserd/vuserd.sock") == SEE


def test_without_a_thread_it_waits_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("vuserd.ctl.waiting._thread.start_new_thread", fail)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("ls", "kernels:image") == (0, "image\n", "")
