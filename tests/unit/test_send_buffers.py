"""How much the kernel may hold for clients, by the memory that the daemon may take."""

import socket
from collections.abc import Iterator

import pytest

from vuserd.delivery.cgroups import UNLIMITED
from vuserd.delivery.headroom import HEADROOM
from vuserd.rpc.send_buffers import fit_send_buffer

MIB = 1 << 20
MOST = 4096


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def size_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@pytest.mark.parametrize("memory", [8 << 30, UNLIMITED])
def test_where_there_is_memory_the_first_are_wide_and_the_others_usual(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(HEADROOM, "total", lambda: memory)
    usual = size_of(sock)
    fit_send_buffer(sock, 65, MOST)
    assert size_of(sock) == usual
    fit_send_buffer(sock, 64, MOST)
    assert size_of(sock) > usual


@pytest.mark.parametrize("memory", [100 * MIB, 300 * MIB, 1 << 30, 2 << 30])
def test_where_there_is_little_a_user_takes_a_part_of_it(
    sock: socket.socket, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(HEADROOM, "total", lambda: memory)
    usual, taken = size_of(sock), 0
    for number in range(1, MOST + 1):
        if number <= 66:  # they are as large as that from here on
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, usual // 2)
            fit_send_buffer(sock, number, MOST)
        taken += size_of(sock)
    # The kernel has a least of its own, some 9 KiB.
    assert taken <= max(memory // 4, MOST * 9300 + memory // 8)
