"""Paths that other users could lead elsewhere: which are followed, and which are refused."""

import ctypes
import errno
import grp
import io
import os
import pwd
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from vuserd.errors import UnsafePath
from vuserd.trust import path as trust_module
from vuserd.trust.path import Trust, keeps_entries, require_own, route, who_may_write

ALICE: Final = 1000
BOB: Final = 1001
LAB: Final = 2001
ROOTS: Final = Trust(frozenset({0}), frozenset({0}), reads_all=True)
BOBS: Final = Trust(frozenset({0, BOB}), frozenset({0, BOB}), reads_all=False)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Yield a folder that all users may enter, unlike pytest's own."""
    with TemporaryDirectory(prefix="vuserd-trust-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return what makes a directory, or a link, of a user's."""

    def made(
        name: str, user: int = 0, mode: int = 0o755, to: str | None = None, group: int = 0
    ) -> Path:
        path = tmp_path / name
        if to is None:
            path.mkdir()
            path.chmod(mode)
        else:
            path.symlink_to(tmp_path / to)
        os.chown(path, user, group, follow_symlinks=False)
        if to is None:
            path.chmod(mode)
        return path

    return made


def led(path: Path, trust: Trust = ROOTS) -> str:
    """Return where a path leads."""
    with route(str(path), trust) as found:
        assert os.path.samestat(os.stat(found.resolved), os.fstat(found.descriptor))
        return found.resolved


def refused(path: Path, words: str, trust: Trust = ROOTS) -> None:
    with pytest.raises(UnsafePath, match=words), route(str(path), trust):
        pass


def test_links_of_those_who_are_trusted(make: Callable[..., Path], tmp_path: Path) -> None:
    real = make("real")
    make("link", to="real")
    make("dots", to="link/../link/.")
    assert led(tmp_path / "link") == led(tmp_path / "dots") == str(real)
    assert led(Path("/")) == "/"
    assert led(Path(f"{real}//../real/")) == str(real)


def test_a_relative_path(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = make("real")
    monkeypatch.chdir(tmp_path)
    assert led(Path("real")) == str(real)


def test_what_leads_nowhere(make: Callable[..., Path], tmp_path: Path) -> None:
    make("loop", to="loop")
    (tmp_path / "file").write_text("")
    for name, number in (
        ("none", errno.ENOENT),
        ("loop", errno.ELOOP),
        ("file/", errno.ENOTDIR),
        ("file/below", errno.ENOTDIR),
        ("n" * 300, errno.ENAMETOOLONG),
    ):
        with pytest.raises(OSError, match=r"\w") as caught, route(f"{tmp_path}/{name}", ROOTS):
            pass
        assert caught.value.errno == number


def test_no_descriptor_is_left(make: Callable[..., Path], tmp_path: Path) -> None:
    make("alice", ALICE)
    make("alice/link", ALICE, to="secret")
    make("secret")
    before = os.listdir("/proc/self/fd")
    refused(tmp_path / "alice/link", "alice|uid 1000")
    led(tmp_path / "secret")
    assert os.listdir("/proc/self/fd") == before


def test_a_directory_in_a_users_own_folder(make: Callable[..., Path]) -> None:
    """That user decides what it is, among that user's own directories."""
    make("alice", ALICE)
    own = make("alice/own", ALICE)
    roots, bobs = make("alice/roots"), make("alice/bobs", BOB)
    assert led(own) == str(own)
    refused(roots, "what is there is root's")
    refused(bobs, "what is there is")
    for path in (own, roots, bobs):  # who is not root opens no more than the user could let in
        assert led(path, BOBS) == str(path)


def test_a_link_in_a_users_own_folder(make: Callable[..., Path], tmp_path: Path) -> None:
    make("alice", ALICE)
    own = make("alice/own", ALICE)
    make("secret", mode=0o755)
    make("bobs", BOB)
    for name, to in (("a", "alice/own"), ("b", "secret"), ("c", "bobs"), ("d", "alice/b")):
        make(f"alice/{name}", ALICE, to=to)
    for trust in (ROOTS, BOBS):
        assert led(tmp_path / "alice/a", trust) == str(own)
        for name in "bcd":
            refused(tmp_path / "alice" / name, "decides in .*alice where this leads", trust)


def test_what_the_keeper_may_not_enter(make: Callable[..., Path], tmp_path: Path) -> None:
    """A directory of one's own where one does not come: a backup, a container's volume."""
    make("closed", mode=0o700)
    own = make("closed/own", ALICE)
    make("alice", ALICE)
    make("alice/link", ALICE, to="closed/own")
    refused(tmp_path / "alice/link", "is closed to others")
    assert led(own) == str(own)  # which root named


def test_two_who_decide(make: Callable[..., Path], tmp_path: Path) -> None:
    make("alice", ALICE)
    make("alice/bob", BOB)
    make("alice/bob/own", BOB)
    refused(tmp_path / "alice/bob/own", "decides as well")


def test_a_sticky_folder(make: Callable[..., Path], tmp_path: Path) -> None:
    make("tmp", mode=0o1777)
    make("secret")
    own, roots = make("tmp/own", ALICE), make("tmp/roots")
    make("tmp/bad", ALICE, to="secret")
    make("tmp/good", ALICE, to="tmp/own")
    make("tmp/ours", to="secret")
    for trust in (ROOTS, BOBS):
        for path in (own, roots):
            assert led(path, trust) == str(path)
        assert led(tmp_path / "tmp/good", trust) == str(own)
        assert led(tmp_path / "tmp/ours", trust) == str(tmp_path / "secret")
        refused(tmp_path / "tmp/bad", "where this leads", trust)


@pytest.mark.parametrize("mode", [0o777, 0o2775])
def test_a_folder_that_others_may_write(
    make: Callable[..., Path], tmp_path: Path, mode: int
) -> None:
    folder = make("open", mode=mode, group=LAB)
    here = make("open/here")
    make("open/bad", ALICE, to="secret")
    make("secret")
    if mode == 0o777:
        refused(here, "everybody may write .*chmod")
    for trust in (ROOTS, BOBS) if mode != 0o777 else (BOBS,):
        with route(str(here), trust) as found:
            assert len(found.risks) == 1
            assert not keeps_entries(found, trust)
        refused(tmp_path / "open/bad", "where this leads", trust)
    with route(str(folder), ROOTS) as found:
        assert not found.risks
        assert not keeps_entries(found, ROOTS)


def test_a_closed_directory_in_a_folder_of_a_group(make: Callable[..., Path]) -> None:
    """A member could have given it this name, to see what is in it."""
    make("open", mode=0o2775, group=LAB)
    closed, of_group = make("open/closed", mode=0o700), make("open/group", mode=0o2770, group=LAB)
    refused(closed, "is closed to them")
    for path, trust in ((of_group, ROOTS), (closed, BOBS)):
        assert led(path, trust) == str(path)


def test_a_link_with_two_names(make: Callable[..., Path], tmp_path: Path) -> None:
    """If the kernel lets all users link to all files, a link owned by root proves nothing."""
    make("tmp", mode=0o1777)
    make("secret")
    link = make("link", to="secret")
    os.link(link, tmp_path / "tmp/link", follow_symlinks=False)
    refused(tmp_path / "tmp/link", "several names")
    assert led(link) == str(tmp_path / "secret")


def test_what_a_users_own_file_system_says(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owners are what the user makes of them, so all of it is that user's."""
    make("secret")
    make("link", to="secret")
    monkeypatch.setattr(trust_module, "_mounter", lambda _: ALICE)
    with route(str(tmp_path / "link"), ROOTS) as found:  # "/" is that user's by now
        assert found.owner == found.keeper == ALICE


class Libc:
    """A libc for which every file is on a file system in user space, which may tell nothing."""

    def __init__(self, result: int = 0) -> None:
        self._result = result

    def fstatfs(self, _: int, answer: ctypes.Array[ctypes.c_char]) -> int:
        if not self._result:
            ctypes.c_long.from_buffer(answer).value = 0x65735546
        return self._result


@pytest.mark.parametrize("result", [0, -1])
@pytest.mark.parametrize(
    ("options", "mounter"),
    [("rw,user_id=1000,group_id=1000", 1000), ("rw,user_id=0,group_id=0", None), ("rw", None)],
)
def test_who_has_mounted_a_file_system(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    mounter: int | None,
    result: int,
) -> None:
    """By the mount's options; virtiofs, say, has no such user."""
    texts = {
        "/proc/self/fdinfo/7": "pos:\t0\nmnt_id:\t41\n",
        "/proc/self/mountinfo": f"1 0 0:1 / / rw - ext4 /dev/x rw,user_id=5\n41 1 0:50 / {tmp_path}"
        f" rw shared:1 - fuse.sshfs host: {options}\n",
    }
    monkeypatch.setattr(trust_module, "_LIBC", Libc(result))
    monkeypatch.setattr("builtins.open", lambda path, _: io.BytesIO(texts[path].encode()))
    assert trust_module._mounter(7) == mounter
    texts["/proc/self/fdinfo/7"] = "mnt_id:\t42\n"  # which was unmounted since
    with pytest.raises(OSError, match="Stale"):
        trust_module._mounter(7)


def test_whose_file_it_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    def required(trust: Trust = ROOTS) -> None:
        with route(str(file), trust) as found:
            require_own(found, str(file), trust)

    for mode, group, words in (
        (0o644, 0, ""),
        (0o664, 0, ""),
        (0o664, LAB, "group 2001 may write"),
        (0o646, 0, "everybody may write"),
    ):
        os.chown(file, 0, group)
        file.chmod(mode)
        if not words:
            required()
            continue
        with pytest.raises(UnsafePath, match=words):
            required()
    file.chmod(0o644)
    os.chown(file, ALICE, 0)
    with pytest.raises(UnsafePath, match="who would decide what root does"):
        required()
    os.chown(file, BOB, 0)
    required(BOBS)


def test_an_access_list_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o664)
    with route(str(tmp_path / "file"), ROOTS) as found:
        assert who_may_write(found.descriptor, found.status, ROOTS) == ""
        monkeypatch.setattr(os, "getxattr", lambda *_: b"")
        assert "access list" in who_may_write(found.descriptor, found.status, ROOTS)


@pytest.mark.parametrize(
    ("ids", "users"),
    [
        ((0, 0, None, None), {0}),
        ((0, 0, "1000", "1000"), {0, 1000}),
        ((0, 0, "-1", None), {0}),
        ((1001, 1001, "1000", "1000"), {0, 1001}),
    ],
)
def test_whom_a_process_trusts(
    ids: tuple[int, int, str | None, str | None], users: set[int]
) -> None:
    trust = trust_module._trust.__wrapped__(*ids)
    assert trust.users == trust.groups == users


@pytest.mark.parametrize(
    ("group", "name", "members", "is_trusted"),
    [
        (1500, "alice", [], True),
        (1500, "alice", ["alice"], True),
        (1500, "alice", ["bob"], False),
        (1500, "lab", [], True),  # whatever its name: it was made with the user
        (1500, "lab", ["alice", "bob"], False),
        (1600, "alice", [], True),
        (1600, "alice", ["bob"], False),
        (1600, "lab", [], False),
    ],
)
def test_a_group_is_trusted_without_other_members(
    group: int, name: str, members: list[str], is_trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = grp.struct_group((name, "x", group, members))
    monkeypatch.setattr(grp, "getgrgid", lambda _: entry)
    user = pwd.struct_passwd(("alice", "x", 1500, group, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    assert (group in trust_module._trust.__wrapped__(1500, group, None, None).groups) == is_trusted
    if group == 1500:
        by_sudo = trust_module._trust.__wrapped__(0, 0, "1500", "1500")
        assert (group in by_sudo.groups) == is_trusted


@pytest.mark.parametrize(
    ("user", "capabilities", "reads_all"),
    [(0, 0, True), (1001, 0, False), (1001, 1 << 2, True), (1001, 1 << 1, True), (1001, 1, False)],
)
def test_who_reads_all(
    monkeypatch: pytest.MonkeyPatch, user: int, capabilities: int, reads_all: bool
) -> None:
    """Root does, and so does a service whose unit grants it CAP_DAC_READ_SEARCH."""
    status = f"Name: x\nCapEff:\t{capabilities:016x}\n"
    monkeypatch.setattr("builtins.open", lambda *_: io.StringIO(status))
    monkeypatch.setattr(trust_module, "_knows_all_ids", lambda _: True)
    assert trust_module._trust.__wrapped__(user, user, None, None).reads_all == reads_all


def test_what_is_above_a_directory_that_can_be_moved(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    make("alice", ALICE)
    make("alice/sub", ALICE)
    make("secret")
    for trust in (ROOTS, BOBS):
        refused(tmp_path / "alice/sub/../../secret", "where this leads", trust)
        assert led(tmp_path / "alice/sub/../sub", trust) == str(tmp_path / "alice/sub")


def test_in_a_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, who owns what is the host's is not to be told: the host's root is one of them."""
    monkeypatch.setattr(trust_module, "_knows_all_ids", lambda _: False)
    assert trust_module._trust.__wrapped__(0, 0, None, None).users == {0, 65534}
