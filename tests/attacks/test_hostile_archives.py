"""What a hostile daemon can have an archive of its tree unpack."""

import os
import signal
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from tests.attacks.false_daemons import PATIENCE, false_daemon, reply
from tests.attacks.people import VICTIM, run_as
from tests.attacks.threats import Who, threat
from tests.e2e.archived_tree import read_newc
from vuserd.client.archive import archiving, newc, tar
from vuserd.ctl import main
from vuserd.ctl.copying import archive

#: Loaded before a user who cannot read this interpreter has vuserctl do it.
_LOADED: Final = (archive, archiving, newc, tar)

_NUMBERS: Final = (
    "mode", "size", "ino", "nlink", "uid", "gid", "rdev", "blocks", "blksize",
    "atime_ns", "mtime_ns", "ctime_ns",
)  # fmt: skip
_FORMATS: Final = {"dir": stat.S_IFDIR, "file": stat.S_IFREG, "symlink": stat.S_IFLNK}
_EVIL: Final = b"evil"


def _entry(path: str, kind: str = "file", **others: int) -> dict[str, Any]:
    size = len(_EVIL) if kind == "file" else 0
    numbers = dict.fromkeys(_NUMBERS, 1) | {"mode": _FORMATS[kind] | 0o755, "size": size}
    return {"path": path, "type": kind, **numbers, **others}


#: Pages of a walk, and what the archive is: None if there may be none.
_WALKS: Final[dict[str, tuple[list[list[dict[str, Any]]], list[str] | None]]] = {
    "above": ([[_entry("../outside")]], None),
    "absolute": ([[_entry("/outside")]], None),
    "a link, and a folder of its name": (
        [[_entry("x", "symlink"), _entry("x", "dir"), _entry("x/outside")]],
        None,
    ),
    "a folder, and a link of its name": (
        [[_entry("x", "dir"), _entry("x", "symlink"), _entry("x/inside")]],
        ["x", "x/inside"],
    ),
    "a link in the place of a folder, a page later": (
        [[_entry("x", "dir")], [_entry("x", "symlink"), _entry("x/inside")]],
        ["x", "x/inside"],
    ),
    "a folder that is not there": ([[_entry("x/inside")]], None),
    "one inode for a file, a link and a folder": (
        [[_entry(name, kind, ino=7, nlink=3) for name, kind in zip("abc", _FORMATS, strict=True)]],
        ["a", "b", "c"],
    ),
    "files that are no links": (
        [[_entry("a", ino=7, nlink=2), _entry("b", ino=7, nlink=9)]],
        ["a", "b"],
    ),
    "a file with the mode of a link": ([[_entry("x", mode=stat.S_IFLNK | 0o777)]], ["x"]),
    "a file with the mode of a device": ([[_entry("x", mode=stat.S_IFCHR | 0o666)]], ["x"]),
    "a file that is longer": ([[_entry("x", size=1)]], ["x"]),
    "a file that is shorter": ([[_entry("x", size=100)]], ["x"]),
}


def _answering(pages: list[list[dict[str, Any]]]) -> Callable[[socket.socket, int, str], None]:
    def tokens() -> Iterator[dict[str, Any]]:
        while True:  # both looks see the same
            for number, entries in enumerate(pages, 1):
                following = number if number < len(pages) else None
                yield {"entries": entries, "problems": [], "next": following}

    walk = tokens()
    info = {"version": "1", "api_level": 1, "api_compatible": 1, "methods": [], "errors": []}
    top = _entry(".", "dir")
    opened = _entry("x") | {"file": 1, "settled": True, "by_attributes": True}

    def answer(connection: socket.socket, number: int, method: str) -> None:
        match method:
            case "api_info":
                reply(connection, number, info)
            case "walk":
                reply(connection, number, next(walk))
            case "stat":
                reply(connection, number, top)
            case "readlink":
                reply(connection, number, "/")
            case "open":
                reply(connection, number, opened)
            case "read":
                reply(connection, number, _EVIL)
            case "close":
                reply(connection, number, None)
            case _:
                error = {"code": "UNKNOWN_METHOD", "message": "no such method"}
                connection.sendall(msgpack.packb([1, number, error, None]))

    return answer


def _names_of_tar(path: Path) -> list[str]:
    """Return the names in a tar, once it is known that none leads out of where it is unpacked."""
    kinds: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(path) as opened:
        for member in opened:
            assert member.name not in kinds
            above, _, name = member.name.rpartition("/")
            assert name not in ("", "..")
            assert not above or kinds[above].isdir()
            assert not member.islnk() or kinds[member.linkname].isreg()
            assert not member.isdev()
            kinds[member.name] = member
    return [*kinds][1:]


def _names_of_newc(path: Path) -> list[str]:
    """Do the same with newc."""
    modes = {name.decode(): each.mode for name, each in read_newc(path.read_bytes()).items()}
    for member, mode in modes.items():
        above, _, name = member.rpartition("/")
        assert name not in ("", "..")
        assert not above or stat.S_ISDIR(modes[above])
        assert stat.S_IFMT(mode) in _FORMATS.values()
    return [*modes][1:]


@threat(
    "archive of a false tree",
    who=Who.FALSE_DAEMON,
    against="where an archive is unpacked",
    does="lists names that lead out, names twice, folders that become links, links, inode numbers,"
    " modes and sizes that lie",
    promise="an archive has each name once, below folders alone, with a file's, folder's or link's"
    " own head, and no other member; or there is none",
)
@pytest.mark.parametrize("kind", _WALKS)
@pytest.mark.parametrize("form", ["newc", "tar"])
def test_an_archive_leads_nowhere_else(ground: Path, kind: str, form: str) -> None:
    pages, names = _WALKS[kind]
    (ground / "home").mkdir()
    (ground / "home").chmod(0o777)
    written, said = ground / "home" / "archive", ground / "home" / "said"

    def victim() -> int:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        words = ["archive", "--allow-changes", "--format", form, "-o", str(written), "x:"]
        with said.open("w") as told, redirect_stderr(told):
            return main.run(["--socket", path, *words])

    with false_daemon(ground, _answering(pages)) as path:
        status = run_as(VICTIM, victim)
    if names is None:
        assert status == 1
        assert "no path of a file" in said.read_text() or "below no directory" in said.read_text()
        assert not written.exists()
    elif written.exists():
        read = _names_of_tar if form == "tar" else _names_of_newc
        assert read(written) == names
        assert os.stat(written).st_uid == VICTIM
    else:
        assert "longer" in kind or "shorter" in kind, said.read_text()
        assert status in (1, 75)
