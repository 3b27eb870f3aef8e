"""Exports: the next session after a fault, and a backend that runs out of something."""

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.backend import CONFIGURE_MEM_SLOTS, PROTOCOL_FEATURES, FakeBackend
from tests.fake.files import Answer, FuseRequest
from tests.faults.catalogue import ERRNO, UNHARMED, fault
from tests.faults.harness import CONTENT, FOR_EVER, exported, names, read, stat
from tests.faults.shared import EXHAUSTED, KILLED
from vuserd.config.model import ExportConfig
from vuserd.delivery.memory_table import MemoryTable
from vuserd.errors import BackendDown, BackendError, CallError, ConfigurationError, FileError
from vuserd.exports.export import Export
from vuserd.exports.states import ExportState
from vuserd.fs.filesystem import FileSystem
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.users.holdings import Holdings


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "backend.sock")


async def slots(files: FileSystem) -> int:
    return files.session.slots.limit


async def lost_and_found(export: Export) -> bytes:
    """Read a file; the session is lost meanwhile or before."""
    with trio.fail_after(FOR_EVER):
        return await export.call(read)


@KILLED
async def test_a_backend_that_dies_is_replaced(backend: FakeBackend, socket: str) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ and backend.sessions == 1:
            backend.die()
            return None
        return backend.serve_files(request)

    backend.answer = answer
    async with exported(backend, socket) as export:
        assert await lost_and_found(export) == CONTENT
        assert export.generation == backend.sessions == 2


@fault(
    "lies-once",
    done="the backend breaks the protocol in the middle of a call, and its successor does not",
    must="The call is served by the next session; the caller sees only the delay.",
)
async def test_a_backend_that_lies_is_replaced(backend: FakeBackend, socket: str) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        honest = backend.serve_files(request)
        if honest is not None and request.opcode is Opcode.READ and backend.sessions == 1:
            return honest._replace(unique=1)
        return honest

    backend.answer = answer
    async with exported(backend, socket) as export:
        assert await lost_and_found(export) == CONTENT
        assert export.generation == backend.sessions == 2


@fault(
    "lies-always",
    done="each backend breaks the protocol in the same call, and so does its successor",
    must="The caller gets BACKEND_DOWN when its deadline is over, at the latest.",
)
async def test_a_backend_that_always_lies(
    backend: FakeBackend,
    socket: str,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    backend.answer_to(Opcode.READ, Answer(b"kernel", unique=1))
    async with exported(backend, socket) as export:
        begun = trio.current_time()
        with pytest.raises(BackendError) as raised:
            await export.call(read)
        assert raised.value.code == "BACKEND_DOWN"
        assert trio.current_time() - begun < 10.1
        assert 2 <= backend.sessions < 30  # it is tried again, and not without a pause


def vanishing(backend: FakeBackend, change: Callable[[], None]) -> None:
    """Make a change from the second session on."""

    def on_connect() -> None:
        if backend.sessions > 1:
            change()

    backend.on_connect = on_connect


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        pytest.param(
            "features",
            PROTOCOL_FEATURES,
            "lacks virtio features: VERSION_1",
            marks=fault(
                "feature-vanishes",
                done="VERSION_1 is offered in the first session, and not in the second",
                must="The second session is refused; callers get BACKEND_DOWN with the cause.",
            ),
            id="feature",
        ),
        pytest.param(
            "queues",
            1,
            "has 1 queues",
            marks=fault(
                "queue-vanishes",
                done="there are two queues in the first session, and one in the second",
                must="The second session is refused; callers get BACKEND_DOWN with the cause.",
            ),
            id="queue",
        ),
        pytest.param(
            "refused",
            {Request.SET_MEM_TABLE: 1},
            "refused SET_MEM_TABLE",
            marks=fault(
                "memory-refused-again",
                done="the memory table is taken in the first session, and refused in the second",
                must="The second session is refused; callers get BACKEND_DOWN with the cause.",
            ),
            id="memory",
        ),
        pytest.param(
            "max_pages",
            8,
            "READs of 32768 bytes only",
            marks=fault(
                "pages-shrink",
                done="INIT allows 256 pages in the first session, and 8 in the second",
                must="The second session is refused; callers get BACKEND_DOWN with the cause.",
            ),
            id="pages",
        ),
    ],
)
async def test_a_feature_that_vanishes(
    backend: FakeBackend,
    socket: str,
    attribute: str,
    value: object,
    words: str,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    vanishing(backend, lambda: setattr(backend, attribute, value))
    async with exported(backend, socket) as export:
        assert await export.call(read) == CONTENT
        backend.die()
        with pytest.raises(BackendDown, match=words) as raised:
            await export.call(read)
        assert raised.value.code == "BACKEND_DOWN"
        assert export.state is ExportState.RESTARTING


@fault(
    "memory-slots-vanish",
    done="memory slots are offered in the first session, and not in the second",
    must="The second session comes up without them: reads are served, a load gets BUSY.",
)
async def test_memory_slots_that_vanish(backend: FakeBackend, socket: str) -> None:
    backend.protocol_features |= CONFIGURE_MEM_SLOTS

    def change() -> None:
        backend.protocol_features &= ~CONFIGURE_MEM_SLOTS

    vanishing(backend, change)
    async with exported(backend, socket) as export:
        assert await export.call(read) == CONTENT
        assert await export.call(slots) == 8
        backend.die()
        assert await lost_and_found(export) == CONTENT
        assert await export.call(slots) == 1


@fault(
    "nodes-renumbered",
    done="the successor gives the node ids of the first session to other files",
    must="Each name is looked up again: the caller has the file that it asked for.",
)
async def test_node_ids_that_mean_something_else(backend: FakeBackend, socket: str) -> None:
    vanishing(backend, lambda: setattr(backend, "files", dict(reversed([*backend.files.items()]))))
    async with exported(backend, socket) as export:
        assert await export.call(read) == CONTENT
        backend.die()
        assert await lost_and_found(export) == CONTENT
        await wait_all_tasks_blocked()
        assert sum(backend.lookups.values()) == 1  # none of the session before is given back here


def exhausted(backend: FakeBackend, number: int, opcode: Opcode, most: int) -> None:
    """Refuse requests of one kind while more than so many nodes are known."""

    def answer(request: FuseRequest) -> Answer | None:
        known = sum(1 for count in backend.lookups.values() if count)
        if request.opcode is opcode and known > most:
            return Answer(error=number)
        return backend.serve_files(request)

    backend.answer = answer


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize(
    ("opcode", "most"),
    [(Opcode.LOOKUP, 2), (Opcode.OPEN, 1), (Opcode.OPENDIR, 0), (Opcode.READDIR, 0)],
)
@EXHAUSTED
async def test_idle_nodes_make_room(
    backend: FakeBackend, socket: str, number: int, opcode: Opcode, most: int
) -> None:
    exhausted(backend, number, opcode, most)
    call = names if opcode in (Opcode.OPENDIR, Opcode.READDIR) else read
    async with exported(backend, socket) as export:
        for name in (b"secret", b"folder", b"link")[: 2 if most else 3]:
            await export.call(partial(FileSystem.stat, path=name, follow=False))
        assert await export.call(call)
        assert len(backend.named(opcode)) >= 2
        assert export.generation == 1


@fault(
    "out-of-descriptors-for-good",
    done="LOOKUP is answered with EMFILE, whatever is forgotten",
    must="The caller gets EMFILE, after no more than a few tries; the session goes on.",
)
async def test_exhaustion_that_stays(backend: FakeBackend, socket: str) -> None:
    async with exported(backend, socket) as export:
        await export.call(stat)
        backend.answer_to(Opcode.LOOKUP, Answer(error=errno.EMFILE))
        with pytest.raises(FileError) as raised:
            await export.call(stat)
        assert raised.value.code == "EMFILE"
        assert len(backend.named(Opcode.LOOKUP)) < 8
        backend.answer = backend.serve_files
        assert await export.call(read) == CONTENT


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EAGAIN, errno.EINTR])
@fault("out-of-memory", done="a READ is answered with ENOMEM, ENOSPC, EAGAIN or EINTR", must=ERRNO)
async def test_exhaustion_of_another_kind(backend: FakeBackend, socket: str, number: int) -> None:
    async with exported(backend, socket) as export:
        backend.answer_to(Opcode.READ, Answer(error=number))
        with pytest.raises(FileError) as raised:
            await export.call(read)
        assert raised.value.code == errno.errorcode[number]
        backend.answer = backend.serve_files
        assert await export.call(read) == CONTENT


@fault(
    "stops-listening",
    done="an adopted backend ends, and no process listens on its socket for five seconds",
    must=UNHARMED,
)
async def test_an_adopted_backend_that_comes_back(
    backend: FakeBackend,
    socket: str,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    async with exported(backend, socket) as export:
        assert await export.call(read) == CONTENT
        os.rename(socket, f"{socket}.away")
        backend.die()
        async with trio.open_nursery() as nursery:

            async def come_back() -> None:
                await trio.sleep(5)
                os.rename(f"{socket}.away", socket)

            nursery.start_soon(come_back)
            begun = trio.current_time()
            assert await export.call(read) == CONTENT
            assert 5 <= trio.current_time() - begun < 6


@fault(
    "detached-while-awaited",
    done="an adopted backend ends, and a client detaches the memory of a load that waits for it",
    must="The load gets BAD_REQUEST; the next session is not harmed by it.",
)
async def test_a_detach_while_a_load_waits_for_a_backend(backend: FakeBackend, socket: str) -> None:
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 1 << 16)
    table = MemoryTable(1, 1 << 16, ForeignDescriptors(64), Holdings(99, 0))
    attached = await table.attach(descriptor, 1 << 16)
    memory = table.find(attached)
    load = partial(memory.load, path=b"Image", address=0, offset=0, length=None)
    async with exported(backend, socket) as export:
        assert await export.call(load) == len(CONTENT)
        os.rename(socket, f"{socket}.away")
        backend.die()

        async def load_in_vain() -> None:
            with pytest.raises(CallError, match="no attached memory any more") as raised:
                await export.call(load)
            assert raised.value.code == "BAD_REQUEST"

        with trio.fail_after(FOR_EVER):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load_in_vain)
                await wait_all_tasks_blocked()
                await table.detach(attached)
                os.rename(f"{socket}.away", socket)
        assert await export.call(read) == CONTENT
        assert export.generation == backend.sessions == 2


@fault(
    "adopted-comes-back-late",
    done="the socket of an adopted backend that was lost is not there for minutes, and is again"
    " while a call waits",
    must="The call is served: while one waits, the daemon tries again twice a second.",
)
async def test_an_adopted_backend_that_comes_back_late(
    backend: FakeBackend,
    socket: str,
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05  # not while a session begins
    export = Export(ExportConfig("files", socket=socket), ConfigurationError("not asked for"))
    async with trio.open_nursery() as nursery:
        async with backend.listening(socket):
            nursery.start_soon(export.run)
            await export.settled.wait()
        os.unlink(socket)
        await trio.sleep(60)  # by now it tries again every ten seconds
        assert export.state is ExportState.RESTARTING

        async def read_in_time() -> None:
            assert await export.call(read) == CONTENT  # for which it has ten seconds
            nursery.cancel_scope.cancel()

        nursery.start_soon(read_in_time)
        await trio.sleep(1)
        async with backend.listening(socket):
            await trio.sleep_forever()
