"""Replies on their way out, over real sockets that take less than there is."""

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from memory.arena import Buffer, BufferState
from vuserd.delivery.inline import FileContent
from vuserd.rpc.outbox import Outbox, Reply
from vuserd.wire.descriptors import received_descriptors

LARGE = os.urandom(3 << 20)
SHARE = 128 << 10


class Sender:
    """An outbox, the client's end of its socket, and what became of the replies."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.replies_gone: list[Reply] = []
        self.alone = True
        self.outbox = Outbox(self.ours, self, self)

    def gone(self, reply: Reply) -> None:
        self.replies_gone.append(reply)

    def is_only_client(self) -> bool:
        return self.alone

    def is_alone(self) -> bool:
        return self.alone

    async def take_turn(self) -> None:
        raise AssertionError("what is sent in shares needs no turns")

    def received(self, size: int = 16 << 20) -> bytes:
        """Take what is there."""
        taken = b""
        while True:
            try:
                taken += self.theirs.recv(size)
            except BlockingIOError:
                return taken


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender()
    yield made
    made.outbox.close()
    made.ours.close()
    made.theirs.close()


async def sending(sender: Sender) -> None:
    """Send all that waits, or comes to wait meanwhile."""
    while await sender.outbox.send_more(30.0):
        pass


async def collected(sender: Sender, size: int) -> bytes:
    """Run the outbox until so many bytes have come."""
    taken = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending, sender)
        while len(taken) < size:
            await trio.lowlevel.wait_readable(sender.theirs)
            taken += sender.received()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return taken


async def test_a_small_reply_leaves_at_once(sender: Sender) -> None:
    assert sender.outbox.send(Reply([b"one", b"two"]))
    assert sender.received() == b"onetwo"
    assert len(sender.replies_gone) == 1


async def test_large_ones_leave_in_order_and_in_parts(sender: Sender) -> None:
    replies = [Reply([b"head", memoryview(LARGE)]), Reply([b"tail"], payload=7)]
    for reply in replies:
        assert not sender.outbox.send(reply)
    assert sender.replies_gone == []
    whole = b"head" + LARGE + b"tail"
    assert await collected(sender, len(whole)) == whole
    assert sender.replies_gone == replies


@pytest.mark.parametrize("alone", [True, False])
async def test_others_wait_for_one_share_only(sender: Sender, alone: bool) -> None:
    sender.alone = alone
    sender.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sender.outbox.send(Reply([b"head", *[memoryview(LARGE)[:200_000]] * 5]))
    got = len(sender.received())
    assert got > SHARE if alone else got == SHARE


async def test_the_next_share_follows_in_the_next_pass(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def waited(_: object) -> None:
        raise AssertionError("there is room in the socket")

    sender.alone = False
    sender.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sender.outbox.send(Reply([memoryview(LARGE)[: 2 * SHARE]]))
    monkeypatch.setattr(trio.lowlevel, "wait_writable", waited)
    with trio.testing.assert_checkpoints():
        assert not await sender.outbox.send_more(1.0)
    assert len(sender.received()) == 2 * SHARE


async def test_a_descriptor_goes_with_its_own_reply(sender: Sender) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    sender.outbox.send(Reply([memoryview(LARGE)]))
    sender.outbox.send(Reply([b"with"], descriptor=reader))
    sender.outbox.send(Reply([b"after"]))
    taken, descriptors = b"", []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending, sender)
        while len(taken) < len(LARGE) + 9:
            await trio.lowlevel.wait_readable(sender.theirs)
            data, ancillary, _, _ = sender.theirs.recvmsg(1 << 20, socket.CMSG_SPACE(16))
            new = received_descriptors(ancillary)
            if new:
                assert data.startswith(b"with")
            taken += data
            descriptors += new
        nursery.cancel_scope.cancel()
    assert taken == LARGE + b"withafter"
    assert len(descriptors) == 1
    os.close(descriptors[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


async def test_a_client_that_does_not_read_is_too_slow(
    sender: Sender, autojump_clock: trio.testing.MockClock
) -> None:
    sender.outbox.send(Reply([memoryview(LARGE)]))
    with pytest.raises(trio.TooSlowError):
        await sending(sender)
    assert autojump_clock.current_time() >= 30


class Lent:
    """Content in buffers that all clients share."""

    def __init__(self) -> None:
        self.given_back = trio.Event()

    def reply(self) -> Reply:
        buffer = Buffer(self, memoryview(LARGE), 0)  # type: ignore[arg-type]
        buffer.state = BufferState.OWNED
        content = FileContent([buffer], [len(LARGE)])
        return Reply(content.views(), content=content)

    def put(self, _: Buffer) -> None:
        self.given_back.set()


async def test_shared_buffers_are_kept_while_nobody_else_waits(
    sender: Sender, autojump_clock: trio.testing.MockClock
) -> None:
    lent = Lent()
    async with trio.open_nursery() as nursery:
        sender.outbox.send(lent.reply())
        nursery.start_soon(sending, sender)
        await trio.sleep(5)
        assert not lent.given_back.is_set()
        sender.alone = False
        begun = autojump_clock.current_time()
        await lent.given_back.wait()
        assert autojump_clock.current_time() - begun < 0.12
        nursery.cancel_scope.cancel()
    assert await collected(sender, len(LARGE)) == LARGE


async def test_those_that_come_later_are_unloaded_too(
    sender: Sender, autojump_clock: trio.testing.MockClock
) -> None:
    """And not before they have waited a while: a client may be about to take them."""
    sender.alone = False
    first, second = Lent(), Lent()
    async with trio.open_nursery() as nursery:
        sender.outbox.send(first.reply())
        nursery.start_soon(sending, sender)
        await trio.sleep(0.05)
        assert not first.given_back.is_set()
        await trio.sleep(0.1)
        assert first.given_back.is_set()
        sender.outbox.send(second.reply())
        begun = autojump_clock.current_time()
        await second.given_back.wait()
        assert autojump_clock.current_time() - begun < 0.12
        nursery.cancel_scope.cancel()
    assert await collected(sender, 2 * len(LARGE)) == 2 * LARGE


async def test_a_client_that_reads_one_after_the_other_is_not_unloaded(
    sender: Sender, autojump_clock: trio.testing.MockClock
) -> None:
    """However long the last one waits for those before it."""
    del autojump_clock
    sender.alone = False
    lent = [Lent() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for each in lent:
            sender.outbox.send(each.reply())
        nursery.start_soon(sending, sender)
        for each in lent:
            await trio.sleep(0.08)
            assert not each.given_back.is_set()
            while not each.given_back.is_set():
                await trio.lowlevel.wait_readable(sender.theirs)
                sender.received()
                await wait_all_tasks_blocked()


async def test_a_client_that_is_gone(sender: Sender) -> None:
    sender.outbox.send(Reply([memoryview(LARGE)]))
    sender.theirs.close()
    sender.outbox.send(Reply([b"unheard"]))
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        await sending(sender)
    sender.outbox.close()
    assert len(sender.replies_gone) == 2


def empty_memfd() -> int:
    return os.memfd_create("test", os.MFD_CLOEXEC)


async def test_who_leaves_descriptors_unread_gets_no_more(sender: Sender) -> None:
    """All descriptors that are not received yet count against one limit of the daemon."""
    replies = [Reply([b"r"], empty_memfd()) for _ in range(200)]
    for reply in replies:
        sender.outbox.send(reply)
    sent = len(sender.replies_gone)
    assert 16 <= sent <= 100
    descriptors: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending, sender)
        while len(descriptors) < len(replies):
            await trio.lowlevel.wait_readable(sender.theirs)
            _, ancillary, _, _ = sender.theirs.recvmsg(1, socket.CMSG_SPACE(4))
            descriptors += received_descriptors(ancillary)
        nursery.cancel_scope.cancel()
    assert sender.replies_gone == replies
    for descriptor in descriptors:
        os.close(descriptor)


async def test_who_reads_none_of_them_is_too_slow(
    sender: Sender, autojump_clock: trio.testing.MockClock
) -> None:
    for _ in range(200):
        sender.outbox.send(Reply([b"r"], empty_memfd()))
    with pytest.raises(trio.TooSlowError):
        await sending(sender)
    assert 30 <= autojump_clock.current_time() < 31


class Refusing:
    """A socket of a kernel that passes no more descriptors on (unix(7): ETOOMANYREFS)."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def sendmsg(self, pieces: list[bytes], ancillary: list[object], flags: int) -> int:
        if ancillary:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return self._socket.sendmsg(pieces, [], flags)


async def test_a_descriptor_that_the_kernel_does_not_pass_on(sender: Sender) -> None:
    descriptor = empty_memfd()
    refusing: Any = Refusing(sender.ours)
    sender.outbox = Outbox(refusing, sender, sender)
    sender.outbox.send(Reply([b"image"], descriptor, instead=b"none"))
    sender.outbox.send(Reply([b"next"]))
    assert await collected(sender, 8) == b"nonenext"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
