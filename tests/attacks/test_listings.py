"""Much work by few bytes: walks of large trees, and their bytes, and who is served meanwhile."""

import stat
import struct
from typing import Final

import trio
import trio.testing

from protocol.fuse import Opcode
from tests.attacks.people import MALLORY, VICTIM
from tests.attacks.threats import Who, threat
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from vuserd.delivery.pages import TreePages
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.walk import TreeWalk
from vuserd.tasks.turns import SHARER, Turns
from vuserd.users.asker import ASKER, Asker

_WALKS: Final = 16
_ENTRIES: Final = 1500
#: Portions of the walks between a small call's question and its answer: some that the backend was
#: given before it, and one in each pass of the scheduler.
_MOST_BETWEEN: Final = 8
#: Large ones that may have been on their way to the backend when another user came.
_UNDER_WAY: Final = 4
#: Bytes of a directory that are decoded without a pause then: some milliseconds' work.
_MOST_AT_ONCE: Final = 64 << 10
#: Trees that are asked for, and files of them that are read between two turns of another user.
_TREES: Final = 8
_MOST_READ: Final = 40


class User:
    """A user with one connection, as its calls know it."""

    def __init__(self, uid: int, turns: Turns) -> None:
        self._uid = uid
        self._turns = turns

    def is_alone(self) -> bool:
        return self._turns.is_alone(self)

    async def take_turn(self) -> None:
        await self._turns.take(self._uid)


def become(uid: int, turns: Turns) -> User:
    user = User(uid, turns)
    ASKER.set(Asker(uid, None))
    SHARER.set(user)
    return user


@threat(
    "walks of large trees",
    who=Who.CLIENT,
    against="other clients",
    does="asks on many connections at once for trees of thousands of entries with attributes",
    promise="they are read in small portions, few of them before another user's call",
)
async def test_a_small_call_waits_for_few_portions_of_walks(
    mock_clock: trio.testing.MockClock,
) -> None:
    del mock_clock  # it stands still: users share the daemon until the end
    opcode = Opcode.READDIRPLUS
    backend = FakeBackend({b"%06d" % number: File(b"") for number in range(_ENTRIES)})
    portions: dict[bytes, Answer | None] = {}  # for it takes its time to make them

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            return None  # it does not count what it says again
        if request.opcode is not opcode:
            return backend.serve_files(request)
        where = request.body[8:20]  # its offset and size
        if where not in portions:
            portions[where] = backend.serve_files(request)
        return portions[where]

    backend.answer = answer
    async with backend.session() as session, trio.open_nursery() as nursery:
        files = FileSystem(session, idle_nodes=0)
        turns = Turns()
        nursery.start_soon(turns.run)

        async def walk() -> None:
            become(MALLORY, turns)
            while True:
                walk = TreeWalk(b"", attributes=True)
                while not walk.finished:
                    await walk.next_page(files, 2 * _ENTRIES)
                walk.close()

        for _ in range(_WALKS):
            nursery.start_soon(walk)
        while len(backend.named(opcode)) < _WALKS:
            await trio.lowlevel.checkpoint()
        victim = become(VICTIM, turns)
        await victim.take_turn()  # as its connection begins
        begun = len(backend.named(opcode))
        for most in (2 * _WALKS, *[_MOST_BETWEEN] * 4):  # the first finds what was there before
            before = len(backend.named(opcode))
            await victim.take_turn()
            assert stat.S_ISREG((await files.stat(b"000001", follow=True)).mode)
            assert len(backend.named(opcode)) - before <= most
        while len(backend.named(opcode)) <= begun + 2 * _WALKS:
            await victim.take_turn()
            await trio.lowlevel.checkpoint()
        sizes = [struct.unpack_from("=I", one.body, 16)[0] for one in backend.named(opcode)]
        assert sum(size > _MOST_AT_ONCE for size in sizes[begun:]) <= _UNDER_WAY
        nursery.cancel_scope.cancel()


@threat(
    "trees with their bytes",
    who=Who.CLIENT,
    against="other clients",
    does="asks on many connections at once for pages of trees of thousands of small files",
    promise="they are read in small portions, one of them before another user's call",
)
async def test_a_small_call_waits_for_few_portions_of_trees(
    mock_clock: trio.testing.MockClock,
) -> None:
    del mock_clock
    backend = FakeBackend({b"%06d" % number: File(b"small") for number in range(_ENTRIES)})
    async with backend.session() as session, trio.open_nursery() as nursery:
        files = FileSystem(session, idle_nodes=0)
        turns = Turns()
        nursery.start_soon(turns.run)

        async def read() -> None:
            become(MALLORY, turns)
            while True:
                pages = TreePages(b"")
                while not pages.finished:
                    page = await pages.next_page(files, 4096, 1 << 20)
                    page.content.give_back()
                pages.close()

        for _ in range(_TREES):
            nursery.start_soon(read)
        while len(backend.named(Opcode.READ)) < _TREES:
            await trio.lowlevel.checkpoint()
        victim = become(VICTIM, turns)
        await victim.take_turn()  # as its connection begins
        begun = 0
        for number in range(6):
            before = len(backend.named(Opcode.OPEN))
            await victim.take_turn()
            assert stat.S_ISREG((await files.stat(b"000001", follow=True)).mode)
            if number > 1:  # the first find what was there before
                assert len(backend.named(Opcode.OPEN)) - before <= _MOST_READ
            begun += len(backend.named(Opcode.OPEN)) - before
        while len(backend.named(Opcode.OPEN)) <= begun + 2 * _MOST_READ:  # trees go on as well
            await victim.take_turn()
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
