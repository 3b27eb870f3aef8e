"""An export's path through folders of others: where they may lead it, and where they may not."""

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.attacks.daemons import call, serving
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.attacks.threats import Who, threat
from tests.e2e.processes import family
from tests.faults import harness
from tests.running import RunningDaemon
from tests.systems.conftest import without
from tests.systems.oddtree import Node, copied, directory, odd_file_system
from vuserd.backend.find import BackendKind, find_program
from vuserd.backend.process import BackendOptions
from vuserd.config.model import ExportConfig
from vuserd.errors import BackendDown
from vuserd.exports.directory import Sight, look_at
from vuserd.exports.export import Export
from vuserd.exports.states import ExportState
from vuserd.fs.filesystem import FileSystem
from vuserd.trust import path as trust

_LAB: Final = 2001
_SECRET: Final = b"SECRET"
_SOON: Final = 20.0
_RELOADS: Final = 30
_EXPORT: Final = """
[[listen]]
socket = "{ground}/s"
mode = "0666"
[[export]]
name = "files"
path = "{ground}/alice/export"
backend = "{backend}"
users = [1000]
"""

_of_a_swap = threat(
    "export-led-away",
    who=Who.FOLDER_OWNER,
    against="files of root's, and of other users",
    does="puts a link, or another directory, in the place of an export's directory or of a folder"
    " above it",
    promise="what is not the folder's owner's own is not served: the export is gone, and says why",
)
_of_a_race = threat(
    "export-race",
    who=Who.FOLDER_OWNER,
    against="files of root's, and of other users",
    does="swaps the export's directory for a link thousands of times a second, while backends"
    " start",
    promise="a backend that has opened another directory than the one that was checked serves no"
    " call",
)


@pytest.fixture
def alice(ground: Path) -> Path:
    """Give a folder of the attacker's with an export, and one of root's with a secret."""
    folder = ground / "alice"
    for path in (folder, folder / "export", folder / "own", folder / "deep", folder / "deep/er"):
        path.mkdir()
        os.chown(path, MALLORY, MALLORY)
    (folder / "export" / "which").write_text("export")
    (folder / "own" / "which").write_text("own")
    for secret in (ground / "secret", folder / "roots"):
        secret.mkdir()
        (secret / "which").write_bytes(_SECRET)
    secret.chmod(0o700)
    (ground / "secret" / "export").mkdir()
    (ground / "secret" / "export" / "which").write_bytes(_SECRET)
    return folder


def read(ground: Path) -> Any:
    """Return what a file of the export has, or the words of the error."""
    error, content = call(ground / "s", "read", "files", "/which", 0, 100)
    return content if error is None else f"{error['code']}: {error['message']}"


def expect(ground: Path, wanted: str | bytes, daemon: RunningDaemon) -> None:
    """Expect this content, or words, soon, and never the secret: by calls, reloads and crashes."""
    for disturb in ("nothing", "reload", "crash"):
        if disturb == "reload":
            reload(ground)
        elif disturb == "crash":
            crash(daemon)
        begun = time.monotonic()
        while True:
            found = read(ground)
            assert found != _SECRET
            if wanted == found or (isinstance(found, str) and str(wanted) in found):
                break
            assert time.monotonic() < begun + _SOON, found
            time.sleep(0.02)


def reload(ground: Path) -> None:
    call(ground / "s", "reload", "files")


def crash(daemon: RunningDaemon) -> None:
    for process in set(family(daemon.process.pid)) - {daemon.process.pid}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def moved(folder: Path, name: str) -> None:
    os.rename(folder / name, folder / f"{name}.was")


def _link(folder: Path) -> None:
    moved(folder, "export")
    (folder / "export").symlink_to("../secret")


def _link_of_links(folder: Path) -> None:
    moved(folder, "export")
    (folder / "deep" / "er" / "link").symlink_to(folder.parent / "secret")
    (folder / "export").symlink_to("deep/er/link/.")


def _directory_of_roots(folder: Path) -> None:
    moved(folder, "export")
    os.rename(folder / "roots", folder / "export")


def _system(folder: Path) -> None:
    moved(folder, "export")
    (folder / "export").symlink_to("/etc")


@_of_a_swap
@pytest.mark.parametrize("swap", [_link, _link_of_links, _directory_of_roots, _system])
def test_a_swap(ground: Path, alice: Path, virtiofsd: str, swap: Callable[[Path], None]) -> None:
    with serving(ground, virtiofsd, _EXPORT) as daemon:
        expect(ground, b"export", daemon)
        assert run_as(MALLORY, lambda: swap(alice)) == 0
        expect(ground, "decides in", daemon)
        (export,) = call(ground / "s", "exports")[1]
        assert export["state"] == "gone"
        assert str(alice) in export["reason"]

        def undo() -> None:
            os.rename(alice / "export", alice / "bad")
            (alice / "export").symlink_to("own")

        assert run_as(MALLORY, undo) == 0  # and to what is her own she leads it as she likes
        expect(ground, b"own", daemon)


@_of_a_swap
def test_a_folder_above_is_swapped(ground: Path, alice: Path, rust_virtiofsd: str) -> None:
    """The export is root's directory in root's folder, that is in hers."""
    (alice / "in").mkdir()
    (alice / "in" / "export").mkdir()
    text = _EXPORT.replace("alice/export", "alice/in/export")
    with serving(ground, rust_virtiofsd, text) as daemon:
        expect(ground, "decides in", daemon)  # as it could be any other directory of root's
        for path in (alice / "in", alice / "in" / "export"):
            os.chown(path, MALLORY, MALLORY)
        (alice / "in" / "export" / "which").write_text("hers")
        expect(ground, b"hers", daemon)

        def swap() -> None:
            moved(alice, "in")
            (alice / "in").symlink_to(ground / "secret")

        assert run_as(MALLORY, swap) == 0
        expect(ground, "decides in", daemon)


@_of_a_swap
def test_a_daemon_that_is_not_root(ground: Path, alice: Path, rust_virtiofsd: str) -> None:
    """What its user may read is not the attacker's either."""
    os.chown(ground / "secret", VICTIM, VICTIM)
    folder = ground / "run"
    folder.mkdir()
    os.chown(folder, VICTIM, VICTIM)
    daemon = RunningDaemon({"files": alice / "export"}, folder / "s", rust_virtiofsd, user=VICTIM)
    with daemon:
        expect(folder, b"export", daemon)
        assert run_as(MALLORY, lambda: _link(alice)) == 0
        expect(folder, "decides in", daemon)


@_of_a_swap
@pytest.mark.parametrize("mode", [0o2775, 0o1777])
def test_a_folder_of_many(ground: Path, alice: Path, rust_virtiofsd: str, mode: int) -> None:
    """Of a group, or as /tmp: what root has there is served, and no link of another's followed."""
    lab = ground / "lab"
    (lab / "export").mkdir(parents=True)
    os.chown(lab, 0, _LAB)
    lab.chmod(mode)
    (lab / "export" / "which").write_text("lab")
    with serving(ground, rust_virtiofsd, _EXPORT.replace("alice/export", "lab/export")) as daemon:
        expect(ground, b"lab", daemon)
        if mode & 0o1000:
            os.rename(lab / "export", lab / "export.was")  # which the attacker cannot do

        def swap() -> None:
            if not mode & 0o1000:
                moved(lab, "export")
            (lab / "export").symlink_to(ground / "secret")

        def swap_again() -> None:
            os.unlink(lab / "export")
            os.rename(lab / "private", lab / "export")

        assert run_as(MALLORY, swap, groups=[_LAB]) == 0
        expect(ground, "decides in", daemon)
        if not mode & 0o1000:  # else it is not theirs to rename
            os.mkdir(lab / "private", 0o700)
            (lab / "private" / "which").write_bytes(_SECRET)
            assert run_as(MALLORY, swap_again, groups=[_LAB]) == 0
            expect(ground, "is closed to them", daemon)
            os.rename(lab / "export", lab / "private")
        else:
            os.unlink(lab / "export")
        (lab / "export").symlink_to(alice / "own")  # root's
        expect(ground, b"own", daemon)


@threat(
    "names-in-a-log",
    who=Who.FOLDER_OWNER,
    against="who reads the log, or vuserctl's output",
    does="gives folders that the path leads through names with escapes and line breaks",
    promise="the log has its own lines alone, and neither has such a character",
)
def test_names_in_a_log(ground: Path, alice: Path, rust_virtiofsd: str) -> None:
    def lead_through_a_bad_name() -> None:
        bad = alice / "\x1b]0;title\x07\nvuserd: export files is well\u202e"
        os.rename(alice / "roots", bad)
        moved(alice, "export")
        (alice / "export").symlink_to(bad / "export")

    (alice / "roots").chmod(0o700)
    with serving(ground, rust_virtiofsd, _EXPORT) as daemon:
        assert run_as(MALLORY, lead_through_a_bad_name) == 0
        reload(ground)
        # Until the daemon has noticed, it may serve what was there.
        deadline = time.monotonic() + _SOON
        while (found := read(ground)) == b"export" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "is closed to others" in str(found)
        (export,) = call(ground / "s", "exports")[1]
    assert export["reason"].isprintable()
    lines = daemon.log.splitlines()
    assert all(map(str.isprintable, lines))
    assert not [line for line in lines if line.startswith("vuserd: export files is well")]


@pytest.fixture
def tree(ground: Path) -> Node:
    """Give what the attacker shows: a link to a secret, and an export, all of it root's."""
    if not os.path.exists("/dev/fuse"):
        without("no FUSE")
    (ground / "tmp").mkdir()
    (ground / "tmp").chmod(0o1777)
    tree = ground / "tree"
    (tree / "export").mkdir(parents=True)
    (tree / "export" / "which").write_text("whose?")
    (tree / "link").symlink_to(ground / "secret")
    (ground / "secret").mkdir()
    (ground / "secret" / "which").write_bytes(_SECRET)
    return copied(os.fsencode(tree))


@_of_a_swap
def test_a_file_system_of_the_attackers(ground: Path, rust_virtiofsd: str, tree: Node) -> None:
    """It says that all is root's: the directory that it is mounted on, and a link to a secret."""
    text = _EXPORT.replace("alice/export", "tmp/odd/link")
    with odd_file_system(ground / "tmp" / "odd", tree, MALLORY):
        with serving(ground, rust_virtiofsd, text) as daemon:
            expect(ground, "decides in", daemon)
        with serving(ground, rust_virtiofsd, text.replace("odd/link", "odd/export")) as daemon:
            expect(ground, b"whose?", daemon)


@_of_a_swap
@pytest.mark.parametrize("number", [errno.EINTR, errno.EIO, errno.ENOSYS])
def test_a_file_system_that_does_not_say_what_it_is(ground: Path, tree: Node, number: int) -> None:
    refusing = {"STATFS": number}
    entries = [entry._replace(node=replace(entry.node, errors=refusing)) for entry in tree.entries]
    tree = replace(tree, errors=refusing, entries=tuple(entries))
    with odd_file_system(ground / "tmp" / "odd", tree, MALLORY):
        sight = look_at(str(ground / "tmp" / "odd" / "link"))
        assert sight.standing is None
        assert "decides in" in sight.reason


@threat(
    "names-of-mount-points",
    who=Who.FOLDER_OWNER,
    against="files of root's, and the daemon's life",
    does="mounts a file system on a folder whose name has a carriage return and what options of"
    " root's would be, or is no UTF-8, where the kernel lists it unescaped",
    promise="it is that user's all the same, and the look at the path ends well",
)
@pytest.mark.parametrize("name", [b"odd,user_id=0\rx", b"odd\xff"])
def test_a_file_system_at_a_misleading_name(ground: Path, tree: Node, name: bytes) -> None:
    place = ground / "tmp" / os.fsdecode(name)
    with odd_file_system(place, tree, MALLORY):
        sight = look_at(str(place / "link"))
        assert sight.standing is None
        assert "decides in" in sight.reason


@_of_a_swap
def test_a_file_system_that_is_gone_when_it_is_looked_for(
    ground: Path, tree: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server has it unmounted while it is asked: it is not among the mounts, but goes on."""
    place = ground / "tmp" / "odd"

    class Libc:
        def fstatfs(self, descriptor: int, answer: object) -> object:
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(place):
                subprocess.run(["umount", "--lazy", place], check=True)
            return libc.fstatfs(descriptor, answer)

    libc = trust._LIBC
    monkeypatch.setattr(trust, "_LIBC", Libc())
    with odd_file_system(place, tree, MALLORY):
        sight = look_at(f"{place}/link")
        assert (sight.standing, sight.reason) == (None, f"{place}/link: stale file handle")


@pytest.mark.parametrize("operation", ["ENTRY", "GETATTR"])
@threat(
    "interrupted-for-ever",
    who=Who.FOLDER_OWNER,
    against="the daemon's time",
    does="mounts a file system there that answers EINTR to all that is asked",
    promise="each look at the path ends with that, and nothing asks again and again",
)
def test_a_file_system_that_is_always_interrupted(ground: Path, operation: str) -> None:
    """Python itself would repeat such a call for ever."""
    outcomes: list[object] = []

    def look() -> None:
        try:
            outcomes.append(look_at(str(ground / "odd" / "export")))
        except OSError as error:
            outcomes.append(error.errno)

    bad = directory({}, errors={operation: errno.EINTR})
    with odd_file_system(ground / "odd", directory({b"export": bad}), MALLORY):
        looker = threading.Thread(target=look, daemon=True)  # the mount's end would end it, too
        looker.start()
        looker.join(_SOON / 2)
        assert outcomes == [errno.EINTR]


@contextlib.contextmanager
def swapped_for_ever(folder: Path, secret: Path) -> Iterator[None]:
    def swap() -> None:
        (folder / "link").symlink_to(secret)
        while True:
            os.rename(folder / "export", folder / "was")
            os.rename(folder / "link", folder / "export")
            time.sleep(0.0005)
            os.rename(folder / "export", folder / "link")
            os.rename(folder / "was", folder / "export")
            time.sleep(0.0005)

    with As(MALLORY, swap):
        yield


@_of_a_race
def test_a_race(ground: Path, alice: Path, virtiofsd: str) -> None:
    """A backend opens its directory by name, between two looks that may both find the right one."""
    with serving(ground, virtiofsd, _EXPORT):
        with swapped_for_ever(alice, ground / "secret"):
            for _ in range(_RELOADS):
                reload(ground)
                for _ in range(4):
                    assert read(ground) != _SECRET
        assert call(ground / "s", "api_info")[0] is None


class PerfectTiming:
    """An attacker who swaps a folder right after each look at a path, and back before the next."""

    def __init__(self, folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._was = folder, folder.with_name("was")
        self._secret = secret
        self.attacks = True
        monkeypatch.setattr("vuserd.exports.directory.look_at", self._look_at)

    def _look_at(self, path: str) -> Sight:
        if self._folder.is_symlink():
            self._folder.unlink()
            self._was.rename(self._folder)
        try:
            return look_at(path)
        finally:
            if self.attacks:
                self._folder.rename(self._was)
                self._folder.symlink_to(self._secret)


async def which(files: FileSystem) -> bytes:
    return await harness.read(files, b"/which")


@_of_a_race
@pytest.mark.parametrize("sandbox", ["namespace", "chroot", "none"])
async def test_perfect_timing(
    ground: Path, alice: Path, virtiofsd: str, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, and at a replacement: that by moving, and by a start."""
    program = await find_program(virtiofsd, 0)
    if sandbox == "none" and program.kind is BackendKind.C:
        pytest.skip('the C virtiofsd has no sandbox "none"')
    options = BackendOptions(sandbox=sandbox)
    config = ExportConfig("files", directory=str(alice / "export"), options=options)
    attacker = PerfectTiming(alice, ground / "secret", monkeypatch)  # the C one sees a link itself
    export = Export(config, program)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.run)
            await export.settled.wait()
            assert export.state is ExportState.GONE
            assert "leads to another directory all the time" in export.reason
            attacker.attacks = False
            await trio.sleep(0.1)
            assert await export.call(which) == b"export"
            attacker.attacks = True
            for more in ({}, {"thread_pool": 1}, {"xattr": True}):
                other = replace(config, options=options._replace(**more))
                with pytest.raises(BackendDown):
                    await export.replace(other, program)
            attacker.attacks = False
            assert await export.call(which) == b"export"
            export.stop()
