"""make install, rollback and uninstall in a Debian 13, while its systemd runs the daemon."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.checkout import SOURCE
from tests.system.installed import gets_the_kernel, installed, main_pid, make, under_load
from tests.system.machine import Machine, MachineError, why_not

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(600)]

_LIBRARY = "/usr/local/lib/vuserd"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Yield a machine with vuserd installed, its checkout still there, and clients that wait."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with installed() as machine:
        shutil.copy(Path(__file__).with_name("probes.py"), machine.root / "root")
        machine.run("systemctl enable --now vuserd.socket")
        yield machine


def _version(machine: Machine, link: str = "current") -> str:
    return machine.run(["readlink", f"{_LIBRARY}/{link}"]).strip()


def _files(machine: Machine) -> str:
    """Return all that is installed, each file with its time and each link with its target."""
    return machine.run("find /usr/local -not -type d -printf '%p %T@ %l\n' | sort")


def test_a_package_knows_nothing_of_where_it_was_made(machine: Machine) -> None:
    made = "/var/tmp/package"
    make(machine, f"install DESTDIR={made} PREFIX=/usr")
    assert machine.run(f"grep -rlE '{made}|{SOURCE}' {made} || true") == ""
    assert machine.run(f"find {made}/usr/lib/systemd/system -name vuserd.service") != ""
    make(machine, f"uninstall DESTDIR={made} PREFIX=/usr")
    left = machine.run(f"cd {made}; find . -type f -o -type l").split()
    assert left == ["./etc/vuserd/vuserd.toml"]


def test_an_installation_under_a_service_that_runs_restarts_it(machine: Machine) -> None:
    """Clients connect and read, and vuserctl is looked for and run, all the time."""
    gets_the_kernel(machine)
    daemon, before = main_pid(machine), _version(machine)
    idle, used = f"{_LIBRARY}/0.0.1-idle", f"{_LIBRARY}/0.0.2-used"
    machine.run(f"mkdir {idle} {used}; touch {SOURCE}/docs/new.md")
    machine.run(
        f"sed -i 's/^Description=.*/Description=new/' {SOURCE}/systemd/system/vuserd.service"
    )
    using = ["bash", "-c", f"exec -a {used}/bin/python sleep 600"]
    probing = ["python3", "/root/probes.py", "/usr/local/bin/vuserctl", "--version"]
    with machine.start(using), machine.start(probing) as probes:
        assert probes.stdout is not None
        assert probes.stdout.readline() == "under way\n"
        with under_load(machine, pause=0.05) as counts:  # to build takes a processor, too
            said = make(machine, "install")
        looked = json.loads(probes.communicate("", timeout=60)[0])
        machine.run(["pkill", "-f", f"^{used}"])
    print(f"an upgrade: {counts}, {looked}")
    assert set(counts) <= {"connections", "replies", "unsent"}, counts
    assert counts["replies"] > 1000
    assert set(looked) == {"found", "ran"}, looked
    assert looked["found"] > 1000
    assert "vuserd.service was restarted" in said
    assert main_pid(machine) != daemon
    assert (_version(machine) != before, _version(machine, "former")) == (True, before)
    shown = set(machine.run(["ls", _LIBRARY]).split())
    assert shown == {"current", "former", before, _version(machine), "0.0.2-used"}
    assert f"{used} stays" in said
    gets_the_kernel(machine)


def test_the_former_version_comes_back_with_its_files(machine: Machine) -> None:
    daemon, before, former = main_pid(machine), _version(machine), _version(machine, "former")
    new = "/usr/local/share/doc/vuserd/new.md"
    described = "systemctl show -P Description vuserd.service"
    assert machine.run(f"{described}; test -e {new}") == "new\n"
    assert "vuserd.service was restarted" in make(machine, "rollback")
    assert (_version(machine), _version(machine, "former")) == (former, before)
    assert machine.run(f"{described}; test ! -e {new}").startswith("vuserd, host files")
    assert main_pid(machine) != daemon
    gets_the_kernel(machine)
    make(machine, "rollback")
    assert (_version(machine), _version(machine, "former")) == (before, former)
    gets_the_kernel(machine)


def test_a_build_that_fails_changes_nothing(machine: Machine) -> None:
    daemon, files = main_pid(machine), _files(machine)
    with pytest.raises(MachineError, match="not installed: nothing was changed"):
        machine.run(f"cd {SOURCE}; PIP_NO_INDEX=1 make install", timeout=300)
    assert _files(machine) == files
    assert main_pid(machine) == daemon


def test_no_interpreter_is_installed_that_the_service_cannot_see(machine: Machine) -> None:
    machine.run("cp /usr/bin/python3 /root/python3")
    with pytest.raises(MachineError, match="hidden from the service"):
        make(machine, "install PYTHON=/root/python3 DESTDIR=/var/tmp/hidden")


def test_uninstalled_it_leaves_what_people_wrote_and_names_it(machine: Machine) -> None:
    drop_ins = "/etc/systemd/system/vuserd.service.d"
    machine.run(f"mkdir {drop_ins}; touch {drop_ins}/mine.conf")
    said = make(machine, "uninstall")
    left = machine.run("find /usr/local /etc/systemd /run/vuserd -name '*vuser*'").split()
    assert set(left) - {"/run/vuserd"} == {drop_ins}
    assert "kernels" in machine.run("cat /etc/vuserd/vuserd.toml")
    for kept in ("/etc/vuserd", drop_ins, "the user vuserd"):
        assert f"{kept} stays" in said
