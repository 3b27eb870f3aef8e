"""The service manager's descriptors and notifications, and the journal, all played by the test."""

import fcntl
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuserd.errors import ConfigurationError
from vuserd.service.journal import (
    LONGEST_VALUE,
    JournalHandler,
    encode_entry,
    journal_handler,
    priority,
)
from vuserd.service.systemd import Notifier, listen_sockets, withhold_privileges

# ---------------------------------------------------------------------------- listen_sockets


def _given(monkeypatch: pytest.MonkeyPatch, *descriptors: int) -> int:
    """Pretend that the descriptors, which are in a row, begin where the protocol's do."""
    assert list(descriptors) == list(range(descriptors[0], descriptors[0] + len(descriptors)))
    monkeypatch.setattr("vuserd.service.systemd._FIRST_DESCRIPTOR", descriptors[0])
    return len(descriptors)


def _in_a_row(*sockets: socket.socket) -> list[int]:
    """Move sockets to descriptors in a row, inheritable as over an exec."""
    first = fcntl.fcntl(sockets[0].fileno(), fcntl.F_DUPFD, 700)
    os.close(first)
    for number, sock in enumerate(sockets, first):
        os.dup2(sock.fileno(), number)
        sock.close()
    return list(range(first, first + len(sockets)))


def _listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_without_the_variables_there_are_no_sockets() -> None:
    assert listen_sockets({}, os.getpid()) == []


def test_sockets_come_with_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = _in_a_row(_listener(tmp_path / "a"), _listener(tmp_path / "b"))
    count = _given(monkeypatch, *row)
    environ = {
        "LISTEN_PID": "42",
        "LISTEN_FDS": str(count),
        "LISTEN_FDNAMES": "rpc:lab",
        "LISTEN_PIDFDID": "7",
        "HOME": "/",
    }
    taken = listen_sockets(environ, 42)
    assert environ == {"HOME": "/"}
    assert [(name, sock.fileno()) for name, sock in taken] == [("rpc", row[0]), ("lab", row[1])]
    with socket.socket(socket.AF_UNIX) as client, taken[1][1] as second, taken[0][1]:
        assert not os.get_inheritable(second.fileno())
        assert not second.getblocking()
        with pytest.raises(BlockingIOError):
            second.accept()
        client.connect(str(tmp_path / "b"))
        second.accept()[0].close()


def test_a_socket_that_nobody_named_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _given(monkeypatch, *_in_a_row(_listener(tmp_path / "a")))
    [(name, sock)] = listen_sockets({"LISTEN_PID": "42", "LISTEN_FDS": "1"}, 42)
    sock.close()
    assert name == "unknown"


def test_sockets_of_another_process_are_left_alone() -> None:
    environ = {"LISTEN_PID": "41", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}
    assert listen_sockets(environ, 42) == []
    assert environ == {}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LISTEN_FDS": "-1"}, "is not a number"),
        ({"LISTEN_FDS": "three"}, "is not a number"),
        ({"LISTEN_FDS": "999999999999"}, "is not a number"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "one"}, "LISTEN_FDNAMES=one"),
        ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES=a:b"),
    ],
)
def test_variables_that_contradict_themselves(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        listen_sockets({"LISTEN_PID": "42", **variables}, 42)


@pytest.mark.parametrize("wrong", ["datagram", "internet", "not listening", "file", "nothing"])
def test_what_is_no_listener_is_refused_and_all_are_closed(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = _listener(tmp_path / "a")
    other = {
        "datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "internet": lambda: socket.create_server(("127.0.0.1", 0)),
    }.get(wrong, lambda: socket.socket(socket.AF_UNIX))()
    row = _in_a_row(right, other)
    if wrong == "file":
        folder = os.open(tmp_path, os.O_RDONLY)
        os.dup2(folder, row[1])
        os.close(folder)
    elif wrong == "nothing":
        os.close(row[1])
    _given(monkeypatch, *row)
    environ = {"LISTEN_PID": "42", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "good:bad"}
    with pytest.raises(ConfigurationError, match="socket bad"):
        listen_sockets(environ, 42)
    for descriptor in row:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


# ---------------------------------------------------------------------------- withhold_privileges

_WITH_AMBIENT = ["setpriv", "--inh-caps=+sys_admin,+chown", "--ambient-caps=+sys_admin,+chown"]
_SHOW = "import subprocess; subprocess.run(['grep', '^CapAmb', '/proc/self/status'])"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to withhold")
def test_what_a_rig_takes_is_kept_from_children() -> None:
    withhold = "from vuserd.service.systemd import withhold_privileges; withhold_privileges();"
    seen = [
        subprocess.run(
            [*_WITH_AMBIENT, sys.executable, "-c", before + _SHOW],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.split()[1]
        for before in ("", withhold)
    ]
    assert [int(mask, 16) for mask in seen] == [1 << 21 | 1, 1]


def test_there_may_be_nothing_to_withhold() -> None:
    withhold_privileges()


# ---------------------------------------------------------------------------- Notifier


class Manager:
    """The receiving end of a notification socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def received(self) -> str:
        return self.socket.recv(1 << 20).decode(errors="replace")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    manager = Manager(path if request.param == "path" else "@" + path)
    with manager.socket:
        yield manager


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier(manager.address)
    yield notifier
    notifier.close()


def test_messages_are_those_of_sd_notify(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("Serving 2 of 3 exports")
    assert manager.received() == "READY=1\nSTATUS=Serving 2 of 3 exports\n"
    notifier.status("Ending")
    assert manager.received() == "STATUS=Ending\n"
    notifier.stopping("Draining 5 calls")
    assert manager.received() == "STOPPING=1\nSTATUS=Draining 5 calls\n"
    notifier.extend_timeout(2.5)
    assert manager.received() == "EXTEND_TIMEOUT_USEC=2500000\n"
    notifier.watchdog()
    assert manager.received() == "WATCHDOG=1\n"


def test_reloading_says_when_by_the_monotonic_clock(manager: Manager, notifier: Notifier) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    first, second, rest = manager.received().split("\n")
    assert (first, rest) == ("RELOADING=1", "")
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= after


def test_a_status_cannot_bring_assignments_of_its_own(manager: Manager, notifier: Notifier) -> None:
    notifier.status("export a\nMAINPID=1\u2028READY=1\udc80")
    assert manager.received() == "STATUS=export a MAINPID=1 READY=1\\udc80\n"


def test_no_message_is_longer_than_the_manager_reads(manager: Manager, notifier: Notifier) -> None:
    """It leaves a longer one aside as a whole, and READY with it."""
    exports = ", ".join(f"é{number} failed" for number in range(1000))
    notifier.ready(f"0 of 1000 exports up; {exports}")
    received = manager.socket.recv(1 << 20)
    assert len(received) <= 4096
    assert received.startswith(b"READY=1\nSTATUS=0 of 1000 exports up; \xc3\xa90 failed")
    assert received.decode().endswith("...\n")


def test_what_did_not_fit_goes_with_the_next_message(
    manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    sent = 0
    while "cannot tell the service manager" not in caplog.text:
        notifier.status(f"{sent}")
        sent += 1
    notifier.reloading()
    notifier.ready("up")
    assert caplog.text.count("cannot tell") == 1
    for number in range(sent - 1):
        assert manager.received() == f"STATUS={number}\n"
    notifier.watchdog()
    lines = manager.received().splitlines()
    assert {"STATUS=up", "READY=1", "WATCHDOG=1"} <= set(lines)
    assert "RELOADING=1" not in lines
    notifier.watchdog()
    assert manager.received() == "WATCHDOG=1\n"


def test_a_manager_that_is_gone_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier(str(tmp_path / "nowhere"))
    notifier.ready("up")
    notifier.watchdog()
    notifier.close()
    notifier.status("closed")
    assert caplog.messages == ["cannot tell the service manager: no such file or directory"]


def test_without_a_manager_nothing_is_sent() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000000"})
    notifier.ready("up")
    notifier.reloading()
    notifier.close()
    assert notifier.watchdog_interval is None


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_pinged_twice_in_its_period(
    variables: dict[str, str], interval: float | None, manager: Manager
) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "HOME": "/", **variables}
    notifier = Notifier.from_environment(environ)
    assert environ == {"HOME": "/"}
    assert notifier.watchdog_interval == interval
    notifier.watchdog()
    assert manager.received() == "WATCHDOG=1\n"
    notifier.close()


# ---------------------------------------------------------------------------- JournalHandler


def test_an_entry_of_lines_and_of_counted_values() -> None:
    entry = encode_entry({"MESSAGE": "a\nb", "PRIORITY": "6"})
    assert entry == b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nPRIORITY=6\n"


def test_a_value_is_cut_to_what_a_datagram_holds() -> None:
    assert encode_entry({"A": "x" * 100_000}) == b"A=" + b"x" * LONGEST_VALUE + b"\n"
    assert encode_entry({"A": "\udcff"}) == b"A=\\udcff\n"


@pytest.mark.parametrize("name", ["", "_PID", "lower", "A-B", "1A", "A\n", "A" * 65])
def test_names_that_the_journal_does_not_take(name: str) -> None:
    with pytest.raises(ValueError, match="not a name of a journal field"):
        encode_entry({name: "x"})


def test_levels_are_syslog_priorities() -> None:
    levels = [logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG, 35]
    assert [priority(level) for level in levels] == [2, 3, 4, 6, 7, 4]


class Journal(Manager):
    """The journal's end of its socket."""

    def entry(self) -> dict[str, str]:
        lines = self.received().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(str(tmp_path / "journal"))
    with journal.socket:
        yield journal


@pytest.fixture
def log(journal: Journal) -> Iterator[logging.Logger]:
    log = logging.getLogger("tests.journal")
    handler = JournalHandler(journal.address)
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield log
    log.removeHandler(handler)
    handler.close()


def test_a_record_brings_its_fields(journal: Journal, log: logging.Logger) -> None:
    log.warning("export %s is down", "boot", extra={"fields": {"VUSERD_EXPORT": "boot"}})
    entry = journal.entry()
    assert entry["MESSAGE"] == "export boot is down"
    assert entry["PRIORITY"] == "4"
    assert entry["SYSLOG_IDENTIFIER"] == "vuserd"
    assert entry["LOGGER"] == "tests.journal"
    assert entry["VUSERD_EXPORT"] == "boot"
    assert entry["CODE_FILE"] == __file__
    assert entry["CODE_LINE"].isdecimal()
    assert entry["CODE_FUNC"] == "test_a_record_brings_its_fields"


def test_a_traceback_is_part_of_the_message(journal: Journal, log: logging.Logger) -> None:
    try:
        raise RuntimeError("no")
    except RuntimeError:
        log.exception("a fault")
    received = journal.received()
    assert received.startswith("MESSAGE\n")
    assert "a fault\nTraceback (most recent call last)" in received
    assert "\nPRIORITY=3\n" in received


def test_lost_entries_are_counted(journal: Journal, log: logging.Logger) -> None:
    journal.socket.close()
    for _ in range(3):
        log.info("lost")
    os.unlink(journal.address)
    with Journal(journal.address).socket as again:
        journal.socket = again
        again.setblocking(False)
        log.info("kept")
        assert journal.entry()["MESSAGE"] == "3 log entries were lost: the journal took none"
        assert journal.entry()["MESSAGE"] == "kept"
        log.info("next")
        assert journal.entry()["MESSAGE"] == "next"


def test_the_journal_is_used_where_standard_error_is_its_stream(journal: Journal) -> None:
    reader, writer = os.pipe()
    try:
        status = os.fstat(writer)
        stream = f"{status.st_dev}:{status.st_ino}"
        handler = journal_handler({"JOURNAL_STREAM": stream}, writer, journal.address)
        assert isinstance(handler, JournalHandler)
        handler.close()
        assert journal_handler({"JOURNAL_STREAM": stream + "0"}, writer, journal.address) is None
        assert journal_handler({}, writer, journal.address) is None
        os.unlink(journal.address)  # and where it can be reached
        assert journal_handler({"JOURNAL_STREAM": stream}, writer, journal.address) is None
    finally:
        os.close(reader)
        os.close(writer)
    assert journal_handler({"JOURNAL_STREAM": stream}, writer, journal.address) is None
