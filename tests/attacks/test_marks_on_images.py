"""What one user can leave on an image for another, who holds the same one."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.attacks.daemons import serving
from tests.attacks.people import MALLORY, VICTIM, run_as
from tests.attacks.threats import Who, threat
from vuserd.client import Client

_FOR_BOTH: Final = """
[[listen]]
socket = "{ground}/s"
mode = "0666"
[[export]]
name = "files"
path = "{ground}/export"
backend = "{backend}"
users = [1000, 1001]
"""

_MARKS: Final[dict[str, Callable[[int], object]]] = {
    "a user attribute": lambda image: os.setxattr(image, "user.mark", b"1"),
    "the time of now": lambda image: os.utime(image),
    "another time": lambda image: os.utime(image, ns=(1, 1)),
    "permissions": lambda image: os.fchmod(image, 0o777),
    "an owner": lambda image: os.fchown(image, -1, MALLORY),
    "a way to write": lambda image: os.open(f"/proc/self/fd/{image}", os.O_RDWR),
}


@threat(
    "marks on an image",
    who=Who.CLIENT,
    against="other users' images",
    does="sets attributes, times, owner or permissions of an image that others are given",
    promise="of an image that is the daemon's a client changes none of these",
)
def test_an_image_takes_no_marks(ground: Path, rust_virtiofsd: str) -> None:
    def mallory() -> None:
        with Client.connect(str(ground / "s")) as client, client.fetch("files", "hello") as image:
            for name, mark in _MARKS.items():
                try:
                    mark(image.fileno())
                except PermissionError:
                    continue
                raise AssertionError(name)

    def victim() -> None:
        with Client.connect(str(ground / "s")) as client, client.fetch("files", "hello") as image:
            assert bytes(image.buffer()) == b"hello\n"
            assert os.fstat(image.fileno()).st_mode & 0o7777 == 0o444
            assert os.listxattr(image.fileno()) == []

    with serving(ground, rust_virtiofsd, _FOR_BOTH):
        assert run_as(MALLORY, mallory) == 0
        assert run_as(VICTIM, victim) == 0


@threat(
    "locks on an image",
    who=Who.CLIENT,
    against="other users who fetch the same file",
    does="locks the image, watches its times, and looks whether it was there before",
    promise="an image is one user's: no other is given the same memory, or told of it",
)
def test_no_two_users_have_one_image(ground: Path, virtiofsd: str) -> None:
    with (
        serving(ground, virtiofsd, _FOR_BOTH),
        Client.connect(str(ground / "s")) as root,
        root.fetch("files", "hello"),
        root.fetch("files", "hello") as ours,
    ):
        assert ours.cached
        fcntl.flock(ours.fileno(), fcntl.LOCK_EX)
        inode = os.fstat(ours.fileno()).st_ino

        def victim() -> None:
            with (
                Client.connect(str(ground / "s")) as client,
                client.fetch("files", "hello") as image,
            ):
                assert not image.cached
                assert os.fstat(image.fileno()).st_ino != inode
                fcntl.flock(image.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

        assert run_as(VICTIM, victim) == 0
