"""Arrivals: a few tasks of a crowd wake in each pass, and none that no longer waits."""

import errno
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from vuserd.tasks.crowd import _MOST, Arrivals

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
async def arrivals(nursery: trio.Nursery) -> AsyncIterator[Arrivals]:
    made = Arrivals()
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    yield made
    nursery.cancel_scope.cancel()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    with ExitStack() as stack:
        made = [socket.socketpair() for _ in range(100)]
        for sock in (end for pair in made for end in pair):
            stack.enter_context(sock)
        yield made


@pytest.mark.parametrize("what", ["bytes", "the end"])
async def test_a_crowd_goes_on_in_many_passes(
    arrivals: Arrivals, pairs: list[Pair], what: str
) -> None:
    woken = 0

    async def read(sock: socket.socket) -> None:
        nonlocal woken
        await arrivals.wait_readable(sock)
        assert sock.recv(10) == (b"x" if what == "bytes" else b"")
        woken += 1

    passes = []
    async with trio.open_nursery() as nursery:
        for ours, _ in pairs:
            nursery.start_soon(read, ours)
        await trio.testing.wait_all_tasks_blocked()
        for _, theirs in pairs:
            if what == "bytes":
                theirs.send(b"x")
            else:
                theirs.close()
        with trio.fail_after(5):
            while woken < len(pairs):
                before = woken
                await trio.lowlevel.checkpoint()
                passes.append(woken - before)
    assert max(passes) <= 2 * _MOST  # first in one pass and last in the next, we see two


async def test_who_is_cancelled_waits_no_more_and_may_wait_again(
    arrivals: Arrivals, pairs: list[Pair]
) -> None:
    ours, theirs = pairs[0]
    with trio.move_on_after(0.01) as patience:
        await arrivals.wait_readable(ours)
    assert patience.cancelled_caught
    theirs.send(b"x")
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(5):
        await arrivals.wait_readable(ours)
        await arrivals.wait_readable(ours)  # what is there still is there
    assert ours.recv(10) == b"x"


async def test_without_a_descriptor_trio_does_it(
    monkeypatch: pytest.MonkeyPatch, pairs: list[Pair]
) -> None:
    def refused() -> select.epoll:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(select, "epoll", refused)
    arrivals = Arrivals()
    await arrivals.run()
    ours, theirs = pairs[0]
    theirs.send(b"x")
    with trio.fail_after(5):
        await arrivals.wait_readable(ours)
