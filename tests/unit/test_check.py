"""``vuserd check``: what it reports about machines and configurations that lack something."""

import argparse
import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import trio
from pyroute2 import DiagSocket, NetlinkError

from tests.e2e.processes import family
from tests.running import wait_until
from vuserd.backend.process import BackendOptions
from vuserd.check import backends, command, configured, machine
from vuserd.check.arguments import add_arguments
from vuserd.check.machine import Mark, Result
from vuserd.check.unix_diag import is_listened_on
from vuserd.config.model import (
    Access,
    ClientLimits,
    DaemonConfig,
    ExportConfig,
    ListenConfig,
    RigConfig,
)
from vuserd.errors import ConfigurationError
from vuserd.listen.sockets import listening

RUST = "virtiofsd 1.13.2"
C = "virtiofsd version 7.2.22 (Debian)"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """Make a Rust and a C virtiofsd, and find no others."""
    made = {}
    for name, version in (("rust", RUST), ("c", C), ("neither", "true 9.1")):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{version}'\n")
        path.chmod(0o755)
        made[name] = str(path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(configured, "PLACES", (made["rust"], made["c"], made["neither"]))
    return made


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def marks(results: list[Result]) -> list[Mark]:
    return [result.mark for result in results]


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([Mark.OK, Mark.OK], 0),
        ([Mark.OK, Mark.WARNING, Mark.OK], 0),
        ([Mark.PROBLEM, Mark.WARNING, Mark.OK], 1),
    ],
)
def test_the_status_and_the_lines(
    found: list[Mark],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def examine(*_: object) -> list[Result]:
        return [
            Result(f"number {'1' * number}", mark, "detail", "advice" if mark != Mark.OK else "")
            for number, mark in enumerate(found)
        ]

    monkeypatch.setattr(command, "examine", examine)
    assert command.run(options()) == status
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    assert len({line.index("detail") for line in lines}) == 1
    assert [line.endswith("; advice") for line in lines] == [mark != Mark.OK for mark in found]

    assert command.run(options("--json")) == status
    report = json.loads(capsys.readouterr().out)
    assert report["result"] == max(found, key=list(Mark).index)
    assert [each["mark"] for each in report["checks"]] == found
    assert set(report["checks"][0]) == {"name", "mark", "detail", "advice"}


def test_names_that_no_terminal_should_see() -> None:
    (line,) = command.table([Result("export e", Mark.OK, "/a\n\x1b[2J\udcff\N{BULLET}")])
    assert line == "ok       export e  /a\\n\\x1b[2J\\udcff\N{BULLET}"


def test_a_whole_run(
    tmp_path: Path, programs: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vuserd.toml"
    file.write_text(
        f'metrics_file = "{tmp_path}/vuserd.prom"\ndescriptors = 1024\n'
        f'[[export]]\nname = "tree"\npath = "{tmp_path}"\nbackend = "{programs["rust"]}"\n'
        f'[[listen]]\nsocket = "{tmp_path}/d.sock"\n[[listen]]\nsocket = "@d"\n'
    )
    assert command.run(options("--config", str(file), "--json")) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    found = {each["name"]: each for each in reversed(checks)}
    assert found["configuration"]["detail"] == str(file)
    assert found["export tree"]["detail"] == str(tmp_path)
    [started] = [each for each in checks if each["name"] == "export tree"][1:]
    assert started["mark"] == "problem"  # it says its version, and no more
    assert "no backend starts: the backend closed its socket" in started["detail"]
    for name in ("socket", "metrics", "kernel", "descriptors", "memory locks", "huge pages"):
        assert found[name]["mark"] == "ok", found[name]


def test_a_configuration_that_is_wrong(
    tmp_path: Path, programs: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert programs
    file = tmp_path / "vuserd.toml"
    file.write_text("drain = true\ntimeot = 1\n[[export]]\nname = 'e'\npath = 'no/such'\n")
    assert command.run(options("--config", str(file))) == 1
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("problem  configuration")]
    assert all(
        f"{file}:{line}: " in problem for line, problem in zip((1, 2, 5), problems, strict=True)
    )
    assert len(lines) > len(problems)  # the machine is looked at, nevertheless


# -- the machine's memory order --------------------------------------------------------------------


def test_a_machine_that_keeps_the_order_itself() -> None:
    result = machine.fence_result("x86_64")
    assert result == Result("memory order", Mark.OK, "kept by x86_64 itself")


def test_a_machine_with_libatomic(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(atomic_thread_fence=SimpleNamespace())
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    result = machine.fence_result("aarch64")
    assert result == Result("memory order", Mark.OK, "aarch64, by the fences of libatomic")


def test_a_machine_without_libatomic(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: str) -> NoReturn:
        raise OSError("no such file")

    monkeypatch.setattr(ctypes, "CDLL", load)
    result = machine.fence_result("aarch64")
    assert result.mark is Mark.PROBLEM
    assert "fences on aarch64: install libatomic (libatomic1)" in result.detail


def test_a_machine_of_the_other_byte_order() -> None:
    result = machine.fence_result("s390x", "big")
    assert (result.mark, "little-endian" in result.detail) == (Mark.PROBLEM, True)


# -- the configuration -----------------------------------------------------------------------------


def test_no_configuration_is_no_problem(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    config, (result,) = command.configuration_results(None, environ, 1000, "@d")
    assert config == DaemonConfig((), ())
    assert result.mark is Mark.OK


def test_a_configuration_without_exports(tmp_path: Path) -> None:
    file = tmp_path / "vuserd.toml"
    file.touch()
    _, results = command.configuration_results(str(file), {}, 0, "@d")
    assert marks(results) == [Mark.OK, Mark.WARNING]
    assert "nothing to serve" in results[1].detail


def test_a_configuration_that_everybody_may_write(tmp_path: Path) -> None:
    file = tmp_path / "vuserd.toml"
    file.touch()
    file.chmod(0o666)
    _, (result,) = command.configuration_results(str(file), {}, 0, "@d")
    assert result == Result(
        "configuration", Mark.PROBLEM, f"{file}: everybody may write it", f"chmod go-w {file}"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_configuration_in_a_folder_of_a_group(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "vuserd.toml").touch()
    os.chown(folder, 0, 4_000_000)
    folder.chmod(0o775)
    _, (*_, result) = command.configuration_results(str(folder / "vuserd.toml"), {}, 0, "@d")
    assert result.mark is Mark.WARNING
    assert f"group 4000000 may write {folder}" in result.detail


def test_a_folder_of_more_files_that_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "conf.d").symlink_to("conf.d")
    file = str(tmp_path / "vuserd.toml")
    _, (result,) = command.configuration_results(file, {}, 0, "@d")
    assert result.mark is Mark.PROBLEM


# -- backends --------------------------------------------------------------------------------------


async def test_every_candidate_is_told(programs: Mapping[str, str]) -> None:
    results = await configured.candidate_results([], 0)
    assert [(result.mark, result.detail) for result in results] == [
        (Mark.OK, f"{programs['rust']}: rust 1.13.2"),
        (Mark.OK, f"{programs['c']}: c 7.2.22"),
        (Mark.WARNING, results[2].detail),
    ]
    assert "is no virtiofsd" in results[2].detail
    results = await configured.candidate_results([ExportConfig("e", program=programs["c"])], 1000)
    assert (results[0].mark, results[0].detail) == (
        Mark.OK,
        f"{programs['c']}: c 7.2.22, for root",
    )
    assert len(results) == 2


def export(program: str | None = None, **wanted: Any) -> ExportConfig:
    return ExportConfig("e", directory="/", program=program, options=BackendOptions(**wanted))


@pytest.mark.parametrize(
    ("kind", "uid", "wanted", "words"),
    [
        ("rust", 0, {}, ""),
        ("rust", 1000, {"sandbox": "none", "cache": "metadata"}, ""),
        ("rust", 1000, {"sandbox": "chroot"}, 'sandbox = "chroot" takes root'),
        ("rust", 1000, {"inode_file_handles": "mandatory"}, "inode_file_handles takes root"),
        ("c", 0, {"sandbox": "chroot"}, ""),
        ("c", 0, {"sandbox": "none"}, 'has no sandbox "none"'),
        ("c", 0, {"cache": "metadata"}, "has neither cache=metadata nor"),
        ("c", 1000, {}, "only root can run"),
        ("neither", 0, {}, "is no virtiofsd"),
    ],
)
async def test_what_a_backend_cannot_do(
    kind: str, uid: int, wanted: dict[str, Any], words: str, programs: Mapping[str, str]
) -> None:
    results = await configured.fitness_results([export(programs[kind], **wanted)], uid)
    assert marks(results) == ([Mark.PROBLEM] if words else [])
    assert all(result.name == "export e" and words in result.detail for result in results)


async def test_a_machine_without_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(configured, "PLACES", ())
    monkeypatch.setattr("vuserd.backend.find.find_program.__defaults__", ((), None))
    (result,) = await configured.fitness_results([], 0)
    assert result.mark is Mark.PROBLEM
    assert "no virtiofsd on this machine: " in result.detail
    assert await configured.candidate_results([], 0) == []
    # A user who adopts a backend needs none.
    assert await configured.fitness_results([ExportConfig("e", socket="/s")], 0) == []
    several = await configured.fitness_results([export(), export()], 0)
    assert [each.name for each in several] == ["backend"]


# -- exports ---------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExportConfig("e", directory=str(tmp_path))
    assert configured.export_result(config) == Result("export e", Mark.OK, str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    result = configured.export_result(config)
    assert result.mark is Mark.PROBLEM
    assert f"{tmp_path} cannot be read by " in result.detail


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "Image").touch()
    result = configured.export_result(ExportConfig("e", directory=f"{tmp_path}/Image"))
    detail = f"{tmp_path}/Image is not a directory"
    assert result == Result("export e", Mark.PROBLEM, detail, "give a directory")


@pytest.mark.parametrize("is_service", [True, False])
def test_a_file_system_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_service: bool
) -> None:
    """It is told, and not asked again."""
    answers = threading.Event()
    asked: list[str] = []

    def look(export: ExportConfig, permit: str) -> Result:
        if export.name == "e":
            answers.wait()
        return Result(f"export {export.name}", Mark.OK, permit)

    def hidden(_: object, config: DaemonConfig) -> list[Result]:
        asked.extend(export.name for export in config.exports)
        return []

    file = tmp_path / "vuserd.toml"
    file.write_text(
        f'[[export]]\nname = "e"\npath = "{tmp_path}"\n'
        '[[export]]\nname = "f"\nsocket = "/no/such"\n[[listen]]\nsocket = "@e"\n'
    )
    service = SimpleNamespace(become=int, drop_in=str, config=str(file), listeners=())
    monkeypatch.setattr(command, "_service_of", lambda *_: service if is_service else None)
    monkeypatch.setattr(command, "service_results", hidden)
    monkeypatch.setattr(command, "export_result", look)
    monkeypatch.setattr(command, "_PATIENCE", 1.0)
    try:
        results = trio.run(command.examine, str(file), {}, os.geteuid())
    finally:
        answers.set()
    assert [result.detail for result in results if result.name == "export e"] == [
        f"{tmp_path}: its file system does not answer"
    ]
    assert asked == (["f"] if is_service else [])


def test_a_directory_is_shown_as_the_daemon_finds_it(tmp_path: Path) -> None:
    (tmp_path / "v2").mkdir()
    (tmp_path / "current").symlink_to("v2")
    result = configured.export_result(ExportConfig("e", directory=f"{tmp_path}/current"))
    assert result.detail == f"{tmp_path}/current, now {tmp_path}/v2"


MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /srv rw - tmpfs none rw
23 22 0:6 / /srv/a\\040b/deep rw shared:7 master:1 - tmpfs none rw
24 22 0:7 / /srv/a\\040b/own rw master:3 - tmpfs none rw
25 21 0:8 / /srv2 rw shared:9 - tmpfs none rw
26 25 0:9 / /srv2/over rw - tmpfs none rw
27 26 0:9 / /srv2/over rw shared:10 - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("directory", "private"),
    [
        ("/home", None),
        ("/srv", "/srv, /srv/a b/own"),
        ("/srv/a b", "/srv, /srv/a b/own"),
        ("/srv/a b/deep/est", None),
        ("/srv/a b/own", "/srv/a b/own"),
        ("/srv2", None),
        ("/", "/srv, /srv/a b/own"),
    ],
)
def test_mounts_that_do_not_reach_a_backend(
    tmp_path: Path, directory: str, private: str | None
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    config = ExportConfig("e", directory=directory)
    results = list(backends.propagation_results(config, str(tmp_path / "mountinfo")))
    if private is None:
        assert results == []
    else:
        [result] = results
        assert result.mark is Mark.WARNING
        assert f": {private} is not shared" in result.detail
        assert f"mount --make-shared {private.split(', ', maxsplit=1)[0]} " in result.advice


def test_mounts_that_nobody_tells_of(tmp_path: Path) -> None:
    config = ExportConfig("e", directory="/")
    assert list(backends.propagation_results(config, str(tmp_path / "none"))) == []
    (tmp_path / "odd").write_text("this is something else\n")
    assert list(backends.propagation_results(config, str(tmp_path / "odd"))) == []


def test_a_socket_of_somebody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "vfs.sock")
    config = ExportConfig("e", socket=path)
    assert configured.export_result(config).mark is Mark.WARNING
    with socket.socket(socket.AF_UNIX) as backend:
        backend.bind(path)
        assert configured.export_result(config).mark is Mark.WARNING
        backend.listen()
        backend.settimeout(0)
        assert configured.export_result(config).mark is Mark.OK
        with pytest.raises(BlockingIOError):
            backend.accept()  # it takes one connection in its life: that was not it
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
        assert configured.export_result(config).mark is Mark.PROBLEM
        monkeypatch.undo()
    left_behind = configured.export_result(config)
    nobody = f"no process in this network namespace listens on {path}"
    assert (left_behind.mark, left_behind.detail) == (Mark.WARNING, nobody)
    assert configured.export_result(ExportConfig("e", socket="/etc/hosts")).mark is Mark.PROBLEM


# -- sockets ---------------------------------------------------------------------------------------


def test_a_socket_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("d.sock")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind("d.sock")
        other.bind("other.sock")
        other.listen()
        assert not is_listened_on("d.sock")
        one.listen()
        assert is_listened_on(str(tmp_path / "link"))
        os.rename("other.sock", "d.sock")
        other.close()
        assert not is_listened_on("d.sock")
    assert is_listened_on("gone.sock") is False


def test_a_kernel_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NetlinkError(errno.ENOENT)  # as one without unix_diag does

    monkeypatch.setattr(DiagSocket, "get_sock_stats", refuse)
    path = str(tmp_path / "d.sock")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
        assert is_listened_on(path) is None
    assert configured.export_result(ExportConfig("e", socket=path)).mark is Mark.OK


def test_where_to_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.sock"

    def result(address: Path | str) -> Result:
        return configured.listener_result(ListenConfig(str(address)))

    assert result("@d") == Result("socket", Mark.OK, "@d")
    assert result(path) == Result("socket", Mark.OK, str(path))
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        assert result(path) == Result("socket", Mark.OK, str(path))  # nobody listens
        daemon.listen()
        daemon.settimeout(0)
        assert "a daemon serves it" in result(path).detail
        with pytest.raises(BlockingIOError):
            daemon.accept()  # systemd would have started a daemon for that
    assert result(path).mark is Mark.OK
    path.unlink()
    path.touch()
    assert result(path) == Result("socket", Mark.PROBLEM, f"{path} is no socket", "remove it")
    assert result(tmp_path / "no" / "d.sock").advice.startswith(f"mkdir {tmp_path}/no")
    path.unlink()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert f"may not write {tmp_path}" in result(path).detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_socket_that_another_user_has_left(tmp_path: Path) -> None:
    """The daemon refuses to listen there."""
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
    os.chown(path, 4_000_000, 4_000_000)
    assert configured.listener_result(ListenConfig(str(path))) == Result(
        "socket", Mark.PROBLEM, f"{path}: uid 4000000 has left a socket there", "remove it"
    )
    with pytest.raises(ConfigurationError, match="uid 4000000 has left a socket there"):
        listening(ListenConfig(str(path))).__enter__()


@pytest.mark.parametrize("may", [True, False])
def test_a_group_that_files_cannot_be_given_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may: bool
) -> None:
    monkeypatch.setattr(configured, "may_change_owners", lambda: may)
    path = f"{tmp_path}/s"
    for group, words in (
        (None, path),
        (os.getegid(), path),
        (4_000_000, path if may else "may not give it to group 4000000"),
    ):
        result = configured.listener_result(ListenConfig(path, 0o660, group))
        assert result.detail.endswith(words)
        assert (result.mark is Mark.OK) == (words == path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_whom_an_export_s_path_trusts(tmp_path: Path) -> None:
    """What others can do about it is told, with what to do against that."""

    def result(path: str) -> Result:
        return configured.export_result(ExportConfig("e", directory=str(tmp_path / path)))

    for name in ("theirs", "theirs/own", "theirs/roots", "lab", "lab/export", "tmp", "tmp/export"):
        (tmp_path / name).mkdir()
    for name in ("theirs", "theirs/own", "tmp/export"):
        os.chown(tmp_path / name, 4_000_000, 4_000_000)
    os.chown(tmp_path / "lab", 0, 4_000_000)
    (tmp_path / "lab").chmod(0o775)
    (tmp_path / "tmp").chmod(0o1777)
    (tmp_path / "theirs" / "link").symlink_to("/etc")
    os.chown(tmp_path / "theirs" / "link", 4_000_000, 4_000_000, follow_symlinks=False)
    for path, mark, words in (
        ("theirs", Mark.OK, f"{tmp_path}/theirs"),
        ("theirs/own", Mark.OK, "uid 4000000 decides where this leads"),
        ("theirs/roots", Mark.PROBLEM, "what is there is root's"),
        ("theirs/link", Mark.PROBLEM, "what is there is root's"),
        ("lab/export", Mark.WARNING, f"group 4000000 may write {tmp_path}/lab"),
        ("tmp/export", Mark.OK, "uid 4000000 decides"),
    ):
        assert (result(path).mark, words in result(path).detail) == (mark, True), path
        assert bool(result(path).advice) == (mark is not Mark.OK)


def test_a_folder_where_others_may_write(tmp_path: Path) -> None:
    """They can take the socket's place; in a sticky one like /tmp they cannot."""
    for mode, mark in ((0o777, Mark.WARNING), (0o1777, Mark.OK), (0o755, Mark.OK)):
        tmp_path.chmod(mode)
        result = configured.listener_result(ListenConfig(str(tmp_path / "s")))
        assert result.mark is mark
        assert (f"chmod go-w {tmp_path}" in result.advice) == (mark is Mark.WARNING)


def test_the_system_s_folder_is_made_by_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "run" / "vuserd.sock")
    monkeypatch.setattr(configured, "SYSTEM_SOCKET", path)
    for uid, mark in ((0, Mark.OK), (1000, Mark.PROBLEM)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert configured.listener_result(ListenConfig(path)).mark is mark


@pytest.mark.parametrize(
    ("listeners", "access", "shut_out"),
    [
        ((), Access(), None),
        ((), Access(everyone=True), "everybody"),
        ((ListenConfig("/s", 0o660),), Access(everyone=True), "everybody"),
        ((ListenConfig("/s", 0o666),), Access(everyone=True, users=frozenset({1})), None),
        ((ListenConfig("/s"), ListenConfig("@s")), Access(everyone=True), None),
        ((), Access(users=frozenset({0})), None),
        ((), Access(users=frozenset({1, 4_000_000_000})), "daemon, uid 4000000000"),
        ((ListenConfig("/s", 0o660, 1),), Access(users=frozenset({1})), None),
        ((ListenConfig("/s", 0o660, 2),), Access(users=frozenset({1})), "daemon"),
        ((ListenConfig("/s", 0o660, 1),), Access(users=frozenset({4_000_000_000})), "uid 4"),
        ((ListenConfig("/s", 0o600, 1),), Access(users=frozenset({1})), "daemon"),
        ((), Access(groups=frozenset({2, 4_000_000_000})), "group 4000000000, group bin"),
        ((ListenConfig("/s", 0o660, 2),), Access(groups=frozenset({2})), None),
        ((ListenConfig("/s", 0o602, 2),), Access(groups=frozenset({1})), None),
    ],
)
def test_users_whom_no_socket_lets_in(
    listeners: tuple[ListenConfig, ...], access: Access, shut_out: str | None
) -> None:
    exports = (ExportConfig("e", directory="/", access=access),)
    listeners = listeners or (ListenConfig("/s"),)
    results = list(configured.access_results(DaemonConfig((), exports), listeners))
    assert marks(results) == ([] if shut_out is None else [Mark.WARNING])
    assert all(f"it is for {shut_out}" in result.detail for result in results)
    in_a_rig = DaemonConfig((), exports, (RigConfig("r", ("e",)),))
    assert list(configured.access_results(in_a_rig, listeners)) == []


def test_a_socket_that_is_there_already_is_looked_at(tmp_path: Path) -> None:
    """As where systemd holds it: it is what the unit says, whatever we would make."""
    path = tmp_path / "s"
    assert configured.listener_there(str(path)) == ListenConfig(str(path))
    assert configured.listener_there("@s") == ListenConfig("@s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o666)
        assert configured.listener_there(str(path)) == ListenConfig(str(path))
        listening.listen()
        assert configured.listener_there(str(path)) == ListenConfig(
            str(path), 0o666, path.stat().st_gid
        )


def test_where_metrics_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "vuserd.prom")
    assert configured.metrics_result(file) == Result("metrics", Mark.OK, file)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert configured.metrics_result(file).mark is Mark.PROBLEM
    file = str(tmp_path / "missing" / "vuserd.prom")
    assert configured.metrics_result(file).detail == (
        f"{file}: there is no folder {tmp_path}/missing"
    )


# -- rigs ------------------------------------------------------------------------------------------


def test_the_namespaces_of_rigs(monkeypatch: pytest.MonkeyPatch) -> None:
    rigs = [RigConfig(netns, ("e", "f")) for netns in ("/proc/self/ns/net", "no-such", "/dev/null")]
    monkeypatch.setattr(configured, "may_enter_namespaces", lambda: True)
    results = list(configured.rig_results(rigs))
    assert marks(results) == [Mark.OK, Mark.WARNING, Mark.PROBLEM]
    assert results[0].detail == "/proc/self/ns/net: e, f on @vuserd"
    assert results[1].advice == "ip netns add no-such: it is waited for"
    monkeypatch.setattr(configured, "may_enter_namespaces", lambda: False)
    assert marks(list(configured.rig_results(rigs[:1]))) == [Mark.PROBLEM, Mark.OK]
    assert list(configured.rig_results([])) == []


# -- the machine -----------------------------------------------------------------------------------


def test_this_machine_will_do() -> None:
    results = {result.name: result for result in machine.machine_results(os.geteuid())}
    assert results["kernel"].mark is Mark.OK
    assert results["memory locks"].mark is Mark.OK
    assert results["huge pages"].mark is Mark.OK


def test_a_kernel_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    result = machine.machine_results(os.geteuid())[0]
    assert (result.name, result.mark) == ("kernel", Mark.PROBLEM)
    assert "sealed memory (memfd_create): function not implemented" in result.detail
    monkeypatch.undo()
    monkeypatch.setattr(machine, "_try_proc", refuse)
    result = machine.machine_results(os.geteuid())[0]
    assert (result.name, result.mark) == ("kernel", Mark.PROBLEM)
    assert "/proc: function not implemented" in result.detail


@pytest.mark.parametrize(
    ("hard", "wanted", "mark"),
    [
        (1023, 0, Mark.PROBLEM),
        (1024, 0, Mark.OK),
        (1024, 65536, Mark.WARNING),
        (65536, 65536, Mark.OK),
        (resource.RLIM_INFINITY, 1 << 30, Mark.OK),
    ],
)
def test_the_limit_of_descriptors(hard: int, wanted: int, mark: Mark) -> None:
    result = machine.descriptor_result(hard, wanted)
    assert result.mark is mark
    assert bool(result.advice) is (mark is not Mark.OK)


def test_what_users_may_have_with_few_descriptors() -> None:
    few = machine.user_limits_result(ClientLimits(), 4096)
    assert few.mark is Mark.WARNING
    assert "with 4096 open files, user_connections is" in few.detail
    for many in (524_288, None):
        assert machine.user_limits_result(ClientLimits(), many).mark is Mark.OK


def test_huge_pages() -> None:
    assert "none" in machine.huge_pages_result({}).detail
    meminfo = {"HugePages_Total": "8", "HugePages_Free": "3", "Hugepagesize": "2048 kB"}
    assert "3 of 8 free, of 2048 kB" in machine.huge_pages_result(meminfo).detail


def test_a_sandbox_that_the_machine_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_UNSHARE", "pass")
    for uid in (0, 1000):
        assert machine.sandbox_result(uid, wanted=True).mark is Mark.OK


@pytest.mark.parametrize(
    ("uid", "sysctl", "value", "advice"),
    [
        (0, "", "", "CAP_SYS_ADMIN"),
        (1000, "", "", "user_namespaces(7)"),
        (1000, "user/max_user_namespaces", "0", "user.max_user_namespaces"),
        (1000, "user/max_user_namespaces", "9", "user_namespaces(7)"),
        (1000, "kernel/unprivileged_userns_clone", "0", "unprivileged_userns_clone=1"),
        (
            1000,
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "apparmor_restrict_unprivileged_userns=0",
        ),
    ],
)
def test_a_sandbox_that_the_machine_refuses(
    uid: int,
    sysctl: str,
    value: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_UNSHARE", "import sys; sys.exit('Operation not permitted')")
    monkeypatch.setattr("vuserd.backend.landlock.is_available", lambda: False)
    if sysctl:
        (tmp_path / sysctl).parent.mkdir()
        (tmp_path / sysctl).write_text(f"{value}\n")
    result = machine.sandbox_result(uid, str(tmp_path))
    assert result.mark is Mark.WARNING
    assert "operation not permitted" in result.detail
    assert advice in result.advice
    assert machine.sandbox_result(uid, str(tmp_path), wanted=True).mark is Mark.PROBLEM


def test_a_user_s_sandbox_without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_UNSHARE", "import sys; sys.exit('Operation not permitted')")
    monkeypatch.setattr("vuserd.backend.landlock.is_available", lambda: True)
    assert machine.sandbox_result(1000).mark is Mark.OK
    assert machine.sandbox_result(1000, wanted=True).mark is Mark.PROBLEM
    assert machine.sandbox_result(0).mark is Mark.WARNING


def test_a_sandbox_that_cannot_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "no such file or directory" in machine.sandbox_result(1000).detail


def test_who_may_enter_namespaces() -> None:
    assert isinstance(machine.may_enter_namespaces(), bool)
    if os.geteuid() != 0:
        assert not machine.may_enter_namespaces()


# -- as a command ----------------------------------------------------------------------------------


def test_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "vuserd.toml"
    file.write_text('[[export]]\nname = "e"\nsocket = "/no/such"\n[[listen]]\nsocket = "@e"\n')
    command = [sys.executable, "-m", "vuserd.cli", "check", "--json", "--config", str(file)]
    good = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert good.stderr == ""
    checks = json.loads(good.stdout)["checks"]
    assert checks[0] == {
        "name": "configuration",
        "mark": "ok",
        "detail": str(file),
        "advice": "",
    }
    assert good.returncode == any(each["mark"] == "problem" for each in checks)

    file.write_text("drain = -1\n")
    command.remove("--json")
    bad = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (bad.returncode, bad.stderr) == (1, "")
    assert bad.stdout.startswith(f"problem  configuration  {file}:1: drain: -1 is out of range; ")


def test_an_interrupt_ends_it_without_a_traceback(tmp_path: Path) -> None:
    backend = tmp_path / "virtiofsd"
    backend.write_text("#!/bin/sh\n[ $1 = --version ] && exec echo virtiofsd 1.0\nexec sleep 60\n")
    backend.chmod(0o755)
    file = tmp_path / "vuserd.toml"
    file.write_text(
        f'backend = "{backend}"\n[[export]]\nname = "e"\npath = "{tmp_path}"\n'
        '[[listen]]\nsocket = "@e"\n'
    )
    command = [sys.executable, "-m", "vuserd.cli", "check", "--config", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as check:
        wait_until(lambda: any(b"sleep" in argument for argument in started_by(check.pid)))
        check.send_signal(signal.SIGINT)
        assert check.communicate(timeout=60) == (b"", b"")
    assert check.returncode == -signal.SIGINT


def started_by(process: int) -> Iterator[bytes]:
    for each in family(process):
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{each}/cmdline").read_bytes()
