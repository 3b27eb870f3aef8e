"""What a hostile daemon can do to the clients that a user points at it."""

import contextlib
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests.attacks.false_daemons import (
    PATIENCE,
    ask_synchronously,
    ask_with_asyncio,
    ask_with_trio,
    false_daemon,
    lingering,
    reply,
    wait_for,
)
from tests.attacks.people import VICTIM, run_as
from tests.attacks.threats import Who, threat
from tests.loops import LOOPS, Loop
from vuserd.client import calls
from vuserd.client.errors import BadReply, ClientError, ConnectionLost

Ask = Callable[..., list[Any]]
all_clients = pytest.mark.parametrize("ask", [ask_synchronously, ask_with_trio, ask_with_asyncio])

#: The fields of a stat.
STAT_NUMBERS = (
    "mode", "size", "ino", "nlink", "uid", "gid", "rdev", "blocks", "blksize",
    "atime_ns", "mtime_ns", "ctime_ns",
)  # fmt: skip
_SIZE = 8192
_IMAGE = {"size": _SIZE, "mtime_ns": 0, "ino": 1, "cached": False}
_SHRINK_AND_GROW = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_FUTURE_WRITE = 0x10


def memory(seals: int, size: int = _SIZE) -> int:
    descriptor = os.memfd_create("false", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


IMAGES: dict[str, Callable[[], int]] = {
    "no seals": lambda: memory(0),
    "no seal against writing": lambda: memory(_SHRINK_AND_GROW),
    "a seal against later mappings": lambda: memory(_SHRINK_AND_GROW | _FUTURE_WRITE),
    "no seal against shrinking": lambda: memory(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW),
    "no seal against growing": lambda: memory(fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK),
    "another size": lambda: memory(_SHRINK_AND_GROW | fcntl.F_SEAL_WRITE, 4096),
    "a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "a pipe": lambda: os.pipe()[0],
    "an O_PATH": lambda: os.open("/proc/self/fd/" + str(memory(0)), os.O_PATH),
}


@threat(
    "unsealed image",
    who=Who.FALSE_DAEMON,
    against="a client's memory",
    does="sends as an image what it can change or cut afterwards, or what is no memory",
    promise="a client maps nothing but sealed memory of the size that was said",
)
@all_clients
@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_is_looked_at_before_it_is_used(ground: Path, ask: Ask, kind: str) -> None:
    def answer(connection: socket.socket, number: int, method: str) -> None:
        reply(connection, number, _IMAGE, (IMAGES[kind](),) if method == "fetch" else ())

    with false_daemon(ground, answer) as path:

        def victim() -> None:
            before = _descriptors()
            [outcome] = ask(path, calls.fetch("x", "/f"))
            assert isinstance(outcome, BadReply), outcome
            wait_for(lambda: _descriptors() <= before)  # a thread closes what is no memory

        assert run_as(VICTIM, victim) == 0


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _as_an_image(connection: socket.socket, lingers: int) -> None:
    reply(connection, 1, _IMAGE, (lingers,))


def _unasked(connection: socket.socket, lingers: int) -> None:
    reply(connection, 7, [], (lingers,))


def _unread(connection: socket.socket, lingers: int) -> None:
    reply(connection, 1, _IMAGE, (memory(_SHRINK_AND_GROW | fcntl.F_SEAL_WRITE),))
    reply(connection, 7, [], (lingers,))


@threat(
    "lingering descriptor",
    who=Who.FALSE_DAEMON,
    against="a client's thread",
    does="sends a socket whose close takes minutes: as an image, unasked, or so that it is unread",
    promise="no close of what a daemon sent holds a client up, nor its end",
)
@all_clients
@pytest.mark.parametrize("send", [_as_an_image, _unasked, _unread])
def test_nobody_waits_for_a_descriptor_to_close(
    ground: Path, ask: Ask, send: Callable[[socket.socket, int], None]
) -> None:
    reader, writer = os.pipe()

    def greet(connection: socket.socket) -> None:
        with lingering() as sock:
            send(connection, sock.fileno())
        os.write(writer, b"x")  # what was sent is the last one

    with false_daemon(ground, lambda *_: None, greet) as path:

        def victim() -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            [outcome] = ask(path, calls.fetch("x", "/f"), first=lambda: os.read(reader, 1))
            if send is _unread:
                outcome.close()
            else:
                assert isinstance(outcome, ClientError), outcome

        assert run_as(VICTIM, victim) == 0
    os.close(reader)
    os.close(writer)


@threat(
    "flood of descriptors",
    who=Who.FALSE_DAEMON,
    against="a client's descriptors",
    does="sends descriptors beside each byte of an answer that does not end",
    promise="a descriptor that belongs to no answer ends the connection",
)
@all_clients
def test_a_flood_of_descriptors_ends_the_connection(ground: Path, ask: Ask) -> None:
    def answer(connection: socket.socket, number: int, _: str) -> None:
        reader = os.pipe()[0]
        begun = b"\x94\x01" + bytes([number]) + b"\xc0\xc6\x01\x00\x00\x00"  # 16 MiB to come
        for _turn in range(1000):
            socket.send_fds(connection, [begun], [reader] * 20)
            begun = b"x"

    with false_daemon(ground, answer) as path:

        def victim() -> None:
            [outcome] = ask(path, calls.read_into("x", "/f", 0, bytearray(16 << 20)))
            assert isinstance(outcome, ConnectionLost), outcome
            assert "belongs to no answer" in str(outcome)

        assert run_as(VICTIM, victim) == 0


def _deep(levels: int = 1018) -> bytes:
    """Return as many arrays in one another as msgpack takes, too many for repr()."""
    return b"\x91" * levels + b"\xc0"


def _a_deep_error(number: int) -> bytes:
    return b"\x94\x01" + bytes([number]) + _deep() + b"\xc0"


def _a_deep_code(number: int) -> bytes:
    return b"\x94\x01" + bytes([number]) + b"\x82\xa4code" + _deep() + b"\xa1x\xc0" + b"\xc0"


def _deep_last_words(number: int) -> bytes:
    return b"\x93\x02\xa5error\x91" + _deep(1017) + _a_deep_error(number)


def _a_token_that_is_no_key(number: int) -> bytes:
    page = {"entries": [], "problems": [], "next": {"no": "key"}}
    return bytes(msgpack.packb([1, number, None, page]))


@threat(
    "odd answers",
    who=Who.FALSE_DAEMON,
    against="other calls on the same connection",
    does="answers with errors nested too deeply to be shown, and with maps for tokens",
    promise="each call has its own answer or a ClientError, and no call has another's fault",
)
@pytest.mark.parametrize("loop", LOOPS.values(), ids=[*LOOPS])
@pytest.mark.parametrize(
    "odd", [_a_deep_error, _a_deep_code, _deep_last_words, _a_token_that_is_no_key]
)
def test_an_odd_answer_is_one_call_s(ground: Path, loop: Loop, odd: Callable[[int], bytes]) -> None:
    def answer(connection: socket.socket, number: int, _: str) -> None:
        connection.sendall(odd(number))

    with false_daemon(ground, answer) as path:

        def victim() -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            outcomes: list[Exception] = []

            async def main() -> None:
                async with loop.client.connect(path, reconnect=0) as client:

                    async def ask() -> None:
                        try:
                            await client.walk("x", "/")
                        except Exception as error:
                            outcomes.append(error)

                    async with loop.group() as group:
                        for _ in range(3):
                            group.start(ask)

            loop.run(main)
            assert len(outcomes) == 3
            assert all(isinstance(outcome, ClientError) for outcome in outcomes), outcomes

        assert run_as(VICTIM, victim) == 0


def _many_objects(connection: socket.socket, number: int) -> None:
    connection.sendall(b"\x94\x01" + bytes([number]) + b"\xc0\xdc" + bytes([0, 48]))
    for _ in range(48):  # arrays of empty maps
        connection.sendall(b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20))


def _large_arrays(connection: socket.socket, number: int) -> None:
    connection.sendall(b"\x94\x01" + bytes([number]) + b"\xc0" + b"\xdd\x03\xff\xff\xff" * 1000)


def _large_arrays_in_each_other(connection: socket.socket, number: int) -> None:
    connection.sendall(b"\x94\x01" + bytes([number]) + b"\xc0" + b"\xdd\x00\x0f\xff\xff" * 1000)


def _long_arrays_in_each_other(connection: socket.socket, number: int) -> None:
    connection.sendall(b"\x94\x01" + bytes([number]) + b"\xc0" + b"\xdc\x40\x00" * 3000)


def _deep_arrays(connection: socket.socket, number: int) -> None:
    connection.sendall(b"\x94\x01" + bytes([number]) + b"\xc0" + b"\x91" * 100_000)


@threat(
    "reply that grows",
    who=Who.FALSE_DAEMON,
    against="a client's memory",
    does="sends replies whose objects take sixty times their bytes, or room for all of an array",
    promise="a reply has a million values at most, and its objects take no more than 300 MB",
)
@all_clients
@pytest.mark.parametrize(
    "send",
    [
        _many_objects,
        _large_arrays,
        _large_arrays_in_each_other,
        _long_arrays_in_each_other,
        _deep_arrays,
    ],
)
def test_a_reply_does_not_take_all_memory(
    ground: Path, ask: Ask, send: Callable[[socket.socket, int], None]
) -> None:
    def answer(connection: socket.socket, number: int, _: str) -> None:
        send(connection, number)

    with false_daemon(ground, answer) as path:

        def victim() -> None:
            with open("/proc/self/statm") as statm:
                used = int(statm.read().split()[0]) * resource.getpagesize()
            most = used + (1 << 30)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            [outcome] = ask(path, calls.exports(), timeout=PATIENCE)
            assert isinstance(outcome, ConnectionLost), outcome
            assert "is not its protocol" in str(outcome)
            assert "MemoryError" not in str(outcome)

        assert run_as(VICTIM, victim) == 0


_BYTES = "".join(map(chr, [*range(1, 32), 127, *range(128, 160)]))
_ESCAPES = f"\x1b]0;title\x07\x1b[2J{_BYTES}\u202e"


_of_escapes = threat(
    "escapes on a terminal",
    who=Who.FILE_OWNER,
    against="a user's terminal",
    does="gives files names with control characters, or a daemon sends some in all it says",
    promise="vuserctl writes none of them to a terminal, nor to standard error",
)


@_of_escapes
@pytest.mark.parametrize(
    "words",
    [["ls", "x:"], ["ls", "-l", "x:"], ["tree", "x:"], ["stat", "x:f"], ["exports"], ["metrics"],
     ["status"], ["cat", "x:f"], ["reload"], ["rigs"], ["ls"], ["ls", "-1aR", "x:"],
     ["head", "x:f"], ["tail", "x:f"], ["sha256sum", "x:f"], ["get", "x:f", "/dev/null"]],
    ids=" ".join,
)  # fmt: skip
def test_no_escapes_on_a_terminal(ground: Path, words: list[str]) -> None:
    attributes = dict.fromkeys(STAT_NUMBERS, 1) | {"type": "symlink", "mode": 0o120777}
    entry = attributes | {"name": "a" + _ESCAPES}
    rig = {"netns": _ESCAPES, "socket": _ESCAPES, "state": _ESCAPES, "exports": [_ESCAPES]}
    results: dict[str, Any] = {
        "readdir": {"entries": [entry], "next": None},
        "stat": attributes,
        "readlink": _ESCAPES,
        "exports": [{"name": _ESCAPES, "state": _ESCAPES, "reason": _ESCAPES}],
        "metrics": _ESCAPES,
        "status": {"version": _ESCAPES, "exports": [{"name": _ESCAPES, "reason": _ESCAPES}]},
        "origin": {"socket": _ESCAPES, "rig": _ESCAPES, "namespace": _ESCAPES},
        "reload": [_ESCAPES],
        "rigs": [rig | {"clients": 1, "reason": _ESCAPES}],
    }

    def answer(connection: socket.socket, number: int, method: str) -> None:
        if method in results:
            reply(connection, number, results[method])
        else:
            error = {"code": _ESCAPES, "message": _ESCAPES}
            connection.sendall(msgpack.packb([1, number, error, None]))

    with false_daemon(ground, answer) as path:
        _expect_escaped(path, words)


@_of_escapes
@pytest.mark.parametrize("words", [["stat", "x:f"], ["sha256sum", "x:f*"]], ids=" ".join)
def test_no_escapes_of_odd_fields_on_a_terminal(ground: Path, words: list[str]) -> None:
    """A type that there is not, and a name with a line feed, for which sha256sum has a form."""
    attributes: dict[str, Any] = dict.fromkeys(STAT_NUMBERS, 1) | {"type": _ESCAPES}
    results: dict[str, Any] = {
        "readdir": {"entries": [attributes | {"name": f"f\n{_ESCAPES}"}], "next": None},
        "open": attributes | {"file": 1, "settled": True, "by_attributes": True, "size": 3},
        "read": b"abc",
        "close": None,
    }
    asked: list[str] = []

    def answer(connection: socket.socket, number: int, method: str) -> None:
        asked.append(method)
        if words[0] != "stat" and asked == ["stat"]:  # no file is named as the pattern
            error = {"code": "ENOENT", "message": "no such file"}
            connection.sendall(msgpack.packb([1, number, error, None]))
        else:
            reply(connection, number, results.get(method, attributes | {"size": 3}))

    with false_daemon(ground, answer) as path:
        _expect_escaped(path, words)


def _expect_escaped(path: str, words: list[str]) -> None:
    """Run vuserctl on a terminal, and look at what it writes there."""
    master, terminal = os.openpty()
    environment = {key: os.environ[key] for key in os.environ if key != "LS_COLORS"}
    subprocess.run(
        [sys.executable, "-m", "vuserd.ctl.main", "--socket", path, *words],
        env=environment | {"TERM": "xterm"},
        stdout=terminal, stderr=terminal, timeout=PATIENCE, check=False,
    )  # fmt: skip
    os.close(terminal)
    written = b""
    with contextlib.suppress(OSError):
        while received := os.read(master, 65536):
            written += received
    os.close(master)
    text = written.decode().replace("\r\n", "\n")
    for colour in ("\x1b[01;36m", "\x1b[0m"):  # vuserctl's own, of a symlink
        text = text.replace(colour, "")
    assert "033" in text, text
    assert all(each.isprintable() or each == "\n" for each in text), text


@threat(
    "names beyond a pattern",
    who=Who.FALSE_DAEMON,
    against="files of a user's",
    does="lists names with slashes where a pattern is matched, of which the last part is another's",
    promise="what is no name in one directory is matched by no pattern, and not fetched",
)
def test_a_pattern_matches_names_alone(ground: Path) -> None:
    attributes = dict.fromkeys(STAT_NUMBERS, 1) | {"type": "file", "mode": 0o100644, "size": 3}
    names = ["a/../.profile", "/a/.bashrc", "fine"]
    results: dict[str, Any] = {
        "readdir": {"entries": [attributes | {"name": each} for each in names], "next": None},
        "open": attributes | {"file": 1, "settled": True, "by_attributes": True},
        "read": b"bad",
        "close": None,
    }
    is_looked_for: list[str] = []

    def answer(connection: socket.socket, number: int, method: str) -> None:
        if method == "stat" and not is_looked_for:  # the pattern itself
            is_looked_for.append(method)
            missing = {"code": "ENOENT", "message": "no such file"}
            connection.sendall(msgpack.packb([1, number, missing, None]))
        else:
            reply(connection, number, results.get(method, attributes))

    home = ground / "home"
    home.mkdir()
    with false_daemon(ground, answer) as path:
        subprocess.run(
            [sys.executable, "-m", "vuserd.ctl.main", "--socket", path, "get", "x:*", home],
            timeout=PATIENCE, check=True,
        )  # fmt: skip
    assert os.listdir(home) == ["fine"]


_FITTING = {"name": ["a", "b"], "type": ["file"] * 2, "ino": [1, 2]} | {
    field: [1, 2] for field in STAT_NUMBERS
}


@threat(
    "columns that do not fit",
    who=Who.FALSE_DAEMON,
    against="a user's shell",
    does="sends a listing in columns of different lengths, of other types, or with odd names",
    promise="the command says that the answer is bad, and shows nothing of it",
)
@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ({"size": [1]}, "1 values of 'size' for 2 entries"),
        ({"size": [1, "2"]}, "'size' of the wrong type"),
        ({"name": ["a", "../b"]}, "a name that no file can have"),
        ({"name": ["a", ".."]}, "a name that no file can have"),
        ({"type": [1, 2]}, "a type that is no str"),
        ({"type": {"a": 1}}, "dict in place of list"),
    ],
)
def test_columns_that_do_not_fit(ground: Path, column: dict[str, Any], complaint: str) -> None:
    attributes = dict.fromkeys(STAT_NUMBERS, 1) | {"type": "dir"}
    info = {"version": "1", "api_level": 3, "api_compatible": 1, "methods": [], "errors": []}
    results = {"api_info": info, "readdir": {"entries": _FITTING | column, "next": None}}

    def answer(connection: socket.socket, number: int, method: str) -> None:
        reply(connection, number, results.get(method, attributes))

    with false_daemon(ground, answer) as path:
        command = [sys.executable, "-m", "vuserd.ctl.main", "--socket", path, "ls", "-l", "x:"]
        ended = subprocess.run(
            command, timeout=PATIENCE, check=False, capture_output=True, text=True
        )
    assert ended.returncode == 1
    assert complaint in ended.stderr
    assert ended.stdout == ""


@threat(
    "completion without end",
    who=Who.FALSE_DAEMON,
    against="a user's shell",
    does="lists ever more, or answers a byte at a time, while the shell completes a name",
    promise="completion ends after some seconds",
)
@pytest.mark.parametrize("slowly", [False, True])
def test_completion_ends(ground: Path, slowly: bool) -> None:
    def answer(connection: socket.socket, number: int, _: str) -> None:
        if not slowly:
            columns = {"name": [f"n{number}"], "type": ["file"], "ino": [number]}
            reply(connection, number, {"entries": columns, "next": number})
            return
        for byte in b"\x94\x01\x01\xc0\xd9" + b"x" * 200:
            connection.sendall(bytes([byte]))
            time.sleep(0.2)

    with false_daemon(ground, answer) as path:
        command = [sys.executable, "-m", "vuserd.ctl.main"]
        words = ["__complete", "--socket", path, "ls", "x:"]
        ended = subprocess.run([*command, *words], timeout=PATIENCE, check=False)
        # An answer has a time; ever more answers, each in time, end with the alarm.
        assert ended.returncode == (0 if slowly else -signal.SIGALRM)


@threat(
    "flood of words",
    who=Who.FALSE_DAEMON,
    against="an asynchronous program",
    does="sends notifications without end in place of an answer",
    promise="other tasks go on, and a caller's deadline holds",
)
@pytest.mark.parametrize("loop", LOOPS.values(), ids=[*LOOPS])
def test_a_flood_of_words_leaves_other_tasks_alone(ground: Path, loop: Loop) -> None:
    def answer(connection: socket.socket, _: int, __: str) -> None:
        while True:
            connection.sendall(b"\x93\x02\xa1x\x90" * 20_000)

    with false_daemon(ground, answer) as path:

        def victim() -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)

            async def main() -> None:
                async with loop.client.connect(path, reconnect=0) as client:
                    async with loop.group() as group:
                        asking = group.start(client.exports)
                        await loop.sleep(0.2)
                        asking.cancel()
                    assert asking.cancelled()

            loop.run(main)

        assert run_as(VICTIM, victim) == 0
