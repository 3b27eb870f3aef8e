"""Used rings: what a backend says that it has used."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Opcode
from protocol.virtio_fs import HIPRIO_QUEUE, REQUEST_QUEUE
from tests.attacks.threats import Who, threat
from tests.fake.backend import FakeBackend
from tests.fake.files import Answer, FuseRequest
from tests.faults.catalogue import BROKEN, UNHARMED, fault
from tests.faults.harness import FOR_EVER, Front, stat, statfs

Trick = Callable[[FakeBackend, FuseRequest], None]


def uses(*lengths: int, head: int | None = None, more: int = 0) -> Trick:
    """Put elements for the request's own chain, or for ``head``, into the used ring."""

    def trick(backend: FakeBackend, request: FuseRequest) -> None:
        at = request.chain.head + more if head is None else head
        backend.use_anything(request.queue, *((at, length) for length in lengths))

    return trick


def uses_second_descriptor(backend: FakeBackend, request: FuseRequest) -> None:
    backend.use_anything(request.queue, (request.chain.slots[1], 16))


def moves_index(step: int) -> Trick:
    """Move used.idx by so much, without elements."""

    def trick(backend: FakeBackend, request: FuseRequest) -> None:
        ring = backend.rings[request.queue]
        ring.set_used_index((ring._next_used + step) % 0x10000)
        backend.call(request.queue)

    return trick


def row(name: str, trick: Trick, words: str, done: str) -> object:
    return pytest.param(trick, words, marks=fault(name, done=done, must=BROKEN), id=name)


@threat(
    "lying-ring",
    who=Who.BACKEND,
    against="the daemon's books",
    does="returns chains that it was not given, twice, or with lengths beyond their buffers",
    promise="the session ends with the cause, and a new backend serves (docs/faults.md)",
)
@pytest.mark.parametrize(
    ("trick", "words"),
    [
        row(
            "used-id-out-of-ring",
            uses(104, head=1024),
            "used id 1024 is not the head",
            "a used element names descriptor 1024 of a ring of 1024",
        ),
        row(
            "used-id-all-ones",
            uses(104, head=0xFFFFFFFF),
            "used id 4294967295",
            "a used element names descriptor 0xffffffff",
        ),
        row(
            "used-id-high-bits",
            uses(104, more=0x10000),
            "is not the head",
            "a used element has the right id in its low 16 bits and more above them",
        ),
        row(
            "used-id-unissued",
            uses(104, head=500),
            "used id 500 is not the head",
            "a used element names a descriptor that was never made available",
        ),
        row(
            "used-id-inside-chain",
            uses_second_descriptor,
            "is not the head",
            "a used element names the second descriptor of an outstanding chain",
        ),
        row(
            "used-index-jump",
            moves_index(2),
            "used.idx moved by 2 with 1 outstanding",
            "used.idx moves by 2 with one request outstanding",
        ),
        row(
            "used-index-jump-a-round",
            moves_index(1024),
            "used.idx moved by 1024",
            "used.idx moves by the size of the ring",
        ),
        row(
            "used-index-backwards",
            moves_index(-1),
            "used.idx moved by 65535",
            "used.idx goes back by one",
        ),
        row(
            "used-length-out-of-range",
            uses(105 + 16),
            "used length 121 of 120 writable",
            "the used length is one more than the writable bytes",
        ),
        row(
            "used-length-all-ones",
            uses(0xFFFFFFFF),
            "used length 4294967295",
            "the used length is 0xffffffff",
        ),
        row("used-length-0", uses(0), "0 bytes used", "the used length is 0"),
        row(
            "used-length-less-than-header",
            uses(15),
            "15 bytes used",
            "the used length is one less than an out-header",
        ),
    ],
)
async def test_a_used_ring_that_lies_ends_the_session(
    front: Front, trick: Trick, words: str
) -> None:
    def answer(backend: FakeBackend, request: FuseRequest) -> None:
        trick(backend, request)

    front.tell(Opcode.GETATTR, answer)
    await front.breaks(lambda files: files.stat(b"", follow=True), words)


@fault(
    "used-twice-at-once",
    done="one request's chain is in the used ring twice, with a second request outstanding",
    must=BROKEN,
)
async def test_a_chain_used_twice_at_once(front: Front) -> None:
    held: list[FuseRequest] = []

    def answer(backend: FakeBackend, request: FuseRequest) -> None:
        held.append(request)
        if len(held) == 2:
            body = b"\0" * 80
            head = held[0].chain.head
            held[0].chain.write((96).to_bytes(4, "little") + bytes(4))
            held[0].chain.writable[0][8:16] = held[0].unique.to_bytes(8, "little")
            assert len(body) == 80
            backend.use_anything(1, (head, 96), (head, 96))

    front.tell(Opcode.STATFS, answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(front.files.statfs)  # this one is answered
        await wait_all_tasks_blocked()
        await front.breaks(statfs, "is not the head of an outstanding chain")


@fault(
    "used-twice-later",
    done="a chain that was answered is in the used ring again, once another is outstanding",
    must=BROKEN,
)
async def test_a_chain_used_again_later(front: Front) -> None:
    await statfs(front.files)
    first = front.backend.requests[-1].chain.head

    def answer(backend: FakeBackend, request: FuseRequest) -> None:
        assert request.chain.head != first or len(request.chain.slots) > 1
        stale = first if request.chain.head != first else request.chain.slots[-1]
        backend.use_anything(1, (stale, 96))

    front.tell(Opcode.STATFS, answer)
    await front.breaks(statfs, "is not the head of an outstanding chain")


@fault(
    "used-when-idle",
    done="used.idx moves while nothing at all is outstanding",
    must="The session is declared broken with this cause; the next call gets BACKEND_DOWN.",
)
async def test_a_chain_used_while_none_is_outstanding(front: Front) -> None:
    front.backend.use_anything(REQUEST_QUEUE, (0, 16))
    with trio.fail_after(FOR_EVER):
        reason = await front.session.wait_lost()
    assert "used.idx moved by 1 with 0 outstanding" in str(reason)
    await front.is_over()


@pytest.mark.parametrize(
    ("head", "length", "words"),
    [
        pytest.param(
            None,
            1,
            "used length 1 of 0",
            marks=fault(
                "forget-answered",
                done="a FORGET, which is never answered, is used with a length of 1",
                must="The session is declared broken with this cause; the next call gets"
                " BACKEND_DOWN.",
            ),
            id="forget-answered",
        ),
        pytest.param(
            127,
            0,
            "used id 127",
            marks=fault(
                "forget-id-unissued",
                done="the hiprio queue's used ring names a descriptor that was never made"
                " available",
                must="The session is declared broken with this cause; the next call gets"
                " BACKEND_DOWN.",
            ),
            id="forget-id-unissued",
        ),
    ],
)
async def test_a_lie_on_the_hiprio_queue(
    front: Front, head: int | None, length: int, words: str
) -> None:
    await stat(front.files)
    front.backend.stuck.add(HIPRIO_QUEUE)
    front.files.close()
    await wait_all_tasks_blocked()
    [forget] = front.backend.named(Opcode.BATCH_FORGET)
    at = forget.chain.head if head is None else head
    assert at == head or head is None
    front.backend.use_anything(HIPRIO_QUEUE, (at, length))
    with trio.fail_after(FOR_EVER):
        assert words in str(await front.session.wait_lost())
    await front.is_over()


@fault(
    "answers-before-the-lie",
    done="one element of the used ring is right and the one after it is not",
    must="The first call is served; the session is declared broken for the second.",
)
async def test_what_was_answered_before_the_lie_is_delivered(front: Front) -> None:
    held: list[FuseRequest] = []
    served = 0

    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        held.append(request)
        if len(held) == 2:
            ring = backend.rings[1]
            honest = backend.serve_files(held[0])
            assert honest is not None
            header = (96).to_bytes(4, "little") + bytes(4) + held[0].unique.to_bytes(8, "little")
            held[0].chain.write(header + honest.body)
            ring.place(held[0].chain.head, 96)
            ring.place(777, 96)
            ring.publish()
            backend.call(1)
        return None

    async def first() -> None:
        nonlocal served
        assert (await front.files.statfs()).blocks == 100
        served += 1

    front.tell(Opcode.STATFS, answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await wait_all_tasks_blocked()
        await front.breaks(statfs, "used id 777")
    assert served == 1


def fill(descriptor: int) -> None:
    """Write what it takes: to an end of a pipe, also the one to read from, or to an eventfd."""
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # an eventfd's description is the only one
        own = os.dup(descriptor)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(own, ((1 << 64) - 2).to_bytes(8, sys.byteorder))
    os.close(own)


@contextlib.contextmanager
def never_blocked_by(descriptors: Sequence[int]) -> Iterator[None]:
    """Fail, and go on to the end, where a system call on these does not come back."""

    def fail(*_: object) -> None:
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        pytest.fail("the daemon is blocked")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(5)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@threat(
    "shared-flags",
    who=Who.BACKEND,
    against="the daemon's thread",
    does="sets flags on the descriptors that both have",
    promise="kicks and calls have an open file description on each side",
)
@fault(
    "notifications-that-block",
    done="the backend fills what it was given for kicks and calls, and clears O_NONBLOCK there",
    must=UNHARMED,
)
async def test_nothing_that_the_backend_shares_blocks_the_daemon(front: Front) -> None:
    calls, kicks = front.backend._call.values(), front.backend._kick.values()
    with never_blocked_by([*calls, *kicks]):
        for shared in (calls, kicks):
            await wait_all_tasks_blocked()  # this backend would wait for itself to take its calls
            for descriptor in shared:
                fill(descriptor)
                os.set_blocking(descriptor, True)
        await front.serves()


@fault(
    "calls-for-nothing",
    done="calls are written over and over, as many as are taken, with nothing used",
    must=UNHARMED,
)
async def test_calls_for_nothing_are_harmless(front: Front) -> None:
    for _ in range(100):
        front.backend.call(REQUEST_QUEUE)
        front.backend.call(HIPRIO_QUEUE)
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    fill(front.backend._call[REQUEST_QUEUE])
    await wait_all_tasks_blocked()
    await front.serves()


@threat(
    "driver-side",
    who=Who.BACKEND,
    against="the daemon's books",
    does="overwrites the descriptors, the available ring and the requests in shared memory",
    promise="nothing that the daemon wrote there is read back",
)
@fault(
    "driver-areas-overwritten",
    done="the backend writes over the descriptor table and the available ring, which are the"
    " driver's, while a request is outstanding",
    must="The request is served: what is outstanding is known from private memory only. Chains that"
    " the backend has spoilt for itself are laid anew for the next one.",
)
async def test_what_only_the_driver_writes_is_never_read_back(front: Front) -> None:
    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        ring = backend.rings[1]
        for descriptor in ring._table:
            descriptor.address, descriptor.length, descriptor.flags = 1 << 63, 0xFFFFFFFF, 7
            descriptor.next = 0xFFFF
        for position in range(ring.num):
            ring._available_ring[position] = 0xFFFF
        return backend.serve_files(request)

    front.tell(Opcode.STATFS, answer)
    assert (await front.files.statfs()).blocks == 100
    front.session.lane.requests.ring.hand_over()
    await front.serves()
