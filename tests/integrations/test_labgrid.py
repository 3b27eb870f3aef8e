"""docs/labgrid.md, word for word: on one machine, and in a lab of two network namespaces."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from examples.demo_boot import make_tree
from tests.documents import Block, blocks
from tests.running import REPOSITORY, RunningDaemon
from tests.uml import rig_folder

pytest.importorskip("labgrid", reason="labgrid is not installed")

#: A busy machine has no hurry to boot a board.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ONE_MACHINE, COORDINATOR, EXPORTER, PLACE, REMOTE = blocks(REPOSITORY / "docs/labgrid.md")
DESK: Final = "10.83.0.1"
HOST: Final = "10.83.0.2"
INIT: Final = """#!/bin/sh
export PATH=/bin:/sbin PS1='rig# '
mount -t proc proc /proc
exec sh -i
"""
#: Whom the daemon sees behind a socket that ssh forwards.
THROUGH_SSH: Final = """
def test_the_way(target):
    clients = target.get_driver("VuserdDriver").client.status()["clients"]
    assert {client["command"].partition(":")[0] for client in clients} == {"sshd"}
"""
#: After the other tests.
SWITCHED_OFF: Final = """
import pytest
from labgrid.driver import ExecutionError

def test_its_end(target):
    shell = target.get_driver("ShellDriver")
    assert target.get_driver("FileTransferProtocol") is shell
    with pytest.raises(ExecutionError, match="switched off"):
        shell.run("poweroff -f")
"""


@pytest.fixture(scope="module")
def daemon(
    rust_virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    rig = rig_folder()
    folder = tmp_path_factory.mktemp("labgrid")
    lab = folder / "lab"
    make_tree(lab / "root", rig / "busybox")
    (lab / "root" / "init").write_text(INIT)
    (lab / "root" / "init").chmod(0o755)
    shutil.copy(rig / "linux", lab / "linux")
    with contextlib.ExitStack() as running:
        with pytest.MonkeyPatch.context() as environment:
            for name in [*filter(_traces, os.environ)]:  # the driver, not the daemon
                environment.delenv(name)
            daemon = RunningDaemon({"lab": lab}, folder / "s", rust_virtiofsd)
            running.enter_context(daemon)
        yield daemon


def _traces(name: str) -> bool:
    return name.startswith("COVERAGE_")


@pytest.fixture
def environment(daemon: RunningDaemon) -> dict[str, str]:
    """Return the variables of a desk or a host where the extra is installed."""
    return dict(os.environ) | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "PYTEST_ADDOPTS": "-W error -p no:cacheprovider",
        "VUSERD_SOCKET": daemon.socket,
        "LG_COORDINATOR": f"{DESK}:20408",
        "LAB_HOST": HOST,
        "LAB_SOCKET": daemon.socket,
    }


def run(block: Block, folder: Path, environment: Mapping[str, str], *within: str) -> str:
    done = subprocess.run(
        [*within, *block.command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    block.check(done.returncode, done.stdout)
    return done.stdout


def test_one_machine(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "test_end.py").write_text(SWITCHED_OFF)
    assert "3 passed" in run(ONE_MACHINE, tmp_path, environment)


# --- a desk and a host of a lab, each a network namespace -----------------------------------------


def command(*words: str) -> None:
    subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[list[str], list[str]]]:
    """Yield what runs a command at the desk, and on the host: a cable is between them."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces take root, and the command ip")
    names = [f"vuserd-{which}-{os.getpid()}" for which in ("desk", "host")]
    with contextlib.ExitStack() as made:
        for name in names:
            command("ip", "netns", "add", name)
            made.callback(command, "ip", "netns", "delete", name)
            command("ip", "-n", name, "link", "set", "lo", "up")
        desk, host = names
        ends = ("desk", "netns", desk, "type", "veth", "peer", "host", "netns", host)
        command("ip", "link", "add", *ends)
        for name, end, address in ((desk, "desk", DESK), (host, "host", HOST)):
            command("ip", "-n", name, "address", "add", f"{address}/24", "dev", end)
            command("ip", "-n", name, "link", "set", end, "up")
        yield (
            ["nsenter", f"--net=/run/netns/{desk}", "--"],
            ["nsenter", f"--net=/run/netns/{host}", "--"],
        )


@contextlib.contextmanager
def service(
    words: list[str], folder: Path, environment: Mapping[str, str], ready: str
) -> Iterator[None]:
    """Run a command for the block's time, once it has written that it is ready."""
    log = folder / f"{len([*folder.iterdir()])}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait(lambda: ready in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        _wait(lambda: not _has_members(process.pid))


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _has_members(group: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def ssh(namespaces: tuple[list[str], list[str]], tmp_path: Path) -> Iterator[Path]:
    """Yield a folder whose ssh knows the host, and has a key for it."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    real = shutil.which("ssh")
    if sshd is None or real is None:
        pytest.skip("no ssh and sshd on this machine")
    folder = tmp_path / "ssh"
    folder.mkdir()
    for name in ("desk", "host"):
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name))
    (folder / "known").write_text(f"{HOST} {(folder / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"IdentityFile {folder}/desk\nIdentitiesOnly yes\nUser root\n"
        f"UserKnownHostsFile {folder}/known\n"
    )
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {real} -F {folder}/config "$@"\n')
    (folder / "ssh").chmod(0o755)
    (folder / "sshd_config").write_text(
        f"ListenAddress {HOST}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/desk.pub\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n"
    )
    os.makedirs("/run/sshd", exist_ok=True)  # where sshd has itself confined
    served = [*namespaces[1], sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
    with service(served, folder, os.environ, "Server listening on"):
        yield folder


def test_a_lab(
    namespaces: tuple[list[str], list[str]],
    ssh: Path,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    desk, host = namespaces
    services = {name: value for name, value in environment.items() if not _traces(name)}
    at_desk = environment | {"PATH": f"{ssh}:{environment['PATH']}"}
    del at_desk["VUSERD_SOCKET"]
    run_at = {name: tmp_path / name for name in ("coordinator", "exporter", "desk")}
    for folder in run_at.values():
        folder.mkdir()
    test = ONE_MACHINE.text.partition("cat >test_board.py")[2].partition("<<'EOF'\n")[2]
    (run_at["desk"] / "test_board.py").write_text(test.partition("EOF\n")[0])
    (run_at["desk"] / "test_way.py").write_text(THROUGH_SSH)
    with contextlib.ExitStack() as lab:
        coordinator = [*desk, *COORDINATOR.command]
        lab.enter_context(
            service(coordinator, run_at["coordinator"], services, "Coordinator ready")
        )
        exporter = [*host, *EXPORTER.command]
        lab.enter_context(service(exporter, run_at["exporter"], services, "creating poll task"))
        run(PLACE, run_at["desk"], at_desk, *desk)
        assert "3 passed" in run(REMOTE, run_at["desk"], at_desk, *desk)
