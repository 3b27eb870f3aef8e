"""Images that a client keeps: they count as long as it has them, in whatever way."""

import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.attacks.daemons import serving
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.attacks.threats import Who, threat
from vuserd.client import Client
from vuserd.client.errors import RemoteError

_FOR_BOTH: Final = """
[limits]
user_images = "4M"
[[listen]]
socket = "{ground}/s"
mode = "0666"
[[export]]
name = "files"
path = "{ground}/export"
backend = "{backend}"
users = [1000, 1001]
"""
_SIZE: Final = 1 << 20


def in_a_message(image: int) -> object:
    """Keep an image as a message that nobody has received."""
    ends = socket.socketpair()
    socket.send_fds(ends[0], [b"!"], [image])
    return ends


#: Ways to keep one, after which the descriptor is closed.
_WAYS: Final[dict[str, Callable[[int], object]]] = {
    "a descriptor": lambda image: os.fdopen(os.dup(image), "rb"),
    "a mapping": lambda image: mmap.mmap(image, _SIZE, prot=mmap.PROT_READ),
    "a path": lambda image: os.fdopen(os.open(f"/proc/self/fd/{image}", os.O_PATH), "rb"),
    "a message": in_a_message,
}


@threat(
    "kept images",
    who=Who.CLIENT,
    against="the machine's memory",
    does="fetches ever more images and keeps them, as descriptors, paths, mappings or messages",
    promise="they count against their user until nobody has them, and others are served",
)
@pytest.mark.parametrize("way", _WAYS)
def test_kept_images_are_bounded_for_a_user(ground: Path, rust_virtiofsd: str, way: str) -> None:
    for number in range(8):
        (ground / "export" / f"{number}").write_bytes(b"x" * _SIZE)

    def mallory() -> None:
        with Client.connect(str(ground / "s")) as client:
            kept = []
            for number in range(4):
                with client.fetch("files", f"{number}") as image:
                    kept.append(_WAYS[way](image.fileno()))
            for _ in range(2):
                with pytest.raises(RemoteError, match="close some") as refused:
                    client.fetch("files", "5")
                assert refused.value.code == "BUSY"
                assert client.stat("files", "5").size == _SIZE
            assert run_as_victim() == 0
            kept.clear()
            for number in range(40):
                client.fetch("files", f"{number % 8}").close()

    def run_as_victim() -> int:
        os.write(asking[1], b"!")
        return os.read(answering[0], 1)[0]

    def victim() -> None:
        with Client.connect(str(ground / "s")) as client:
            for number in range(8):
                with client.fetch("files", f"{number}") as image:
                    assert len(image.buffer()) == _SIZE

    asking, answering = os.pipe(), os.pipe()
    with (
        open(asking[0], "rb", buffering=0) as asked,
        open(answering[1], "wb", buffering=0) as answer,
        serving(ground, rust_virtiofsd, _FOR_BOTH),
        As(MALLORY, mallory) as process,
    ):
        os.close(asking[1])
        os.close(answering[0])
        assert asked.read(1), "the client that attacks failed"
        answer.write(bytes([run_as(VICTIM, victim)]))
        assert process.wait() == 0
