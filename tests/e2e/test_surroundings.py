"""The daemon in bare surroundings: no temporary folder, a read-only root."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.processes import family
from tests.running import REPOSITORY, RunningDaemon
from vuserd.backend import landlock
from vuserd.client import Client
from vuserd.client.errors import CannotConnect

_START = 20.0

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these namespaces")


@contextlib.contextmanager
def serving(before: Sequence[str], backend: str, directory: Path, **more: str) -> Iterator[Client]:
    """Run a daemon behind the command ``before``, on an abstract socket: it needs no file."""
    address = f"@vuserd-test-{secrets.token_hex(8)}"
    command = [sys.executable, "-m", "vuserd.cli", "serve", "--socket", address]
    command += ["--export", f"files={directory}", "--backend", backend]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | more
    with subprocess.Popen([*before, *command], env=environment, stdin=subprocess.DEVNULL) as daemon:
        try:
            with connected(address) as client:
                yield client
        finally:
            os.kill(daemon_in(daemon.pid), signal.SIGTERM)
            status = daemon.wait(timeout=30)
        assert status == 0


def daemon_in(process: int) -> int:
    """Return the daemon among what descends from a process."""
    for each in family(process):
        command = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
        if command[1:3] == [b"-m", b"vuserd.cli"]:
            return each
    raise AssertionError("there is no daemon")


def connected(address: str) -> Client:
    deadline = time.monotonic() + _START
    while True:
        try:
            return Client.connect(address)
        except CannotConnect:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # there is nothing to wait on before the socket is there


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "Image").write_bytes(b"kernel")
    return folder


@pytest.mark.parametrize("length", [200, 4000])
def test_a_temporary_folder_with_a_long_name(virtiofsd: str, files: Path, length: int) -> None:
    with serving([], virtiofsd, files, TMPDIR="/" + "long-name/" * (length // 10)) as client:
        assert client.read("files", "Image", 0, 16) == b"kernel"


@as_root
def test_a_root_that_is_read_only(virtiofsd: str, files: Path) -> None:
    """No file can be made anywhere."""
    script = (
        "awk '{print $5}' /proc/self/mountinfo | while read -r point; do"
        ' mount -o remount,ro,bind "$point" 2>/dev/null; done;'
        ' for each in /tmp /var/tmp /dev/shm /run "$PWD"; do'
        ' touch "$each/vuserd-probe" 2>/dev/null && exit 9; done; exec "$@"'
    )
    before = ["unshare", "--mount", "sh", "-c", script, "sh"]
    with serving(before, virtiofsd, files) as client:
        assert client.read("files", "Image", 0, 16) == b"kernel"


# -- what vuserd check promises --------------------------------------------------------------------

NO_CAPABILITIES = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]


def checked(before: Sequence[str], backend: str, directory: Path) -> tuple[int, str]:
    """Run ``vuserd check`` behind the command ``before``: its status, and what it says."""
    config = directory.parent / "vuserd.toml"
    config.write_text(
        f'backend = "{backend}"\n[[export]]\nname = "files"\npath = "{directory}"\n'
        '[[listen]]\nsocket = "@vuserd-checked"\n'
    )
    command = [*before, sys.executable, "-m", "vuserd.cli", "check", "--config", str(config)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def test_a_backend_that_starts_is_promised(virtiofsd: str, files: Path) -> None:
    status, said = checked([], virtiofsd, files)
    assert status == 0
    assert "a backend starts, with the sandbox" in said


@as_root
def test_no_backend_is_promised_that_does_not_start(virtiofsd: str, files: Path) -> None:
    """Root without capabilities, as in a container without any: what check says is so."""
    files.chmod(0o755)
    status, said = checked(NO_CAPABILITIES, virtiofsd, files)
    with serving(NO_CAPABILITIES, virtiofsd, files) as client:
        [export] = client.exports()
    assert (status, export.state) in ((0, "up"), (1, "failed"))
    assert ("no backend starts: " in said) == (export.state == "failed")
    if status:
        assert "give this container CAP_SYS_ADMIN" in said


@as_root
def test_mounts_that_a_backend_will_not_see_are_told(virtiofsd: str, files: Path) -> None:
    for propagation, told in (("private", True), ("shared", False)):
        before = ["unshare", "--mount", "--propagation", propagation]
        status, said = checked(before, virtiofsd, files)
        assert status == 0
        assert ("do not reach a backend that runs" in said) == told


# -- the first process of a container --------------------------------------------------------------


def zombies(process: int) -> list[int]:
    """Return what descends from a process and has ended."""
    found = []
    for each in family(process):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.append(each)
    return found


@as_root
def test_the_first_process_of_a_container_leaves_no_zombies(virtiofsd: str, files: Path) -> None:
    """What backends forked, and what was run beside the daemon, becomes its own as an orphan."""
    before = ["unshare", "--pid", "--fork", "--mount-proc"]
    with serving(before, virtiofsd, files) as client:
        assert client.read("files", "Image", 0, 16) == b"kernel"
        unshared = next(each for each in family(os.getpid()) if is_unshare(each))
        first = daemon_in(unshared)
        assert os.readlink(f"/proc/{first}/ns/pid") != os.readlink("/proc/self/ns/pid")
        for _ in range(3):
            # Killed in this order the front one of the Rust backend's processes cannot wait.
            for process in list(family(first))[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            assert client.read("files", "Image", 0, 16) == b"kernel"
            enter = ["nsenter", f"--target={first}", "--pid", "sh", "-c"]
            for run in ("sleep 0.05 & exec true", "setsid sleep 0.05 & exec true"):
                subprocess.run([*enter, run], check=True)
        deadline = time.monotonic() + _START
        while zombies(first) or len(list(family(first))) > 3:
            assert time.monotonic() < deadline, zombies(first)
            time.sleep(0.01)  # they end when they will
        status = client.status()["exports"][0]
        assert status["restarts_by_cause"] == {"killed": 3}  # and no status was taken away


def is_unshare(process: int) -> bool:
    return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"unshare\0")


# -- a user's own daemon ---------------------------------------------------------------------------

USER = 61_004


@contextlib.contextmanager
def serving_user(
    folder: Path, backend: str, sandbox: str
) -> Iterator[tuple[RunningDaemon, Client]]:
    """Serve files of several owners as a user of its own."""
    shared = folder / "shared"
    shared.mkdir()
    for name, owner in (("roots", 0), ("mine", USER), ("others", USER + 1)):
        (shared / name).write_text(name)
        os.chown(shared / name, owner, owner + 1 if name == "others" else owner)
    config = folder / "vuserd.toml"
    config.write_text(
        f'backend = "{backend}"\nsandbox = "{sandbox}"\n'
        f'[[export]]\nname = "files"\npath = "{shared}"\n'
    )
    for each in (folder, shared):
        each.chmod(0o755)
    (folder / "run").mkdir()
    os.chown(folder / "run", USER, USER)
    socket = folder / "run" / "s"
    arguments = ["--config", str(config), "--socket", str(socket)]
    with (
        RunningDaemon({}, socket, None, *arguments, user=USER, configured=True) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        yield daemon, client


@pytest.fixture
def public() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for one user alone
        yield Path(folder)


@as_root
@pytest.mark.skipif(not landlock.is_available(), reason="no Landlock of Linux 6.2 or newer here")
@pytest.mark.parametrize("sandbox", ["auto", "landlock"])
def test_owners_are_those_of_the_host(rust_virtiofsd: str, public: Path, sandbox: str) -> None:
    interpreter = ["setpriv", "--reuid=1000", "--clear-groups", "test", "-x", sys.executable]
    if subprocess.run(interpreter, check=False).returncode:
        pytest.skip(f"uid 1000 may not run {sys.executable}, which begins a backend's sandbox")
    with serving_user(public, rust_virtiofsd, sandbox) as (_, client):
        for name in ("roots", "mine", "others"):
            told, host = client.stat("files", name), os.stat(public / "shared" / name)
            assert (told.uid, told.gid) == (host.st_uid, host.st_gid)
            assert client.read("files", name, 0, 100) == name.encode()
