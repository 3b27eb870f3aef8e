"""The Debian package in a Debian 13: installed, upgraded while it serves, removed and purged."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import REPOSITORY
from tests.system.installed import CONFIGURATION, gets_the_kernel, main_pid, under_load
from tests.system.machine import Machine, MachineError, why_not

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the package of this checkout, built once."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("deb")
    command = [str(REPOSITORY / "tools" / "deb"), str(folder)]
    subprocess.run(command, env=os.environ | {"LINTIAN": "no"}, check=True, timeout=500)
    [package] = folder.glob("vuserd_*_all.deb")
    return package


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    """Yield a machine with something to serve and the package, which is not installed yet.

    There is an older version, too, which differs in its number alone.
    """
    with Machine() as machine:
        first = machine.root / "root" / "first"
        subprocess.run(["dpkg-deb", "-R", str(package), str(first)], check=True)
        control = first / "DEBIAN" / "control"
        text = control.read_text()
        [version] = [line for line in text.splitlines() if line.startswith("Version: ")]
        control.write_text(text.replace(version, "Version: 0.0.1~test"))
        command = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(first)]
        subprocess.run([*command, str(machine.root / "root" / "old.deb")], check=True)
        shutil.rmtree(first)
        shutil.copy(package, machine.root / "root" / "new.deb")
        shutil.copy(Path(__file__).with_name("load.py"), machine.root / "root")
        kernels = machine.root / "srv" / "kernels"
        kernels.mkdir()
        (kernels / "vmlinuz").write_bytes(os.urandom(4 << 20))
        machine.run("useradd --create-home --shell /bin/sh rig")
        yield machine


def _apt(machine: Machine, *words: str) -> str:
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    apt = ["apt-get", "-qq", "-y", "-o", "Dpkg::Use-Pty=0", *words]
    return machine.run([*environment, *apt], timeout=300)


def _left(machine: Machine) -> list[str]:
    return machine.run("find /etc /usr /var/lib /run -xdev -name '*vuserd*'").split()


def test_it_is_installed_by_one_command_and_waits_at_its_socket(machine: Machine) -> None:
    assert _left(machine) == []
    _apt(machine, "update")
    _apt(machine, "install", "--no-install-recommends", "/root/old.deb")
    for command in ("vuserd", "vuserctl"):
        assert machine.run([command, "--version"], user="rig").startswith(f"{command} ")
    assert machine.run("systemctl is-active vuserd.socket vuserd.service || true").split() == [
        "active",
        "inactive",
    ]
    machine.run(["cp", "/dev/stdin", "/etc/vuserd/vuserd.toml"], given=CONFIGURATION)
    gets_the_kernel(machine)
    assert machine.run("systemctl is-active vuserd.service").strip() == "active"
    told = machine.run(["systemctl", "show", "-P", "FragmentPath", "vuserd.service"]).strip()
    assert told == "/usr/lib/systemd/system/vuserd.service"
    assert machine.run("systemd-analyze verify --man=no vuserd.socket vuserd.service") == ""
    machine.run("systemctl reload vuserd.service; vuserd check --config /etc/vuserd/vuserd.toml")


def test_an_upgrade_under_load_refuses_nobody(machine: Machine) -> None:
    daemon = main_pid(machine)
    with under_load(machine, "/usr/bin/python3", pause=0.05) as counts:
        _apt(machine, "install", "/root/new.deb")
    print(f"an upgrade: {counts}")
    assert set(counts) <= {"connections", "replies", "unsent"}, counts
    assert counts["replies"] > 1000
    assert main_pid(machine) not in (0, daemon)
    assert machine.run(["cat", "/etc/vuserd/vuserd.toml"]) == CONFIGURATION
    gets_the_kernel(machine)


def test_it_is_removed_and_purged(machine: Machine) -> None:
    machine.run("mkdir -p /var/lib/vuserd; touch /var/lib/vuserd/vuserd.prom")
    _apt(machine, "remove", "vuserd")
    with pytest.raises(MachineError):
        machine.run(["systemctl", "cat", "vuserd.socket"])
    assert machine.run("ls /run/vuserd/vuserd.sock 2>/dev/null || true") == ""
    assert machine.run(["cat", "/etc/vuserd/vuserd.toml"]) == CONFIGURATION
    _apt(machine, "purge", "vuserd")
    assert [path for path in _left(machine) if not path.startswith("/run/vuserd")] == []
    assert machine.run("systemctl --failed --plain --no-legend") == ""
