"""What a hostile daemon says in listings, trees and archives: without end, or what no file is."""

import itertools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest

from tests.attacks.false_daemons import PATIENCE, false_daemon, reply
from tests.attacks.people import VICTIM, run_as
from tests.attacks.threats import Who, threat
from tests.fake.tree_pages import columns, page, row
from vuserd.client import TrioClient
from vuserd.client.archive import archiving, tar
from vuserd.ctl import main
from vuserd.ctl.copying import archive, get_tree, tree_by_calls, tree_by_pages
from vuserd.ctl.looking import find, ls

#: Loaded before a user who cannot read this interpreter has vuserctl do it.
_LOADED: Final = (
    TrioClient, archive, archiving, find, get_tree, ls, tar, tree_by_calls, tree_by_pages,
)  # fmt: skip

_NUMBERS: Final = (
    "mode", "size", "ino", "nlink", "uid", "gid", "rdev", "blocks", "blksize",
    "atime_ns", "mtime_ns", "ctime_ns",
)  # fmt: skip
_TOP: Final = dict.fromkeys(_NUMBERS, 1) | {"type": "dir", "mode": 0o40755}
_FILE: Final = dict.fromkeys(_NUMBERS, 1) | {"type": "file", "mode": 0o100644, "name": "f"}

_COMMANDS: Final[dict[str, list[str]]] = {
    "ls": ["ls", "-l", "x:"],
    "find": ["find", "x:"],
    "get": ["get", "-r", "x:", "{home}/copy"],
    "archive": ["archive", "-o", "{home}/archive", "x:"],
}
_of_commands = pytest.mark.parametrize("command", _COMMANDS)
_of_levels = pytest.mark.parametrize("level", [1, 3], ids=["maps", "columns"])


def _answers(
    level: int, listings: Iterator[tuple[list[dict[str, Any]], object]]
) -> Callable[[socket.socket, int, str], None]:
    """Return what answers as a daemon of an API level would, with these entries and tokens."""
    info = {"version": "1", "api_level": level, "api_compatible": 1, "methods": [], "errors": []}

    def answer(connection: socket.socket, number: int, method: str) -> None:
        if method == "api_info":
            reply(connection, number, info)
        elif method == "stat":
            reply(connection, number, _TOP)
        elif method in ("readdir", "walk"):
            entries, following = next(listings)
            shown: Any = [each | {"path": each["name"]} for each in entries]
            if level >= 3:
                fields = ["name", "path", "type", *_NUMBERS]
                shown = {field: [each[field] for each in shown] for field in fields}
            reply(connection, number, {"entries": shown, "problems": [], "next": following})
        elif method == "tree" and level >= 3:
            entries, following = next(listings)
            rows = [row(each["name"]) | {k: each[k] for k in _NUMBERS} for each in entries]
            reply(connection, number, page(columns(rows), b"", [], following))
        else:
            error = {"code": "UNKNOWN_METHOD", "message": "no such method"}
            connection.sendall(msgpack.packb([1, number, error, None]))

    return answer


def _run(path: str, home: Path, command: str) -> tuple[int, str]:
    """Run a command as the victim, for a generous time; return its status and its complaints."""
    home.mkdir()
    home.chmod(0o777)
    complaints = home / "complaints"
    words = [word.format(home=home) for word in _COMMANDS[command]]

    def victim() -> int:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        with (
            complaints.open("w") as said,
            open(os.devnull, "w") as shown,
            redirect_stderr(said),
            redirect_stdout(shown),
        ):
            return main.run(["--socket", path, *words])

    status = run_as(VICTIM, victim)
    return status, complaints.read_text()


def _same_token() -> Iterator[tuple[list[dict[str, Any]], object]]:
    for number in itertools.count():
        yield [_FILE | {"name": str(number)}], b"again"


def _nothing_in_them() -> Iterator[tuple[list[dict[str, Any]], object]]:
    for number in itertools.count():
        yield [], number.to_bytes(8, "big")


@threat(
    "pages that lead nowhere",
    who=Who.FALSE_DAEMON,
    against="who lists, copies or archives a tree",
    does="sends pages of listings, walks and trees without end that have nothing in them, or lead"
    " back to themselves",
    promise="the command ends and says so",
)
@_of_commands
@_of_levels
@pytest.mark.parametrize("pages", [_same_token, _nothing_in_them])
def test_pages_that_lead_nowhere_end(
    ground: Path,
    command: str,
    level: int,
    pages: Callable[[], Iterator[tuple[list[dict[str, Any]], object]]],
) -> None:
    with false_daemon(ground, _answers(level, pages())) as path:
        status, said = _run(path, ground / "home", command)
    assert status == 1
    assert "pages of a listing that lead nowhere" in said


@threat(
    "numbers of no file",
    who=Who.FALSE_DAEMON,
    against="a user's shell and files",
    does="sends listings, walks and trees whose sizes, links, modes or owners are negative or too"
    " large",
    promise="the command says that the answer is bad, and neither shows nor writes anything of it",
)
@pytest.mark.parametrize(
    ("level", "command"), [(1, "ls"), (1, "get"), (3, "ls"), (3, "get"), (3, "archive")]
)
@pytest.mark.parametrize("odd", [{"size": -1}, {"mode": 1 << 32}], ids=["size", "mode"])
def test_numbers_of_no_file_are_refused(
    ground: Path, command: str, level: int, odd: dict[str, int]
) -> None:
    listings = itertools.repeat(([_FILE | odd], None))
    with false_daemon(ground, _answers(level, listings)) as path:
        status, said = _run(path, ground / "home", command)
    assert status == 1
    assert "that no file can have" in said
    assert [*(ground / "home").glob("copy/*")] == []
