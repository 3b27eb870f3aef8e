"""``vuserd serve`` as its operator sees it: starts, failures, sockets, ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import REPOSITORY, RunningDaemon
from vuserd.client import Client, calls
from vuserd.client.errors import RemoteError


def vuserd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vuserd.cli", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to serve"),
        (["--export", "kernels"], "give it as NAME=DIR"),
        (["--export", "a:b=/etc"], "export name 'a:b'"),
        (["--export", "a=/etc", "--export", "a=/usr"], "two exports are named a"),
        (["--adopt", "a"], "give it as NAME=SOCKET"),
    ],
)
def test_wrong_usage_is_refused_with_what_would_be_right(arguments: list[str], words: str) -> None:
    ended = vuserd("serve", *arguments)
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_command_line_loads_nothing_that_only_others_need() -> None:
    """Each would be a part of every daemon's start."""
    others = {"vuserd.check.command", "vuserd.config.files", "tomllib", "difflib"}
    program = "import sys, vuserd.cli; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    loaded = subprocess.check_output(command, cwd=REPOSITORY, text=True, timeout=30).split()
    assert not others.intersection(loaded)


def test_an_export_whose_backend_is_missing_harms_no_other(
    rust_virtiofsd: str, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    adopt = ["--adopt", f"gone={tmp_path}/nobody.sock"]
    with (
        RunningDaemon({"files": files}, tmp_path / "s", rust_virtiofsd, *adopt) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        states = {export.name: export for export in client.exports()}
        assert states["files"].state == "up"
        assert states["gone"].state == "absent"
        assert "nobody.sock: no such file or directory" in (states["gone"].reason or "")
        with pytest.raises(RemoteError, match="no backend serves") as down:
            client.stat("gone", "/")
        assert down.value.code == "BACKEND_DOWN"
        assert client.stat("files", "/").type == "dir"


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("/bin/false", "is no virtiofsd"),
        ("/nowhere/virtiofsd", "is not an executable file"),
        ("exits", "ended with status 3"),
        ("closes", "closed its socket"),
    ],
)
def test_a_backend_that_does_not_work_is_told_with_the_reason(
    tmp_path: Path, backend: str, words: str
) -> None:
    if not backend.startswith("/"):
        program = tmp_path / backend
        end = "echo no luck >&2; exit 3" if backend == "exits" else "exit 0"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && {{ echo virtiofsd 1.13.2; exit; }}\n{end}\n'
        )
        program.chmod(0o755)
        backend = str(program)
    with (
        RunningDaemon({"files": tmp_path}, tmp_path / "s", backend) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        [export] = client.exports()
        assert export.state == "failed"
        assert words in (export.reason or "")


def test_a_script_that_does_not_become_a_backend_is_told_as_that(
    rust_virtiofsd: str, tmp_path: Path
) -> None:
    script = tmp_path / "virtiofsd"
    script.write_text(f'#!/bin/sh\n"{rust_virtiofsd}" "$@"\nexit 0\n')
    script.chmod(0o755)
    with (
        RunningDaemon({"files": tmp_path}, tmp_path / "s", str(script)) as daemon,
        Client.connect(daemon.socket) as client,
        pytest.raises(RemoteError, match="is a script that does not exec virtiofsd"),
    ):
        client.stat("files", "/")


def test_a_backend_of_somebody_elses_is_adopted(rust_virtiofsd: str, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "hello").write_text("hello\n")
    listening = tmp_path / "virtiofsd.sock"
    command = [rust_virtiofsd, f"--socket-path={listening}", "--sandbox=none"]
    command += [f"--shared-dir={tmp_path}/shared", "--log-level=warn", "--rlimit-nofile=4096"]
    with subprocess.Popen(command) as virtiofsd:
        while not listening.exists():
            assert virtiofsd.poll() is None
        adopt = ["--adopt", f"theirs={listening}"]
        with (
            RunningDaemon({}, tmp_path / "s", None, *adopt) as daemon,
            Client.connect(daemon.socket) as client,
        ):
            backend = client.exports()[0].backend
            assert backend is not None
            assert backend.pid == virtiofsd.pid
            assert client.read("theirs", "hello", 0, 100) == b"hello\n"
        assert virtiofsd.wait(timeout=20) == 0  # it ends with its one connection


def test_a_live_socket_is_not_stolen(rust_virtiofsd: str, tmp_path: Path) -> None:
    with RunningDaemon({"files": tmp_path}, tmp_path / "s", rust_virtiofsd) as daemon:
        ended = vuserd("serve", "--export", f"b={tmp_path}", "--socket", daemon.socket)
        assert ended.returncode == 1
        assert "another daemon serves" in ended.stderr
        with Client.connect(daemon.socket) as client:
            assert client.exports()[0].name == "files"


def test_a_stale_socket_is_replaced_and_another_file_is_not(
    rust_virtiofsd: str, tmp_path: Path
) -> None:
    stale = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    with RunningDaemon({"files": tmp_path}, stale, rust_virtiofsd):
        pass
    precious = tmp_path / "precious"
    precious.write_text("data")
    ended = vuserd("serve", "--export", f"b={tmp_path}", "--socket", str(precious))
    assert ended.returncode == 1
    assert "is no socket" in ended.stderr
    assert precious.read_text() == "data"


def test_a_signal_ends_a_start_though_clients_wait(tmp_path: Path) -> None:
    slow = tmp_path / "virtiofsd"
    slow.write_text("#!/bin/sh\n[ $1 = --version ] && exec echo virtiofsd 1.0\nexec sleep 60\n")
    slow.chmod(0o755)
    with (
        RunningDaemon({"files": tmp_path}, tmp_path / "s", str(slow)) as daemon,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(daemon.socket)
        client.sendall(b"\x94\x00\x01\xa7exports\x90")
        begun = time.monotonic()
    assert time.monotonic() - begun < 10  # status 0 and no traceback, RunningDaemon sees to that


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_and_replies_come_first(
    rust_virtiofsd: str, tmp_path: Path, number: signal.Signals
) -> None:
    content = os.urandom(8 << 20)
    (tmp_path / "big").write_bytes(content)
    daemon = RunningDaemon({"files": tmp_path}, tmp_path / "s", rust_virtiofsd)
    buffer = bytearray(8 << 20)
    with (
        daemon,
        Client.connect(daemon.socket) as client,
        Client.connect(daemon.socket) as observer,
    ):
        reading = client.begin(calls.read_into("files", "big", 0, buffer))
        # The reply is longer than the socket's buffer: it stays in progress until it is read.
        while not observer.status()["exports"][0]["payloads"]:
            time.sleep(0.002)
        daemon.process.send_signal(number)
        assert client.finish(reading) == 8 << 20
        assert daemon.process.wait(timeout=20) == 0
    assert buffer == content
    assert "ending on" in daemon.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_during_the_end_do_not_change_its_status(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Until the process is gone: somebody is impatient, or two tools end it."""
    command = [sys.executable, "-m", "vuserd.cli", "serve", "--export", f"files={tmp_path}"]
    command += ["--socket", str(tmp_path / "s")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as daemon:
        assert daemon.stderr is not None
        while b"serving on" not in daemon.stderr.readline():
            assert daemon.poll() is None
        daemon.send_signal(signal.SIGTERM)
        while daemon.poll() is None:
            daemon.send_signal(number)
            time.sleep(0.001)
    assert daemon.returncode == 0


@pytest.mark.parametrize("ends", ["exit 1", "exec 9>&-; kill -KILL $$", "exec cat"])
def test_another_sandbox_is_tried_where_one_cannot_be_had(
    ends: str, rust_virtiofsd: str, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    program = tmp_path / "virtiofsd"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *--sandbox=namespace*) {ends} </dev/null ;; esac\n'
        f'exec {rust_virtiofsd} "$@"\n'
    )
    program.chmod(0o755)
    for number in range(5):  # how the end is noticed is a matter of chance
        with (
            RunningDaemon({"files": files}, tmp_path / f"s{number}", str(program)) as daemon,
            Client.connect(daemon.socket) as client,
        ):
            [export] = client.exports()
            assert (export.state, export.reason) == ("up", None)
        assert "no sandbox of kind namespace here" in daemon.log


def test_times_far_away_and_names_of_any_bytes_are_told(
    rust_virtiofsd: str, tmp_path: Path
) -> None:
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path  # a file system that
    files = folder / f"vuserd-test-{os.getpid()}"  # takes any time
    files.mkdir()
    try:
        (files / "old").touch()
        (files / "new").touch()
        os.utime(files / "old", (-(1 << 33), -(1 << 33)))
        os.utime(files / "new", (1 << 34, 1 << 34))
        strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.sock")
        adopt = ["--adopt", f"strange={strange}"]
        with (
            RunningDaemon({"files": files}, tmp_path / "s", rust_virtiofsd, *adopt) as daemon,
            Client.connect(daemon.socket) as client,
        ):
            entries = {entry.name: entry.stat for entry in client.iterdir("files", "", attrs=True)}
            assert entries["new"] is not None
            assert entries["new"] == client.stat("files", "new")
            with client.fetch("files", "new") as image:
                assert image.size == 0
            assert r"\udcff.sock" in str(client.status()["exports"])
    finally:
        shutil.rmtree(files)
