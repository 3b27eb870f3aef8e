"""Much work by few bytes, asked for on many connections at once: others are served meanwhile."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Final

import msgpack
import pytest

from tests.attacks.daemons import call, serving
from tests.attacks.people import MALLORY, VICTIM, As, run_as
from tests.attacks.threats import Who, threat

_CONNECTIONS: Final = 300
#: Seconds for a call of the victim's; without the mends some took twice as long.
_PATIENCE: Final = 5.0
_CALLS: Final = 4
#: Seconds without a call, after which the attacker has the daemon for itself again.
_PAUSE: Final = 0.3

_STATUS: Final = msgpack.packb([0, 1, "status", []])
_OF_MANY_VALUES: Final = msgpack.packb([2, "nothing", [[{}] * 900]])


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(
            _STATUS,
            id="status",
            marks=threat(
                "crowd-status",
                who=Who.STRANGER,
                against="other clients",
                does="asks on hundreds of connections at once what all of these do",
                promise="it is told of some of them, one call after the other, and others are"
                " served in between",
            ),
        ),
        pytest.param(
            _OF_MANY_VALUES,
            id="values",
            marks=threat(
                "crowd-values",
                who=Who.STRANGER,
                against="the decoder",
                does="sends frames of as many values as bytes, of which each takes its time, on"
                " hundreds of connections",
                promise="few of them are decoded before others have their turn",
            ),
        ),
    ],
)
@pytest.mark.slow
def test_a_crowd_leaves_others_their_turns(ground: Path, rust_virtiofsd: str, sent: bytes) -> None:
    path = str(ground / "s")
    with serving(ground, rust_virtiofsd), As(MALLORY, lambda: _send_for_ever(path, sent)) as crowd:
        time.sleep(1.0)

        def read() -> int:
            took = []
            for _ in range(_CALLS):
                began = time.monotonic()
                assert call(path, "read", "files", "hello", 0, 9) == (None, b"hello\n")
                took.append(time.monotonic() - began)
                time.sleep(_PAUSE)
            return int(max(took) > _PATIENCE)

        assert run_as(VICTIM, read) == 0
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        assert os.waitid(os.P_PID, crowd.pid, how) is None, "the attack ended too early"


def _send_for_ever(path: str, frame: bytes) -> None:
    sent = memoryview(frame * 64)
    positions = {socket.socket(socket.AF_UNIX): 0 for _ in range(_CONNECTIONS)}
    for sock in positions:
        sock.connect(path)  # waits while the daemon's queue is full
        sock.setblocking(False)
    while True:
        for sock, position in positions.items():
            with contextlib.suppress(BlockingIOError):
                positions[sock] = (position + sock.send(sent[position:])) % len(sent)
            with contextlib.suppress(BlockingIOError):
                sock.recv(1 << 20)
