"""``vuserd check`` of root looks with the eyes of the service, and a user's with that user's own.

systemd is played by a program that says what systemctl says; the users and folders are real.
"""

import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.running import REPOSITORY

USER: Final = "daemon"
AS_ROOT: Final = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")

Found = dict[str, list[tuple[str, ...]]]
Check = Callable[..., Found]

SERVICE: Final = {
    "Id": "vuserd.service",
    "LoadState": "loaded",
    "User": USER,
    "Documentation": "man:vuserd(8) file:/usr/local/share/doc/vuserd/service.md",
    "ProtectHome": "yes",
    "PrivateTmp": "no",
    "ProtectSystem": "strict",
    "AmbientCapabilities": "",
    "LimitNOFILE": "20000",
}
SOCKET: Final = {
    "Id": "vuserd.socket",
    "LoadState": "loaded",
    "ActiveState": "inactive",
    "Listen": "/run/vuserd/vuserd.sock (Stream)\nListen=/run/vuserd/lab.sock (Stream)",
    "SocketMode": "0666",
}


#: The program, with another folder in place of /etc/vuserd.
ELSEWHERE: Final = """
import sys
from vuserd.cli import main
from vuserd.config import files
files.SYSTEM_FOLDER = sys.argv.pop(1)
sys.exit(main())
"""


def examined(
    arguments: list[str],
    environment: Mapping[str, str],
    program: Sequence[str] = ("-m", "vuserd.cli"),
) -> Found:
    """Return the mark, detail and advice of each result, by its name."""
    ended = subprocess.run(
        [sys.executable, *program, "check", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        check=False,
    )
    found: Found = {}
    for each in json.loads(ended.stdout)["checks"]:
        found.setdefault(each["name"], []).append((each["mark"], each["detail"], each["advice"]))
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """Make a folder that other users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def check(place: Path, rust_virtiofsd: str) -> Check:
    """Check a configuration that is the service's, with other properties of its units."""

    def run(text: str, *, named: bool = True, **properties: str) -> Found:
        config = place / "vuserd.toml"
        config.write_text(f'backend = "{rust_virtiofsd}"\nsandbox = "none"\n{text}')
        config.chmod(0o644)
        start = f"{{ path=/usr/bin/vuserd ; argv[]=/usr/bin/vuserd serve --config {config} ; }}"
        units = (SERVICE | {"ExecStart": start} | properties, SOCKET)
        said = "\n\n".join("\n".join(f"{k}={v}" for k, v in unit.items()) for unit in units)
        (place / "said").write_text(said + "\n")
        (place / "bin").mkdir(exist_ok=True)
        systemctl = place / "bin" / "systemctl"
        systemctl.write_text(f"#!/bin/sh\nexec cat {place}/said\n")
        systemctl.chmod(0o755)
        path = f"{systemctl.parent}:{os.environ['PATH']}"
        if named:
            return examined(["--config", str(config)], {"PATH": path})
        return examined([], {"PATH": path, "HOME": "/root"}, ["-c", ELSEWHERE, str(place)])

    return run


@AS_ROOT
def test_the_way_to_a_directory_is_tried_as_the_service_s_user(check: Check, place: Path) -> None:
    closed, good = place / "closed", place / "good"
    (closed / "deep").mkdir(parents=True)
    closed.chmod(0o700)
    good.mkdir()
    good.chmod(0o755)
    text = (
        f'[[export]]\nname = "closed"\npath = "{closed}/deep"\n'
        f'[[export]]\nname = "good"\npath = "{good}"\nusers = ["*"]\n'
    )
    found = check(text)
    assert found["service"][0][:2] == (
        "ok",
        f"vuserd.service serves as {USER}: checked as that user",
    )
    [(mark, detail, advice)] = found["export closed"]  # and no backend was tried in vain
    assert (mark, detail) == (
        "problem",
        f"{closed}/deep cannot be read by {USER}: {closed} is drwx------ root root",
    )
    assert advice.startswith(
        f"chmod o+x {closed}, or copy /usr/local/share/doc/vuserd/any-file.conf"
    )
    assert {mark for mark, *_ in found["export good"]} == {"ok"}, found["export good"]
    assert "a backend starts" in found["export good"][-1][1]
    # What systemd listens on, and for whom, is known of the socket's unit.
    assert [(mark, advice) for mark, _, advice in found["socket"]] == 2 * [
        ("warning", "systemctl enable --now vuserd.socket")
    ]
    # A drop-in that permits it is one that the check has, too.
    found = check(text, AmbientCapabilities="cap_dac_read_search")
    assert found["export closed"][0][0] == "ok"


@AS_ROOT
def test_the_service_s_configuration_is_found_without_its_name(check: Check, place: Path) -> None:
    text = f'[[export]]\nname = "good"\npath = "{place}"\nusers = ["*"]\n'
    found = check(text, named=False)
    assert found["configuration"] == [("ok", f"{place}/vuserd.toml", "")]
    assert found == check(text)


@AS_ROOT
def test_what_the_service_s_confinement_hides(check: Check, place: Path) -> None:
    found = check(
        '[[export]]\nname = "home"\npath = "/home"\n'
        f'[[export]]\nname = "t"\npath = "{place}"\n'
        '[[export]]\nname = "j"\npath = "/etc"\nusers = ["no-such-joe"]\n'
        f'[[listen]]\nsocket = "{place}/s"\n'
        '[[rig]]\nnetns = "r"\nexports = ["home"]\n',
        PrivateTmp="yes",
    )
    problems = {
        name: [(detail, advice) for mark, detail, advice in results if mark == "problem"]
        for name, results in found.items()
    }
    assert "ProtectHome=yes" in problems["export home"][0][0]
    assert "homes.conf to /etc/systemd/system/vuserd.service.d/" in problems["export home"][0][1]
    assert "PrivateTmp=" in problems["export t"][0][0]
    assert problems["export j"][0][0] == "there is no user no-such-joe"
    assert "ListenStream= in a drop-in for vuserd.socket" in problems["socket"][0][1]
    assert "rigs.conf" in problems["rigs"][0][1]
    found = check('[[export]]\nname = "home"\npath = "/home"\n', ProtectHome="read-only")
    assert not [mark for mark, *_ in found["export home"] if mark == "problem"]


@AS_ROOT
def test_a_user_who_does_not_exist(check: Check) -> None:
    assert check("", User="no-such-joe") == {
        "service": [("problem", "there is no user no-such-joe", "systemd-sysusers makes it")]
    }


@AS_ROOT
def test_a_user_s_check_does_not_complain_of_root_s_folders(
    place: Path, rust_virtiofsd: str
) -> None:
    user = pwd.getpwnam(USER)
    config = place / "vuserd.toml"
    config.write_text(
        f'backend = "{rust_virtiofsd}"\n[[export]]\nname = "r"\npath = "/root"\n'
        '[[export]]\nname = "m"\npath = "/no/such"\n'
    )
    config.chmod(0o644)
    os.chown(config, user.pw_uid, user.pw_gid)
    code = f"import os, sys; os.setgroups([]); os.setgid({user.pw_gid}); os.setuid({user.pw_uid})"
    ended = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import pyroute2, vuserd.check.command, vuserd.cli; {code}; vuserd.cli.main()",
            *("check", "--config", str(config)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if k != "XDG_RUNTIME_DIR" and "COV" not in k},
        check=False,
    )
    assert "/run/vuserd" not in ended.stdout, ended.stdout + ended.stderr
    assert "XDG_RUNTIME_DIR is not set" in ended.stdout
    assert f"/root cannot be read by {USER}: /root is drwx------" in ended.stdout
    assert "/no/such: no such file or directory; make or mount it" in ended.stdout
