"""Rigs and rights: which client sees which export, and namespaces that come and go."""

import contextlib
import os
import pty
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from pyroute2 import netns

from tests.attacks.threats import Who, threat
from tests.e2e.visiting import ROOT, User, Visitor, namespace
from tests.running import REPOSITORY, RunningDaemon
from vuserd.client.calls import Call
from vuserd.client.sync_client import Client
from vuserd.listen.namespaces import unix_socket_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces")

ATTEMPTS: Final = 1_000
LAB: Final = 62_001
USERS: Final = {
    "root": ROOT,
    "named": User(61_001, 61_001),
    "member": User(61_002, 61_002, [LAB, 61_500]),
    "primary": User(61_003, LAB),
    "stranger": User(61_004, 61_004),
}
#: The users who see an export from the host, beside root.
EXPORTS: Final = {
    "for-root": set[str](),
    "for-named": {"named"},
    "for-lab": {"member", "primary"},
    "for-both": {"named", "member", "primary"},
    "for-all": {"named", "member", "primary", "stranger"},
}
RIGS: Final = {"a": {"for-named", "for-all"}, "b": {"for-lab", "for-both"}}
RIGHTS: Final = {
    "for-root": "",
    "for-named": "users = [61001]",
    "for-lab": "groups = [62001]",
    "for-both": "users = [61001]\ngroups = [62001]",
    "for-all": 'users = ["*"]',
}


def configuration(folder: Path, backend: str, rigs: str) -> Path:
    lines = [f'backend = "{backend}"', rigs]
    for name, rights in RIGHTS.items():
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
        lines.append(f'[[export]]\nname = "{name}"\npath = "{folder / name}"\n{rights}')
    path = folder / "vuserd.toml"
    path.write_text("\n".join(lines))
    return path


def rig(name: str, exports: set[str], address: str = "@vuserd") -> str:
    listed = ", ".join(f'"{export}"' for export in sorted(exports))
    return f'[[rig]]\nnetns = "{name}"\nexports = [{listed}]\nsocket = "{address}"'


@contextlib.contextmanager
def serving(folder: Path, backend: str, rigs: str) -> Iterator[RunningDaemon]:
    """Serve on a socket that all users may connect to."""
    config = configuration(folder, backend, rigs)
    with (
        tempfile.TemporaryDirectory() as public,  # pytest's own folders are for one user
        RunningDaemon({}, Path(public) / "s", None, "--config", str(config)) as daemon,
    ):
        os.chmod(public, 0o755)
        os.chmod(daemon.socket, 0o666)
        with Client.connect(daemon.socket) as client:
            client.exports()  # answered once all is up, the rigs too
        yield daemon


@threat(
    "rig-exports",
    who=Who.RIG,
    against="exports that are not of its rig",
    does="asks for whatever there is, and for what only managers may, as root of its namespace",
    promise="it sees the exports of its rig that are for its user, and manages nothing",
)
@pytest.mark.slow
def test_each_sees_what_it_may_and_nothing_else(tmp_path: Path, rust_virtiofsd: str) -> None:
    choose = random.Random(20261123)
    with contextlib.ExitStack() as stack:
        names = {rig: stack.enter_context(namespace(rig)) for rig in RIGS}
        rigs = "\n".join(rig(names[key], exports) for key, exports in RIGS.items())
        daemon = stack.enter_context(serving(tmp_path, rust_virtiofsd, rigs))
        visitors = {
            (user, place): stack.enter_context(
                Visitor(who, "" if place else daemon.socket, names.get(place, ""))
            )
            for user, who in USERS.items()
            for place in ("", *RIGS)
        }

        def visible(user: str, place: str) -> set[str]:
            behind = RIGS.get(place, set(EXPORTS))
            return {name for name in behind if user == "root" or user in EXPORTS[name]}

        for (user, place), visitor in visitors.items():
            assert visitor.ask("exports") == ("ok", sorted(visible(user, place)))
            managing = visitor.ask("reload", None)
            assert managing == (
                ("ok", []) if (user, place) == ("root", "") else ("error", "DENIED")
            )
        attempts = {True: 0, False: 0}
        for _ in range(ATTEMPTS):
            (user, place), visitor = choose.choice(list(visitors.items()))
            export = choose.choice(list(EXPORTS))
            method, path, right = choose.choice(
                [
                    ("stat", "/file", len(export)),
                    ("read", "/file", export),
                    ("fetch", "/file", export),
                    ("readdir", "/", ["file"]),
                    ("walk", "/", ["file"]),
                    ("read", "/../../file", export),
                ]
            )
            may = export in visible(user, place)
            more = [0, 100] if method == "read" else []
            answer = visitor.ask(method, export, path, *more)
            assert answer == (("ok", right) if may else ("error", "UNKNOWN_EXPORT")), (
                user,
                place,
                export,
                method,
            )
            attempts[may] += 1
        assert min(attempts.values()) > ATTEMPTS // 5
        # What one sees of the daemon itself.
        for (user, place), visitor in visitors.items():
            kind, status = visitor.ask("status")
            assert kind == "ok"
            assert {each["name"] for each in status["exports"]} == visible(user, place)
            manages = (user, place) == ("root", "")
            uids = {client["uid"] for client in status["clients"]}
            assert uids == ({who.uid for who in USERS.values()} if manages else {USERS[user].uid})
            assert manages or len(status["clients"]) == 1  # nobody of another rig, root neither
            assert manages == ("requests" in status)
            _, known = visitor.ask("rigs")
            assert [each["netns"] for each in known] == (
                list(names.values()) if manages else [names[place]] if place else []
            )
    refused = [line for line in daemon.log.splitlines() if "refused to uid" in line]
    assert {line.split("uid ")[1].split()[0] for line in refused} >= {"61001", "61004"}
    assert len(refused) <= 3 * len(USERS)


@threat(
    "rig-socket",
    who=Who.RIG,
    against="another rig",
    does="connects to the abstract address of another rig, and of the host",
    promise="there is no such address in its namespace",
)
def test_a_rig_cannot_reach_the_others_socket(tmp_path: Path, rust_virtiofsd: str) -> None:
    with namespace("a") as a, namespace("b") as b:
        rigs = rig(a, {"for-all"}, "@here") + "\n" + rig(b, {"for-all"}, "@there")
        with serving(tmp_path, rust_virtiofsd, rigs):
            for home, own, other in ((a, "@here", "@there"), (b, "@there", "@here")):
                with Visitor(ROOT, own, home) as at_home, Visitor(ROOT, other, home) as astray:
                    assert at_home.ask("exports") == ("ok", ["for-all"])
                    assert astray.ask("exports") == ("error", "CannotConnect")
            for address in ("@here", "@there"):
                with Visitor(ROOT, address) as outside:
                    assert outside.ask("exports") == ("error", "CannotConnect")


def rig_state(client: Client, state: str) -> bool:
    """Wait for a rig to be in a state; each look is a call of the daemon's."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if [each["state"] for each in client.status()["rigs"]] == [state]:
            return True
    return False


def test_a_listener_comes_and_goes_with_its_namespace(tmp_path: Path, rust_virtiofsd: str) -> None:
    name = f"vuserd-test-{os.getpid()}-late"
    with (
        serving(tmp_path, rust_virtiofsd, rig(name, {"for-all"})) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        assert rig_state(client, "absent")
        for _ in range(3):
            netns.create(name)
            try:
                assert rig_state(client, "listening")
                with Visitor(ROOT, "", name) as visitor:
                    assert visitor.ask("exports") == ("ok", ["for-all"])
                    netns.remove(name)
                    assert rig_state(client, "absent")
                    assert visitor.ask("exports")[0] == "error"
            finally:
                if name in netns.listnetns():
                    netns.remove(name)
        assert client.stat("for-root", "file").size == len("for-root")


def test_a_client_of_a_rig_that_goes_is_told(tmp_path: Path, rust_virtiofsd: str) -> None:
    with (
        namespace("gone") as name,
        serving(tmp_path, rust_virtiofsd, rig(name, {"for-all"})) as daemon,
        Client.connect(daemon.socket) as client,
        unix_socket_in(f"/run/netns/{name}") as sock,
    ):
        assert rig_state(client, "listening")
        sock.connect("\0vuserd")
        netns.remove(name)
        sock.settimeout(10)
        told = b""
        while piece := sock.recv(4096):
            told += piece
        assert b"SHUTTING_DOWN" in told


def vuserctl(place: list[str], *arguments: str, **variables: str) -> tuple[str, str]:
    """Run vuserctl in a namespace; return what it prints, which has to be a success."""
    ended = subprocess.run(
        [*place, sys.executable, "-m", "vuserd.ctl.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


def test_a_client_is_told_where_it_is(tmp_path: Path, rust_virtiofsd: str) -> None:
    with namespace("told") as name:
        rigs = rig(name, RIGS["a"])
        inside = ["nsenter", f"--net=/run/netns/{name}"]
        with serving(tmp_path, rust_virtiofsd, rigs) as daemon:
            by_path = ("--socket", daemon.socket)
            host, note = vuserctl([], *by_path, "exports")
            assert note == ""
            assert "for-root" in host
            for place, words in (
                (["unshare", "-n"], "no rig of the daemon's is in this network namespace"),
                (inside, "a rig is in this network namespace, but its socket was not asked"),
            ):
                for command in ("exports", "status"):
                    said, note = vuserctl(place, *by_path, command)
                    assert note == f"vuserctl: {words}: what you see is the host's\n"
                assert f"reached by   {daemon.socket}\n" in said
            said, note = vuserctl(inside, "exports")
            assert note == ""
            assert "for-root" not in said
            said, note = vuserctl(inside, "status")
            assert note == ""
            assert f"reached by   @vuserd of rig {name}\n" in said
            with Client.connect(daemon.socket) as client:
                assert client.call(Call("origin", [], dict)) == {
                    "socket": daemon.socket,
                    "rig": None,
                    "namespace": "same",
                }


def test_a_terminal_shows_which_socket_answered(tmp_path: Path, rust_virtiofsd: str) -> None:
    with serving(tmp_path, rust_virtiofsd, "") as daemon:
        ours, theirs = pty.openpty()
        try:
            subprocess.run(
                [sys.executable, "-m", "vuserd.ctl.main", "--socket", daemon.socket, "exports"],
                stdout=theirs,
                timeout=60,
                cwd=REPOSITORY,
                check=True,
            )
            lines = os.read(ours, 1 << 16).decode().splitlines()
        finally:
            os.close(ours)
            os.close(theirs)
    assert lines[-1] == f"from {daemon.socket}"
