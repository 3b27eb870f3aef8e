"""Standard streams that are closed, full, or in an encoding that cannot show a name.

The daemon serves whatever they are; vuserctl delivers, or fails with a message and status 1.
"""

import itertools
import os
import pkgutil
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.started_once import Ended, StartedOnce
from tests.running import REPOSITORY, RunningDaemon, find_backend
from vuserd import ctl
from vuserd.client import Client
from vuserd.client.errors import CannotConnect

_VUSERCTL: Final = "import sys; from vuserd.ctl.main import main; sys.exit(main())"
_VUSERD: Final = "import sys; from vuserd.cli import main; sys.exit(main())"

#: A name in German, one beyond Latin-1, one that is no UTF-8, and one that is plain.
NAMES: Final = sorted(["ä".encode(), "€".encode(), b"\xff\xfe", b"plain"])
_CONTENT: Final = bytes(range(256)) * 100

_EBADF: Final = "vuserctl: standard output: bad file descriptor (EBADF)\n"
_ENOSPC: Final = "vuserctl: standard output: no space left on device (ENOSPC)\n"

#: What prints something, and fails where that cannot be had; {w} is a folder to work in.
PRINTING: Final = (
    "--help",
    "--version",
    "get --help",
    "__complete ls e:",
    "completion bash",
    "completion fish",
    "exports",
    "exports --json",
    "ls e:",
    "ls -l e:",
    "ls --json e:",
    "tree e:",
    "tree --json e:",
    "stat e:plain",
    "stat --json e:plain",
    "cat e:plain",
    "cat e:empty/file",
    "get e:plain -",
    "archive e:",
    "reload --json e",
    "status",
    "status --json",
    "top -n 1",
    "top -n 1 --json",
    "metrics",
    "trace --read {w}/capture",
)
#: What prints nothing of use, and does its work without.
SILENT: Final = ("get e:plain {w}/copy", "get -r e: {w}/tree", "ls e:empty/folder")
#: What fails by itself, and with which status.
FAILING: Final = (("stat e:none", 1), ("cat e:none", 1), ("nonsense", 2), ("get e:plain ''", 2))

#: Redirections that close streams: all of them, in each combination.
CLOSED: Final = [
    " ".join(chosen)
    for count in (1, 2, 3)
    for chosen in itertools.combinations(("<&-", ">&-", "2>&-"), count)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams") / "files"
    (folder / "empty" / "folder").mkdir(parents=True)
    (folder / "empty" / "file").touch()
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(_CONTENT)
    return folder


@pytest.fixture(scope="module")
def program() -> str:
    found = find_backend("c") or find_backend("rust")
    if found is None:
        pytest.skip("no virtiofsd on this machine: make backends")
    return found


@pytest.fixture(scope="module")
def socket(files: Path, program: str) -> Iterator[str]:
    with RunningDaemon({"e": files}, files.parent / "s", program) as running:
        yield running.socket


def executed(socket: str, arguments: str, streams: str, **settings: str) -> Ended:
    """Run vuserctl with words of a shell, and under its redirections."""
    done = subprocess.run(
        ["bash", "-c", f'exec "{sys.executable}" -c "$CODE" {arguments} {streams}'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=environment(VUSERD_SOCKET=socket, CODE=_VUSERCTL, **settings),
        timeout=60,
    )
    ended = Ended(done.returncode, done.stdout, done.stderr.decode())
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err
    return ended


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))
    }
    return kept | {"PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8", "TZ": "UTC"} | more


class Commands:
    """vuserctl, or ``vuserd``, started once with each of several streams and environments."""

    def __init__(self, module: str, *imports: str, **settings: str) -> None:
        self._modules, self._settings = (module, imports), settings
        self._started: dict[tuple[object, ...], StartedOnce] = {}

    def run(self, arguments: str | Sequence[bytes], streams: str = "", **settings: str) -> Ended:
        """Run it with arguments, or with words as a shell splits them."""
        which = (streams, *settings.items())
        if which not in self._started:
            variables = environment(**self._settings, **settings)
            self._started[which] = StartedOnce(*self._modules, streams, variables)
        words = shlex.split(arguments) if isinstance(arguments, str) else arguments
        return self._started[which].run(*words)

    def close(self) -> None:
        for each in self._started.values():
            each.close()


@pytest.fixture(scope="module")
def vuserctl(socket: str) -> Iterator[Commands]:
    later = [module.name for module in pkgutil.walk_packages(ctl.__path__, "vuserd.ctl.")]
    commands = Commands("vuserd.ctl.main", *later, VUSERD_SOCKET=socket)
    with closing(commands):
        yield commands


@pytest.fixture(scope="module")
def vuserd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    empty = str(tmp_path_factory.mktemp("configuration"))
    settings = {"XDG_CONFIG_HOME": empty, "PYTHONUNBUFFERED": "1"}
    with closing(Commands("vuserd.cli", "vuserd.check.command", **settings)) as commands:
        yield commands


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "capture").write_text('{"format": "vuserd-trace", "version": 1}\n')
    return tmp_path


@pytest.mark.parametrize("arguments", PRINTING)
def test_what_cannot_be_printed_is_a_failure(
    vuserctl: Commands, folder: Path, arguments: str
) -> None:
    nothing = arguments == "cat e:empty/file"
    arguments = arguments.replace("{w}", str(folder))
    there = vuserctl.run(arguments)
    assert (there.status, there.err) == (0, "")
    assert bool(there.out) is not nothing
    without = vuserctl.run(arguments, ">&-")
    assert (without.status, without.err) == (1, _EBADF)
    full = vuserctl.run(arguments, ">/dev/full")
    assert (full.status, full.err) == ((0, "") if nothing else (1, _ENOSPC))
    unbuffered = vuserctl.run(arguments, ">/dev/full", PYTHONUNBUFFERED="1")
    assert (unbuffered.status, unbuffered.err) == ((0, "") if nothing else (1, _ENOSPC))
    neither = vuserctl.run(arguments, "<&- >&- 2>&-")
    assert neither.status == 1
    both_full = vuserctl.run(arguments, ">/dev/full 2>/dev/full")
    assert both_full.status == int(not nothing)
    read_only = vuserctl.run(arguments, "1</dev/null")
    assert (read_only.status, read_only.err) == (1, _EBADF)


@pytest.mark.parametrize("streams", [*CLOSED, ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("arguments", SILENT)
def test_what_prints_nothing_does_its_work(
    socket: str, files: Path, folder: Path, arguments: str, streams: str
) -> None:
    """Executed: so each redirection is met by a whole start, too."""
    ended = executed(socket, arguments.replace("{w}", str(folder)), streams)
    assert (ended.status, ended.out, ended.err) == (0, b"", "")
    if "copy" in arguments:
        assert (folder / "copy").read_bytes() == _CONTENT
    if "tree" in arguments:
        copied = {path.relative_to(folder / "tree") for path in (folder / "tree").rglob("*")}
        assert copied == {path.relative_to(files) for path in files.rglob("*")}
        assert (folder / "tree" / "plain").read_bytes() == _CONTENT


@pytest.mark.parametrize("streams", [*CLOSED, ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"])
@pytest.mark.parametrize(("arguments", "status"), FAILING)
def test_a_failure_keeps_its_status(
    vuserctl: Commands, arguments: str, status: int, streams: str
) -> None:
    ended = vuserctl.run(arguments, streams)
    assert (ended.status, ended.out) == (status, b"")
    said = "2>" not in streams
    assert bool(ended.err) is said


@pytest.mark.parametrize(
    "settings",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-16"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"PYTHONIOENCODING": "cp037"},
    ],
    ids=lambda settings: ",".join(settings.values()),
)
def test_names_leave_as_their_bytes(
    socket: str, vuserctl: Commands, folder: Path, settings: dict[str, str]
) -> None:
    def run(arguments: str | Sequence[bytes]) -> Ended:
        return vuserctl.run(arguments, **settings)

    listed = run("ls e:")
    assert (listed.status, listed.err) == (0, "")
    assert listed.out.splitlines() == sorted([*NAMES, b"empty"])
    for arguments in ("ls -l e:", "tree e:"):
        ended = run(arguments)
        assert (ended.status, ended.err) == (0, "")
        for name in NAMES:
            assert b" " + name + b"\n" in ended.out
    for arguments in ("tree --json e:", "ls --json e:", "status", "exports", "metrics", "--help"):
        ended = run(arguments)
        assert (ended.status, ended.err) == (0, "")
        assert b"\0" not in ended.out
    for name in NAMES:  # and come in as such
        assert run([b"cat", b"e:" + name]).out == _CONTENT
        assert run([b"get", b"e:" + name, bytes(folder)]).status == 0
        assert name in os.listdir(os.fsencode(folder))
    argument = "$'" + "".join(f"\\x{byte:02x}" for byte in b"e:" + NAMES[-1]) + "'"
    assert executed(socket, f"cat {argument}", "", **settings).out == _CONTENT
    missing = executed(socket, "stat e:$'\\xe2\\x82\\xac'$'\\xff'", "", **settings)
    assert missing.status == 1
    assert missing.err.endswith(": no such file or directory (ENOENT)\n")


def test_a_pipe_that_others_have_made_not_block(socket: str, files: Path) -> None:
    """As ssh and node do with streams that they share."""
    large = files / "empty" / "large"
    large.write_bytes(_CONTENT * 40)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen(
        [sys.executable, "-c", _VUSERCTL, "cat", "e:empty/large"],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(VUSERD_SOCKET=socket),
    )
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == _CONTENT * 40
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 0
    large.unlink()


# -- the daemon ------------------------------------------------------------------------------------


@contextmanager
def daemon(
    files: Path, program: str, socket: Path, streams: str, *arguments: str, **settings: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the daemon under redirections of a shell; it serves, and ends with status 0."""
    shell = f'exec "{sys.executable}" -c "$CODE" "$@" {streams}'
    arguments = ("serve", *arguments, "--export", f"e={files}", "--backend", program)
    process = subprocess.Popen(
        ["bash", "-c", shell, "vuserd", *arguments, "--socket", str(socket)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment(CODE=_VUSERD, **settings),
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                client = Client.connect(str(socket))
            except CannotConnect:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)  # nothing tells when the socket is there
            else:
                break
        with client:
            assert client.read("e", "plain", 0, 1 << 20) == _CONTENT
            # None of its own is behind the numbers of standard streams.
            for number in range(3):
                behind = os.readlink(f"/proc/{process.pid}/fd/{number}")
                assert not behind.startswith(("socket:", "anon_inode:", "/memfd:"))
            yield process
            assert client.read("e", "plain", 0, 1 << 20) == _CONTENT
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("streams", [*CLOSED, ">/dev/full 2>/dev/full", "2>&1 2</dev/null"])
def test_the_daemon_serves_without(files: Path, program: str, tmp_path: Path, streams: str) -> None:
    with (
        daemon(files, program, tmp_path / "s", streams, "--verbose"),
        Client.connect(str(tmp_path / "s")) as client,
    ):
        assert {os.fsencode(entry.name) for entry in client.iterdir("e", "")} == {
            *NAMES,
            b"empty",
        }


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16", "ascii:strict"])
def test_the_daemon_logs_what_the_encoding_of_its_log_cannot_show(
    program: str, tmp_path: Path, encoding: str
) -> None:
    folder = tmp_path / "ä€"
    folder.mkdir()
    (folder / "plain").write_bytes(_CONTENT)
    streams = f"2>'{tmp_path}/log'"
    settings = {"PYTHONIOENCODING": encoding}
    with daemon(folder, program, tmp_path / "s", streams, "--verbose", **settings):
        pass
    log = (tmp_path / "log").read_bytes().decode(encoding.partition(":")[0])
    assert "Traceback" not in log
    assert "Logging error" not in log
    assert "ending on SIGTERM" in log


def test_a_log_that_nobody_reads_stops_nobody(files: Path, program: str, tmp_path: Path) -> None:
    """A pipe is full, and stays so; later it is read, and tells how much was lost."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filled = 0
    try:
        while True:
            filled += os.write(writing, bytes(1 << 16))
    except BlockingIOError:
        os.set_blocking(writing, True)
    streams = f"2>/proc/{os.getpid()}/fd/{writing}"
    with daemon(files, program, tmp_path / "s", streams, "--verbose"):
        os.close(writing)
        while filled:
            filled -= len(os.read(reading, filled))
        with Client.connect(str(tmp_path / "s")) as client:
            client.reload("e")
    with open(reading, "rb") as pipe:
        log = pipe.read().decode()
    assert log.startswith("(")
    assert " lost)\n" in log
    assert "ending on SIGTERM" in log


def test_a_log_whose_reader_has_gone(files: Path, program: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    streams = f"2>/proc/{os.getpid()}/fd/{writing}"
    with daemon(files, program, tmp_path / "s", streams, "--verbose"):
        os.close(reading)
        os.close(writing)
        with Client.connect(str(tmp_path / "s")) as client:
            client.reload("e")


@pytest.mark.parametrize("arguments", ["--help", "--version", "check", "check --json"])
@pytest.mark.parametrize("streams", [">&-", ">/dev/full", ">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_what_the_daemons_command_cannot_print_is_a_failure(
    vuserd: Commands, arguments: str, streams: str
) -> None:
    assert vuserd.run(arguments, streams).status == 1
