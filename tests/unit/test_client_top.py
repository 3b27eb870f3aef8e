"""``vuserctl top``: its rates, on a terminal and elsewhere."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fake.rpc_server import FakeDaemon
from vuserd.ctl import main
from vuserd.ctl.top import Rates

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


def client(pid: int, requests: int, bytes_read: int = 0, since: float = 1.0) -> dict[str, Any]:
    return {"pid": pid, "requests": requests, "bytes_read": bytes_read, "since": since}


class TestRates:
    def test_none_at_first(self) -> None:
        found = Rates().added_to({"pid": 1, "requests": 5, "clients": [client(2, 3)]}, 1.0)
        assert found["requests_per_s"] is None
        assert found["clients"][0]["requests_per_s"] is None

    def test_from_differences(self) -> None:
        rates = Rates()
        rates.added_to({"pid": 1, "requests": 5, "clients": [client(2, 3)]}, 1.0)
        after = {"pid": 1, "requests": 105, "clients": [client(2, 23, 4000)], "exports": None}
        found = rates.added_to(after, 3.0)
        assert found["requests_per_s"] == 50.0
        assert found["clients"][0]["requests_per_s"] == 10.0
        assert found["clients"][0]["bytes_per_s"] == 2000.0
        assert after["clients"] == [client(2, 23, 4000)]  # is left as it is

    def test_another_session_another_client_and_another_daemon(self) -> None:
        def snapshot(pid: int, generation: int, since: float) -> dict[str, Any]:
            export = {"name": "k", "requests": 1, "backend": {"generation": generation}}
            return {
                "pid": pid,
                "requests": 1,
                "exports": [export],
                "clients": [client(9, 1, 1, since)],
            }

        rates = Rates()
        rates.added_to(snapshot(1, 1, 1.0), 1.0)
        same = rates.added_to(snapshot(1, 1, 1.0), 2.0)
        other = rates.added_to(snapshot(2, 2, 2.0), 3.0)
        for found, rate in ((same, 0.0), (other, None)):
            rows = (found, found["exports"][0], found["clients"][0])
            assert [row["requests_per_s"] for row in rows] == [rate] * 3

    def test_who_asks_most_comes_first(self) -> None:
        rates = Rates()
        rates.added_to({"clients": [client(1, 0), client(2, 0), client(3, 900)]}, 1.0)
        later = {"clients": [client(1, 5), client(2, 50), client(3, 900), client(4, 1)]}
        assert [row["pid"] for row in rates.added_to(later, 2.0)["clients"]] == [2, 1, 3, 4]

    @pytest.mark.parametrize(
        "found",
        [
            {},
            {"clients": 5, "exports": "x"},
            {"requests": "many"},
            {"clients": [5, {}]},
            {"pid": [1]},
            {"clients": [{"requests_per_s": "fast"}, {"requests_per_s": None}]},
        ],
    )
    def test_whatever_is_missing(self, found: dict[str, Any]) -> None:
        rates = Rates()
        rates.added_to(found, 1.0)
        rates.added_to(found, 1.0)


def top(daemon: FakeDaemon, *arguments: str) -> list[str]:
    return ["--socket", daemon.address, "top", "--interval", "0.1", *arguments]


class TestElsewhere:
    def test_snapshots(self, fake_daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]) -> None:
        assert main.run(top(fake_daemon, "-n", "2")) == 0
        first, second = capfd.readouterr().out.split("\n\nvuserd 9.9")
        assert "REQ/S" not in first
        assert "REQ/S  MB/S" in second
        assert "requests     100, 3 refused or failed; 0.0 a second" in second
        assert "\x1b" not in first + second

    def test_json(self, fake_daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]) -> None:
        assert main.run(top(fake_daemon, "-n", "3", "--json")) == 0
        lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert len(lines) == 3
        assert lines[0]["requests_per_s"] is None
        [ours, stranger] = lines[2]["clients"]
        assert (stranger["pid"], stranger["requests_per_s"]) == (78, 0.0)
        assert 0 < ours["requests_per_s"] <= 10
        assert ours["bytes_per_s"] == pytest.approx(1000 * ours["requests_per_s"])
        assert lines[1]["time"] < lines[2]["time"]

    def test_across_a_restart(
        self, fake_daemon: FakeDaemon, capfd: pytest.CaptureFixture[str]
    ) -> None:
        fake_daemon.before = lambda _: fake_daemon.end_connections()
        assert main.run(top(fake_daemon, "-n", "3")) == 0
        assert capfd.readouterr().out.count("vuserd 9.9") == 3


@dataclass
class Shown:
    """vuserctl on a terminal of ours, which gives what is written in pieces of any size."""

    process: "subprocess.Popen[bytes]"
    terminal: int
    theirs: int
    unread: bytes = b""

    def read_until(self, words: bytes) -> bytes:
        """Read what is shown up to the end of ``words``; what comes after them stays for later."""
        deadline = time.monotonic() + 10
        while words not in self.unread:
            assert select.select([self.terminal], [], [], max(deadline - time.monotonic(), 0))[0]
            self.unread += os.read(self.terminal, 4096)
        end = self.unread.index(words) + len(words)
        shown, self.unread = self.unread[:end], self.unread[end:]
        return shown

    def rest(self) -> bytes:
        shown = self.unread
        while select.select([self.terminal], [], [], 0)[0]:
            with suppress(OSError):  # how Linux says that the other side is closed
                shown += os.read(self.terminal, 4096)
                continue
            break
        return shown


@contextmanager
def on_a_terminal(daemon: FakeDaemon, *arguments: str, rows: int = 40) -> Iterator[Shown]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (rows, 70))
    code = "import sys; from vuserd.ctl.main import main; sys.exit(main())"
    command = ["env", "--default-signal", sys.executable, "-c", code, *top(daemon, *arguments)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        try:
            yield Shown(process, ours, theirs)
        finally:
            process.kill()
            os.close(theirs)
            os.close(ours)


class TestOnATerminal:
    @pytest.mark.parametrize("end", ["q", signal.SIGINT, signal.SIGTERM, "count"])
    def test_until_the_end(self, fake_daemon: FakeDaemon, end: str | signal.Signals) -> None:
        arguments = ("-n", "2") if end == "count" else ()
        with on_a_terminal(fake_daemon, *arguments) as shown:
            before = termios.tcgetattr(shown.theirs)
            screen = shown.read_until(b"REQ/S")
            assert screen.startswith(ENTER)
            if end == "q":
                os.write(shown.terminal, b"xq")
            elif isinstance(end, signal.Signals):
                shown.process.send_signal(end)
            status = shown.process.wait(timeout=10)
            assert status == (-signal.SIGTERM if end == signal.SIGTERM else 0)
            assert (screen + shown.rest()).endswith(LEAVE)
            assert termios.tcgetattr(shown.theirs) == before

    def test_in_its_place_and_no_larger(self, fake_daemon: FakeDaemon) -> None:
        with on_a_terminal(fake_daemon, rows=8) as shown:
            shown.read_until(b"\x1b[H")
            screen = shown.read_until(b"\x1b[H").replace(b"\x1b[K", b"").replace(b"\x1b[J", b"")
            lines = screen.removesuffix(b"\x1b[H").decode().split("\r\n")
            assert len(lines) == 8
            assert max(map(len, lines)) <= 70

    def test_while_it_is_stopped_the_terminal_is_as_before(self, fake_daemon: FakeDaemon) -> None:
        with on_a_terminal(fake_daemon) as shown:
            before = termios.tcgetattr(shown.theirs)
            for _ in range(2):
                shown.read_until(ENTER)
                shown.read_until(b"REQ/S")
                assert termios.tcgetattr(shown.theirs) != before
                shown.process.send_signal(signal.SIGTSTP)
                _, status = os.waitpid(shown.process.pid, os.WUNTRACED)
                assert (os.WIFSTOPPED(status), os.WSTOPSIG(status)) == (True, signal.SIGTSTP)
                shown.read_until(LEAVE)
                assert termios.tcgetattr(shown.theirs) == before
                shown.process.send_signal(signal.SIGCONT)
            shown.read_until(ENTER)
            os.write(shown.terminal, b"q")
            assert shown.process.wait(timeout=10) == 0
            assert termios.tcgetattr(shown.theirs) == before

    def test_a_dumb_one(self, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        with on_a_terminal(fake_daemon, "-n", "2") as shown:
            screen = shown.read_until(b"REQ/S")
            assert shown.process.wait(timeout=10) == 0
            assert b"\x1b" not in screen + shown.rest()

    def test_without_a_keyboard(self, fake_daemon: FakeDaemon) -> None:
        code = "import sys; from vuserd.ctl.main import main; sys.exit(main())"
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", code, *top(fake_daemon, "-n", "2")]
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=theirs, check=False, timeout=20
            )
            assert ended.returncode == 0
        finally:
            os.close(theirs)
            os.close(ours)
