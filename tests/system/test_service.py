"""vuserd as a service: installed by make install in a Debian 13, run by its systemd."""

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.e2e.rounds import LONG, rounds
from tests.system.checkout import SOURCE
from tests.system.installed import (
    CONFIGURATION,
    PYTHON,
    gets_the_kernel,
    installed,
    main_pid,
    under_load,
)
from tests.system.machine import Machine, MachineError, why_not
from vuserd.backend import landlock

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(600 + 2 * rounds(0)),
]

_DROP_INS = "/etc/systemd/system/vuserd.service.d"
_RESTARTS = rounds(10)
_DOCUMENTS = "/usr/local/share/doc/vuserd"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Yield a machine with vuserd installed, and a user named rig."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with installed() as machine:
        yield machine


def _wait(what: str, happened: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def _signal(machine: Machine, name: str, process: int | str) -> None:
    machine.run(f"kill -{name} {process}")


def _backend(machine: Machine, export: str = "kernels") -> int:
    exports = json.loads(machine.run(["vuserctl", "--json", "exports"]))
    [pid] = [entry["backend"]["pid"] for entry in exports if entry["name"] == export]
    return int(pid)


def _asked_by_others(machine: Machine) -> int:
    """Return how many requests the daemon has of other clients than the one that looks."""
    clients = json.loads(machine.run(["vuserctl", "--json", "status"]))["clients"]
    return sum(int(client["in_flight"]) for client in clients) - 1


def _print_exposure(machine: Machine, unit: str) -> None:
    """Look at a unit while it runs: its exposure is 1.0 at most."""
    said = machine.run(["systemd-analyze", "security", "--no-pager", "--threshold=10", unit])
    print(said.splitlines()[-1])


def _settings(machine: Machine, text: str) -> None:
    """Run the service with these settings in a drop-in, or with none."""
    if text:
        machine.run(f"mkdir -p {_DROP_INS}; cat >{_DROP_INS}/test.conf", given=text)
    else:
        machine.run(f"rm -rf {_DROP_INS}")
    machine.run("systemctl daemon-reload; systemctl restart vuserd.service")


def test_it_runs_with_no_checkout(machine: Machine) -> None:
    assert machine.run(f"grep -rl '{SOURCE}' /usr/local || true") == ""
    machine.run(["rm", "-r", SOURCE])
    assert machine.run(["vuserd", "--version"], user="rig").startswith("vuserd ")
    for place in ("bash-completion/completions", "man/man1"):
        assert "vuserctl" in machine.run(["ls", f"/usr/local/share/{place}"])
    units = "vuserd.socket vuserd.service vuserd-backend@srv-kernels.socket"
    assert machine.run(f"systemd-analyze verify --man=no {units}") == ""


def test_the_first_connection_starts_it(machine: Machine) -> None:
    machine.run("systemctl enable --now vuserd.socket")
    assert machine.run("systemctl is-active vuserd.service || true").strip() == "inactive"
    machine.run("cd; vuserctl get kernels:/vmlinuz; cmp vmlinuz /srv/kernels/vmlinuz", user="rig")
    assert machine.run("systemctl is-active vuserd.service").strip() == "active"
    shown = machine.run("systemctl show -P StatusText vuserd.service").strip()
    assert shown == "1 of 1 exports up"


def test_it_is_confined_while_it_serves(machine: Machine) -> None:
    gets_the_kernel(machine)
    _print_exposure(machine, "vuserd.service")
    for process in (main_pid(machine), _backend(machine)):
        status = machine.run(["cat", f"/proc/{process}/status"])
        lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert lines["Uid"].split() == [machine.run("id -u vuserd").strip()] * 4
        assert int(lines["CapBnd"], 16) == int(lines["CapEff"], 16) == 0
        assert (lines["NoNewPrivs"], lines["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize("drop_in", ["homes.conf", "any-file.conf"])
def test_a_drop_in_gives_more_to_read(machine: Machine, drop_in: str) -> None:
    folder = "/home/lab" if drop_in == "homes.conf" else "/srv/private"
    machine.run(f"mkdir -m 755 {folder}; cp /srv/kernels/vmlinuz {folder}")
    if drop_in == "any-file.conf":
        machine.run(f"chmod 700 {folder}; chmod 600 {folder}/vmlinuz")
    export = f'[[export]]\nname = "more"\npath = "{folder}"\nusers = ["*"]\n'
    machine.run("cat >/etc/vuserd/vuserd.toml", given=CONFIGURATION + export)
    machine.run("systemctl restart vuserd.service")
    denied = (
        "gone: /home/lab: permission denied" if drop_in == "homes.conf" else "EACCES|BACKEND_DOWN"
    )
    with pytest.raises(MachineError, match=denied):
        gets_the_kernel(machine, "more")
    gets_the_kernel(machine)  # the other export is served
    if drop_in == "homes.conf":
        assert denied in machine.journal("--unit=vuserd.service", "--priority=warning")
    machine.run(f"mkdir -p {_DROP_INS}; cp {_DOCUMENTS}/{drop_in} {_DROP_INS}")
    machine.run("systemctl daemon-reload; systemctl restart vuserd.service")
    gets_the_kernel(machine, "more")
    _print_exposure(machine, "vuserd.service")
    machine.run("cat >/etc/vuserd/vuserd.toml", given=CONFIGURATION)
    _settings(machine, "")


def test_metrics_are_written_where_a_drop_in_allows_it(machine: Machine) -> None:
    file = "/var/lib/vuserd/vuserd.prom"
    machine.run("cat >/etc/vuserd/vuserd.toml", given=f'metrics_file = "{file}"\n{CONFIGURATION}')
    machine.run(f"mkdir -p {_DROP_INS}; cp {_DOCUMENTS}/metrics.conf {_DROP_INS}")
    machine.run("systemctl daemon-reload; systemctl restart vuserd.service")
    gets_the_kernel(machine)
    _wait("the file", lambda: "vuserd_export_up" in machine.run(f"cat {file} || true"))
    _print_exposure(machine, "vuserd.service")
    machine.run("cat >/etc/vuserd/vuserd.toml", given=CONFIGURATION)
    _settings(machine, "")


def test_an_export_is_for_its_users(machine: Machine) -> None:
    machine.run("useradd --create-home other")
    assert "kernels" in machine.run(["vuserctl", "exports"], user="rig")
    assert "kernels" not in machine.run(["vuserctl", "exports"], user="other")
    with pytest.raises(MachineError, match="UNKNOWN_EXPORT"):
        machine.run(["vuserctl", "stat", "kernels:/vmlinuz"], user="other")


def test_a_backend_that_is_killed_is_replaced(machine: Machine) -> None:
    first = _backend(machine)
    _signal(machine, "KILL", first)
    gets_the_kernel(machine)
    assert _backend(machine) != first


def test_a_daemon_that_is_killed_is_replaced(machine: Machine) -> None:
    first, backend = main_pid(machine), _backend(machine)
    _signal(machine, "KILL", first)
    gets_the_kernel(machine)
    assert main_pid(machine) != first
    assert machine.run(f"test ! -e /proc/{backend} && echo gone").strip() == "gone"
    assert "status=9/KILL" in machine.journal("--unit=vuserd.service")


def test_the_watchdog_replaces_one_that_hangs(machine: Machine) -> None:
    _settings(machine, "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    first = main_pid(machine)
    time.sleep(4)
    assert main_pid(machine) == first  # it says that it lives
    _signal(machine, "STOP", first)
    gets_the_kernel(machine)
    assert main_pid(machine) != first
    assert "Watchdog timeout" in machine.journal("--unit=vuserd.service")
    _settings(machine, "")


def test_a_reload_changes_what_is_served(machine: Machine) -> None:
    is_active = "systemctl is-active vuserd.service"
    pid = main_pid(machine)
    more = CONFIGURATION + '[[export]]\nname = "again"\npath = "/srv"\nusers = ["*"]\n'
    machine.run("cat >/etc/vuserd/vuserd.toml", given=more)
    machine.run("systemctl reload vuserd.service")
    machine.run("vuserctl cat again:/kernels/vmlinuz | cmp - /srv/kernels/vmlinuz", user="rig")

    machine.run("echo 'nonsense = 1' >>/etc/vuserd/vuserd.toml")
    with pytest.raises(MachineError):
        machine.run("systemctl reload vuserd.service")
    errors = machine.journal("--unit=vuserd.service", "--priority=err")
    assert "the configuration was not applied: 1 mistake" in errors
    # What it is, the daemon told the vuserctl that asked for the reload.
    assert "export.nonsense: there is no such key" in machine.journal("--unit=vuserd.service")
    machine.run("vuserctl cat again:/kernels/vmlinuz | cmp - /srv/kernels/vmlinuz", user="rig")

    machine.run("cat >/etc/vuserd/vuserd.toml", given=CONFIGURATION)
    _signal(machine, "HUP", pid)
    _wait("the change", lambda: "again" not in machine.run(["vuserctl", "exports"]))
    _wait("the end of it", lambda: machine.run(is_active, check=False).strip() == "active")
    assert main_pid(machine) == pid
    said = machine.journal("--unit=vuserd.service", "--output=cat")
    assert said.count("Reloading vuserd.service") + said.count("Reloaded vuserd.service") >= 2


def test_an_end_that_takes_long_is_waited_for(machine: Machine) -> None:
    _settings(machine, "[Service]\nTimeoutStopSec=1\n")
    first, backend = main_pid(machine), _backend(machine)
    _signal(machine, "STOP", backend)
    with machine.start("vuserctl stat kernels:/vmlinuz", user="rig") as asking:
        _wait("the call", lambda: _asked_by_others(machine))
        began = time.monotonic()
        machine.run("systemctl restart vuserd.service")
        took = time.monotonic() - began
        said, _ = asking.communicate(timeout=20)
    assert "SHUTTING_DOWN" in said
    assert took > 3
    assert f"vuserd[{first}]: calls in progress were cut off" in machine.journal()
    assert "State 'stop-sigterm' timed out" not in machine.journal("--unit=vuserd.service")
    _settings(machine, "")
    gets_the_kernel(machine)


def test_no_restart_refuses_a_connection_or_loses_a_reply(machine: Machine) -> None:
    machine.run("systemctl reset-failed vuserd.service")  # it may start so often again
    gets_the_kernel(machine)
    with under_load(machine, pause=0.0 if LONG else 0.02) as counts:
        began = time.monotonic()
        machine.run(
            f"for i in $(seq {_RESTARTS}); do systemctl restart vuserd.service; done",
            timeout=100 + 2 * _RESTARTS,
        )
        took = time.monotonic() - began
    print(f"{_RESTARTS} restarts in {took:.1f} s: {counts}")
    assert set(counts) <= {"connections", "replies", "unsent"}, counts
    assert counts["replies"] > 10 * _RESTARTS
    assert counts["connections"] > _RESTARTS


def test_the_journal_has_priorities_and_fields(machine: Machine) -> None:
    entries = [
        json.loads(line)
        for line in machine.journal("--unit=vuserd.service", "--output=json").splitlines()
    ]
    ours = [entry for entry in entries if entry.get("LOGGER", "").startswith("vuserd")]
    assert {entry["SYSLOG_IDENTIFIER"] for entry in ours} == {"vuserd"}
    assert {entry["PRIORITY"] for entry in ours} >= {"3", "4", "6"}
    assert all(entry["CODE_FILE"].startswith("/usr/local/lib/vuserd/") for entry in ours)
    assert any("kernels is up" in entry["MESSAGE"] for entry in ours)
    assert not any("Traceback" in str(entry["MESSAGE"]) for entry in entries)


def test_a_backend_with_a_unit_of_its_own_is_adopted(machine: Machine) -> None:
    unit = "vuserd-backend@srv-kernels"
    adopted = """
[[export]]
name = "adopted"
socket = "/run/vuserd/backend/srv-kernels.sock"
users = ["*"]
"""
    machine.run("cat >/etc/vuserd/vuserd.toml", given=CONFIGURATION + adopted)
    machine.run(f"systemctl enable --now {unit}.socket; systemctl restart vuserd.service")
    gets_the_kernel(machine, "adopted")
    _print_exposure(machine, f"{unit}.service")
    first = main_pid(machine, f"{unit}.service")
    user, daemon = (
        machine.run(["stat", "--format=%u", f"/proc/{process}"])
        for process in (first, main_pid(machine))
    )
    assert user != daemon
    seen = set(machine.run(f"ls /proc/{first}/root/").split())
    assert "export" in seen
    assert not seen & {"bin", "boot", "home", "srv"}
    _signal(machine, "KILL", first)
    gets_the_kernel(machine, "adopted")
    assert main_pid(machine, f"{unit}.service") != first
    for arguments in ("kernels 8", f"adopted 8 {unit}.service"):
        waits = machine.run(f"{PYTHON} /root/replacements.py {arguments}")
        print(
            f"replacing the backend of {arguments.split()[0]}: median, longest: {waits.strip()} ms"
        )
        assert float(waits.split()[0]) < 5000
    machine.run("cat >/etc/vuserd/vuserd.toml", given=CONFIGURATION)
    machine.run(f"systemctl disable --now {unit}.socket; systemctl restart vuserd.service")


def test_a_rig_in_a_network_namespace_takes_a_drop_in(machine: Machine) -> None:
    rig = '[[rig]]\nnetns = "lab"\nexports = ["kernels"]\n'
    machine.run("ip netns add lab")
    machine.run("cat >/etc/vuserd/vuserd.toml", given=CONFIGURATION + rig)
    machine.run(f"mkdir -p {_DROP_INS}; cp {_DOCUMENTS}/rigs.conf {_DROP_INS}")
    machine.run("systemctl daemon-reload; systemctl restart vuserd.service")
    read = "vuserctl --socket @vuserd cat kernels:/vmlinuz | cmp - /srv/kernels/vmlinuz"
    machine.run(["ip", "netns", "exec", "lab", "sh", "-c", read])
    _print_exposure(machine, "vuserd.service")
    status = machine.run(["cat", f"/proc/{_backend(machine)}/status"])
    assert re.search("^CapEff:\t0+$", status, re.MULTILINE), "the backend has what the daemon has"
    machine.run("ip netns delete lab")
    machine.run("cat >/etc/vuserd/vuserd.toml", given=CONFIGURATION)
    _settings(machine, "")


def test_several_listeners_with_names(machine: Machine) -> None:
    """By systemd-socket-activate, which needs no unit and no manager."""
    serve = (
        "systemd-socket-activate --listen=/tmp/a.sock --listen=/tmp/b.sock --fdname=one:two"
        " vuserd serve --export files=/srv/kernels"
    )
    with machine.start(f"exec {serve}") as activating:
        for name in ("a", "b"):
            _wait(name, partial(machine.run, f"ls /tmp/{name}.sock 2>/dev/null || true"))
            get = f"vuserctl --socket /tmp/{name}.sock cat files:/vmlinuz"
            machine.run(f"{get} | cmp - /srv/kernels/vmlinuz")
        pid = machine.run(["sh", "-c", "grep -l '^vuserd' /proc/[0-9]*/comm | tail -n 1"])
        _signal(machine, "TERM", pid.split("/")[2])
        said, _ = activating.communicate(timeout=20)
    for name in ("/tmp/a.sock, from the service manager (one)", "b.sock, from the service manager"):
        assert name in said


def test_a_user_has_one_of_their_own(machine: Machine) -> None:
    machine.run("loginctl enable-linger rig")
    number = machine.run("id -u rig").strip()
    manager = f"test ! -S /run/user/{number}/bus || systemctl is-active user@{number}.service"
    _wait("the user manager", lambda: machine.run(manager, check=False).strip() == "active")
    configuration = '[[export]]\nname = "mine"\npath = "/srv/kernels"\n'
    machine.run(
        "cd; mkdir -p .config/vuserd; cat >.config/vuserd/vuserd.toml",
        given=configuration,
        user="rig",
    )
    ours = ["systemctl", "--user"]
    units = ["/usr/local/lib/systemd/user/vuserd.service"]
    assert (
        machine.run(["systemd-analyze", "--user", "--man=no", "verify", *units], user="rig") == ""
    )
    machine.run([*ours, "enable", "--now", "vuserd.socket"], user="rig")
    shown = machine.run([*ours, "is-active", "vuserd.service"], user="rig", check=False)
    assert shown.strip() == "inactive"
    gets_the_kernel(machine, "mine")
    first = machine.run([*ours, "show", "-P", "MainPID", "vuserd.service"], user="rig").strip()
    _signal(machine, "KILL", first)
    gets_the_kernel(machine, "mine")
    backend = json.loads(machine.run(["vuserctl", "--json", "exports"], user="rig"))[0]["backend"]
    command = machine.run(["cat", f"/proc/{backend['pid']}/cmdline"])
    # Landlock shuts it in where the kernel has that, which is this machine's own.
    assert f"--sandbox={'none' if landlock.is_available() else 'namespace'}" in command
    machine.run([*ours, "restart", "vuserd.service"], user="rig")
    gets_the_kernel(machine, "mine")
    fields = ["_SYSTEMD_USER_UNIT=vuserd.service", "PRIORITY=6", "SYSLOG_IDENTIFIER=vuserd"]
    assert "mine is up" in machine.journal(*fields)
    machine.run([*ours, "disable", "--now", "vuserd.socket", "vuserd.service"], user="rig")


@pytest.mark.parametrize("attack", ["linger", "frames", "descriptors"])
def test_no_user_without_rights_holds_it_up(machine: Machine, attack: str) -> None:
    """The service has its limits from its unit, and is as large after the attack as before."""
    machine.run("id -u mallory || useradd --create-home mallory")
    gets_the_kernel(machine)
    daemon = main_pid(machine)
    before = _resident(machine, daemon)
    command = [PYTHON, "/srv/attacks.py", attack]
    with machine.start(command, user="mallory") as attacking:
        assert attacking.stdout is not None
        said = attacking.stdout.readline()
        assert said == "under way\n", said + attacking.stdout.read()
        began = time.monotonic()
        gets_the_kernel(machine)
        took = time.monotonic() - began
        grown = _resident(machine, daemon) - before
        attacking.communicate("")
    assert took < 20
    assert grown < 128 << 20  # of unfinished requests a user may have half of that
    assert main_pid(machine) == daemon
    gets_the_kernel(machine)


def test_a_backend_that_was_broken_into_sees_nothing_of_the_daemons(machine: Machine) -> None:
    """It has the same user, here without the sandbox of the unit, which takes more from it."""
    daemon = main_pid(machine)
    for file in ("fd/0", "mem", "environ", "maps", "root/etc/passwd"):
        reading = f"head -c 1 /proc/{daemon}/{file} 2>&1 || true"
        assert "Permission denied" in machine.run(reading, user="vuserd"), file
    assert "Permission denied" in machine.run(f"ls /proc/{daemon}/fd 2>&1 || true", user="vuserd")


def _resident(machine: Machine, process: int) -> int:
    return int(machine.run(["cat", f"/proc/{process}/statm"]).split()[1]) * 4096
