"""Where a directory, an account or a backend is missing, that export waits and all others serve."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.running import REPOSITORY, RunningDaemon, wait_until
from vuserd.client.calls import Call
from vuserd.client.errors import RemoteError
from vuserd.client.sync_client import Client

#: Starts a program that sees another file at /etc/passwd, which can then be written to.
_WITH_USERS: Final = 'mount --bind "$0" /etc/passwd && exec "$@"'


def configuration(folder: Path, backend: str, *exports: str) -> Path:
    file = folder / "vuserd.toml"
    tables = "".join(f"[[export]]\n{export}\n" for export in exports)
    listen = f'[[listen]]\nsocket = "{folder}/s"\n'
    file.write_text(f'backend = "{backend}"\n{listen}{tables}')
    return file


def serving(
    file: Path,
    program: list[str] | None = None,
    variables: Mapping[str, str] | None = None,
) -> RunningDaemon:
    arguments = ("--config", str(file))
    return RunningDaemon(
        {},
        file.parent / "s",
        None,
        *arguments,
        configured=True,
        program=program,
        variables={"PYTHONPATH": str(REPOSITORY)} | dict(variables or {}),
    )


def log_of(daemon: RunningDaemon) -> str:
    return Path(f"{daemon.socket}.log").read_text()


def reload(client: Client) -> list[str]:
    return client.call(Call("reload", [None], list))


def test_what_is_missing_keeps_nothing_else_from_serving(
    tmp_path: Path, rust_virtiofsd: str
) -> None:
    good, late, file = (tmp_path / name for name in ("good", "late", "file"))
    good.mkdir()
    (good / "f").write_text("good")
    file.touch()
    written = configuration(
        tmp_path,
        rust_virtiofsd,
        f'name = "good"\npath = "{good}"',
        f'name = "late"\npath = "{late}"',
        f'name = "file"\npath = "{file}"',
        f'name = "person"\npath = "{good}"\nusers = ["no-such-joe"]\ngroups = ["no-such-lab"]',
        f'name = "adopted"\nsocket = "{tmp_path}/vfs"',
    )
    with serving(written) as daemon, Client.connect(daemon.socket) as client:
        found = {export.name: (export.state, export.reason or "") for export in client.exports()}
        assert {name: state for name, (state, _) in found.items()} == {
            "good": "up",
            "late": "gone",
            "file": "gone",
            "person": "failed",
            "adopted": "absent",
        }
        assert found["late"][1] == f"{late}: no such file or directory"
        assert found["file"][1] == f"{file} is not a directory"
        assert found["person"][1] == "there is no group no-such-lab, there is no user no-such-joe"
        assert f"no backend serves {tmp_path}/vfs" in found["adopted"][1]
        assert bytes(client.read("good", "f", 0, 10)) == b"good"
        with pytest.raises(RemoteError, match="export person is failed: there is no group"):
            client.stat("person", "/")
        assert 'vuserd_export_state{export="late",state="gone"} 1.0' in client.metrics()
        assert 'vuserd_export_state{export="person",state="failed"} 1.0' in client.metrics()
        late.mkdir()
        wait_until(lambda: "export late is up" in log_of(daemon))
        assert reload(client) == ["export person: tried again, failed"]
    assert daemon.log.count("export late is gone") == 1
    assert daemon.log.count("export person failed") == 2  # a reload says it again


def test_a_reload_does_what_is_good(tmp_path: Path, rust_virtiofsd: str) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "f").write_text("one")
    first = f'name = "one"\npath = "{one}"'
    with (
        serving(configuration(tmp_path, rust_virtiofsd, first)) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        two = f'name = "two"\npath = "{tmp_path}/two"'
        configuration(tmp_path, rust_virtiofsd, first, two)
        assert reload(client) == ["export two: added, gone"]
        configuration(tmp_path, rust_virtiofsd, f'{first}\nusers = ["no-such-joe"]', two)
        assert reload(client) == ["export one: started anew, failed"]
        configuration(tmp_path, rust_virtiofsd, f"{first}\nusers = [1]", two)
        assert reload(client) == ["export one: started anew, up"]
        assert bytes(client.read("one", "f", 0, 10)) == b"one"


def test_a_socket_that_cannot_be_had_keeps_none_of_the_others_from_being_served(
    tmp_path: Path, rust_virtiofsd: str
) -> None:
    late = tmp_path / "late"
    written = configuration(tmp_path, rust_virtiofsd, f'name = "files"\npath = "{tmp_path}"')
    with written.open("a") as file:
        file.write(f'[[listen]]\nsocket = "{late}/s"\n')
        file.write(f'[[listen]]\nsocket = "{tmp_path}/g"\ngroup = "no-such-lab"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        with (
            serving(written, variables={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as daemon,
            Client.connect(daemon.socket) as client,
        ):
            heard = told_until(manager, "READY=1")
            failed = f"socket {late}/s failed, socket {tmp_path}/g failed"
            assert f"STATUS=1 of 1 exports up; {failed}" in heard
            listeners = client.status()["listeners"]
            assert [each.get("state") for each in listeners] == ["listening", "failed", "failed"]
            assert (
                listeners[2].get("reason") == f"socket {tmp_path}/g: there is no group no-such-lab"
            )
            assert f'vuserd_listening{{rig="",socket="{late}/s"}} 0.0' in client.metrics()
            late.mkdir()
            told_until(manager, f"STATUS=1 of 1 exports up; socket {tmp_path}/g failed")
            with Client.connect(f"{late}/s") as guest:
                guest.stat("files", "/")
    assert daemon.log.count("there is no group no-such-lab") == 1


def test_without_any_socket_there_is_no_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vuserd.cli", "serve", "--export", f"files={tmp_path}"]
    ended = subprocess.run(
        [*command, "--socket", f"{tmp_path}/no/s"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    assert ended.returncode == 1
    why = "no such file or directory; choose another path with --socket"
    assert ended.stderr.splitlines()[-2:] == [
        f"vuserd: cannot listen on {tmp_path}/no/s: {why}",
        "vuserd: there is no socket to serve on",
    ]
    assert ended.stderr.count("cannot listen") == 1


def told_until(manager: socket.socket, line: str) -> list[str]:
    """Return what the service manager is told until a line comes."""
    heard: list[str] = []
    while line not in heard:
        heard += manager.recv(1 << 16).decode().splitlines()
    return heard


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file of users")
def test_a_user_that_is_added_later(tmp_path: Path, rust_virtiofsd: str) -> None:
    users = tmp_path / "passwd"
    shutil.copy("/etc/passwd", users)
    users.chmod(0o644)
    written = configuration(
        tmp_path, rust_virtiofsd, f'name = "files"\npath = "{tmp_path}"\nusers = ["late-joe"]'
    )
    program = ["unshare", "-m", "sh", "-c", _WITH_USERS, str(users)]
    with (
        serving(written, [*program, sys.executable, "-m", "vuserd.cli"]) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        (export,) = client.exports()
        assert (export.state, export.reason) == ("failed", "there is no user late-joe")
        with users.open("a") as file:
            file.write("late-joe:x:61011:61011::/:/bin/sh\n")
        wait_until(lambda: "export files is up" in log_of(daemon))
        assert client.exports()[0].state == "up"
    assert daemon.log.count("there is no user late-joe") == 1


def test_a_backend_that_is_installed_later(tmp_path: Path, rust_virtiofsd: str) -> None:
    late = tmp_path / "virtiofsd"
    written = configuration(tmp_path, str(late), f'name = "files"\npath = "{tmp_path}"')
    with serving(written) as daemon, Client.connect(daemon.socket) as client:
        assert client.exports()[0].state == "failed"
        late.symlink_to(rust_virtiofsd)
        wait_until(lambda: "export files is up" in log_of(daemon))
        client.stat("files", "/")
    assert daemon.log.count("export files failed") == 1
