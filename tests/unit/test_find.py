"""Finding a virtiofsd: which of the two it is, and what to install if there is none."""

import platform
from pathlib import Path

import pytest
import trio

from vuserd.backend.find import (
    BackendKind,
    Program,
    find_program,
    identify,
    install_hint,
    parse_version,
)
from vuserd.errors import BackendNotFound, ConfigurationError


def fake_program(path: Path, version: str) -> str:
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "kind", "version"),
    [
        ("virtiofsd 1.13.2\n", BackendKind.RUST, "1.13.2"),
        (
            "virtiofsd version 7.2.22 (Debian)\nusing FUSE kernel interface version 7.36\n",
            BackendKind.C,
            "7.2.22",
        ),
        ("virtiofsd 1.14.0-dev\n", BackendKind.RUST, "1.14.0-dev"),
    ],
)
def test_kinds_are_told_apart_by_their_version(text: str, kind: BackendKind, version: str) -> None:
    assert parse_version("/x", text) == Program("/x", kind, version)


@pytest.mark.parametrize("text", ["", "true (GNU coreutils) 9.1\n", "\0\xff"])
def test_what_is_no_virtiofsd_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="/x is no virtiofsd"):
        parse_version("/x", text)


async def test_a_program_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "virtiofsd"
    broken.write_bytes(b"\x7fELF not really")
    broken.chmod(0o755)
    with pytest.raises(ConfigurationError, match="cannot be run: exec format error"):
        await identify(str(broken))


async def test_without_a_thread_no_program_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    with pytest.raises(ConfigurationError, match="cannot be run: can't start new thread"):
        await identify("/bin/true")


async def test_the_first_one_that_this_user_can_run_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    c = fake_program(tmp_path / "c", "virtiofsd version 7.2.22 (Debian)")
    rust = fake_program(tmp_path / "rust", "virtiofsd 1.13.2")
    places = ["/nowhere/virtiofsd", c, rust]
    assert (await find_program(None, 0, places)).path == c
    assert (await find_program(None, 1000, places)).path == rust
    assert (await find_program(rust, 0, places)).path == rust
    with pytest.raises(ConfigurationError, match="only root can run"):
        await find_program(None, 1000, [c])
    with pytest.raises(BackendNotFound, match="install"):
        await find_program(None, 0, ["/nowhere/virtiofsd"])


async def test_a_kind_is_looked_for_past_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    c = fake_program(tmp_path / "c", "virtiofsd version 7.2.22 (Debian)")
    rust = fake_program(tmp_path / "rust", "virtiofsd 1.13.2")
    assert (await find_program(None, 0, [c, rust], BackendKind.RUST)).path == rust
    assert (await find_program(None, 0, [rust, c], BackendKind.C)).path == c
    with pytest.raises(BackendNotFound, match="no rust virtiofsd on this machine: Debian 13"):
        await find_program(None, 0, [c], BackendKind.RUST)
    with pytest.raises(BackendNotFound, match="no c virtiofsd on this machine: Debian 12"):
        await find_program(None, 0, [rust], BackendKind.C)
    with pytest.raises(ConfigurationError, match="only root can run"):
        await find_program(None, 1000, [rust, c], BackendKind.C)


@pytest.mark.parametrize(
    ("release", "hint"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, "apt install qemu-system-common"),
        ({"ID": "debian", "VERSION_ID": "13"}, "apt install virtiofsd"),
        ({"ID": "debian"}, "apt install virtiofsd"),
        ({"ID": "ubuntu", "VERSION_ID": "22.04"}, "apt install qemu-system-common"),
        ({"ID": "ubuntu", "VERSION_ID": "24.04"}, "apt install virtiofsd"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "apt install virtiofsd"),
        ({"ID": "fedora"}, "dnf install virtiofsd"),
        ({"ID": "arch"}, "pacman -S virtiofsd"),
        ({}, "install the package virtiofsd, or name the program with --backend"),
    ],
)
def test_the_package_is_named_for_each_distribution(release: dict[str, str], hint: str) -> None:
    assert install_hint(release) == hint


async def test_a_system_that_describes_itself_in_no_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": b"\xff".decode()})
    with pytest.raises(BackendNotFound, match="install the package virtiofsd"):
        await find_program(None, 0, [])
