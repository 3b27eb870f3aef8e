"""Sockets in folders where others may write: what they put there is not taken for the daemon's."""

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.attacks.daemons import call, connected
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.attacks.threats import Who, threat
from tests.running import RunningDaemon
from vuserd.config.model import ListenConfig
from vuserd.errors import ConfigurationError
from vuserd.listen.sockets import listening

_LAB: Final = 2001
_ROUNDS: Final = 40
_CONFIGURATION: Final = """
[[listen]]
socket = "{lab}/s"
mode = "{mode}"
group = 2001
[[export]]
name = "files"
path = "{ground}/export"
backend = "{backend}"
"""

_of_a_socket = threat(
    "socket-replaced",
    who=Who.FOLDER_OWNER,
    against="files of root's",
    does="puts a link, or a name of another file, in the place of the daemon's socket, before and"
    " after it is bound, and while its mode is changed",
    promise="owner and mode are changed of the socket that the daemon has bound, by its"
    " descriptor, and of nothing else",
)
_of_a_stale_one = threat(
    "stale-socket",
    who=Who.FOLDER_OWNER,
    against="files at a socket's path",
    does="puts a link, a file or a socket of their own where the daemon is to listen",
    promise="only a socket that nobody listens on is removed, and only the daemon's own",
)


@pytest.fixture(params=["group", "owner", "everybody"])
def lab(request: pytest.FixtureRequest, ground: Path) -> Path:
    """Give a folder that the attacker may write, as one of a group, as its owner, or as anybody."""
    folder = ground / "lab"
    folder.mkdir()
    if request.param == "owner":
        os.chown(folder, MALLORY, MALLORY)
    else:
        os.chown(folder, 0, _LAB)
    folder.chmod({"group": 0o2770, "owner": 0o755, "everybody": 0o2777}[request.param])
    return folder


@pytest.fixture
def secret(ground: Path) -> Path:
    file = ground / "secret"
    file.write_text("root's\n")
    file.chmod(0o600)
    return file


def is_untouched(secret: Path) -> bool:
    status = secret.stat()
    return stat.S_IMODE(status.st_mode) == 0o600 and (status.st_uid, status.st_gid) == (0, 0)


@_of_a_socket
def test_a_link_in_the_place_of_a_socket(
    ground: Path, lab: Path, secret: Path, rust_virtiofsd: str
) -> None:
    """The daemon serves in such a folder, and a reload changes the mode of what it has bound.

    It says as well that clients do not find that any more.
    """
    configuration = ground / "vuserd.toml"
    text = _CONFIGURATION.replace("{lab}", str(lab)).replace("{ground}", str(ground))
    text = text.replace("{backend}", rust_virtiofsd)
    configuration.write_text(text.replace("{mode}", "0660"))

    def replace() -> None:
        os.rename(lab / "s", lab / "taken")
        os.symlink(secret, lab / "s")

    daemon = RunningDaemon(
        {}, lab / "s", None, "--config", str(configuration), configured=True, folder=ground
    )
    with daemon, connected(lab / "s") as manager:
        status = (lab / "s").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, _LAB)
        assert run_as(MALLORY, replace, groups=[_LAB]) == 0
        configuration.write_text(text.replace("{mode}", "0666"))
        assert call(lab / "taken", "reload", None) == (
            None,
            [f"socket {lab}/s: cannot listen on {lab}/s: it exists and is no socket"],
        )
        assert stat.S_IMODE((lab / "taken").stat().st_mode) == 0o666
        assert is_untouched(secret)
        manager.close()
        os.unlink(lab / "s")  # which the daemon would leave, since it is not its own
        os.rename(lab / "taken", lab / "s")


@contextlib.contextmanager
def swapped_for_ever(lab: Path, secret: Path) -> Iterator[None]:
    """Have the attacker replace whatever has the socket's name by a link, all the time."""

    def swap() -> None:
        number = 0
        while True:
            number += 1
            with contextlib.suppress(OSError):
                os.symlink(secret, lab / f"{number}")
                os.rename(lab / f"{number}", lab / "s")
            with contextlib.suppress(OSError):
                os.unlink(lab / "s")

    with As(MALLORY, swap, groups=[_LAB]):
        yield


@_of_a_socket
def test_a_race_for_the_name(lab: Path, secret: Path) -> None:
    """However it ends, no file but the socket has had its mode or owner changed."""
    with swapped_for_ever(lab, secret):
        bound = 0
        for _ in range(_ROUNDS * 10):
            with (
                contextlib.suppress(ConfigurationError),
                listening(ListenConfig(str(lab / "s"), 0o666, _LAB)) as made,
            ):
                bound += 1
                made.permit(ListenConfig(str(lab / "s"), 0o660, _LAB))
            if bound == _ROUNDS:
                break
    assert bound
    assert is_untouched(secret)
    assert not [name for name in os.listdir(lab) if name.startswith(".")]


@_of_a_socket
def test_another_folder_in_the_place_of_the_hidden_one(
    lab: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of root's own, which has a file with the name that the socket is to have for a moment."""
    (lab / "roots").mkdir(mode=0o700)
    (lab / "roots" / "s").write_text("root's")
    mkdir = os.mkdir

    def swapped(path: str, mode: int, *, dir_fd: int) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        os.rmdir(lab / path)
        os.rename(lab / "roots", lab / path)

    monkeypatch.setattr(os, "mkdir", swapped)
    with (
        pytest.raises(ConfigurationError, match="in use"),
        listening(ListenConfig(str(lab / "s"))),
    ):
        pass
    (left,) = lab.iterdir()
    assert (left / "s").read_text() == "root's"
    assert is_untouched(secret)


def test_a_name_that_is_taken_meanwhile(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a directory, which no socket replaces: nothing is left of it."""
    mkdir = os.mkdir

    def taken(path: str, mode: int, *, dir_fd: int) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        mkdir(lab / "s")

    monkeypatch.setattr(os, "mkdir", taken)
    with (
        pytest.raises(ConfigurationError, match="is a directory"),
        listening(ListenConfig(str(lab / "s"))),
    ):
        pass
    assert os.listdir(lab) == ["s"]


@_of_a_stale_one
@pytest.mark.parametrize("kind", ["link to a socket", "link", "file", "socket"])
def test_what_stands_at_the_path(lab: Path, ground: Path, secret: Path, kind: str) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as own:
        own.bind(str(ground / "stale"))  # of root's, and nobody listens

    def prepare() -> None:
        if kind == "file":
            (lab / "s").write_text("mine")
        elif kind == "socket":
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as left:
                left.bind(str(lab / "s"))
        else:
            os.symlink(secret if kind == "link" else ground / "stale", lab / "s")

    assert run_as(MALLORY, prepare, groups=[_LAB]) == 0
    with (
        pytest.raises(ConfigurationError, match=r"no socket|has left a socket"),
        listening(ListenConfig(str(lab / "s"))),
    ):
        pass
    assert os.path.lexists(lab / "s")
    assert (ground / "stale").is_socket()
    assert is_untouched(secret)


@_of_a_stale_one
def test_its_own_stale_socket_is_replaced(lab: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as own:
        own.bind(str(lab / "s"))
    with listening(ListenConfig(str(lab / "s"), 0o666)) as bound:
        threading.Thread(target=lambda: connected(lab / "s").close()).start()
        bound.socket.setblocking(True)
        bound.socket.accept()[0].close()
    assert not (lab / "s").exists()


def test_a_user_in_a_folder_for_all(ground: Path) -> None:
    """As in /tmp: without complaint."""
    ground.chmod(0o1777)

    def serve() -> None:
        with listening(ListenConfig(str(ground / "s"), 0o666)):
            assert stat.S_IMODE((ground / "s").stat().st_mode) == 0o666
        assert not (ground / "s").exists()

    assert run_as(VICTIM, serve) == 0
