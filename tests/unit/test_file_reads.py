"""Many small files read at once: what waits, what is refused, what never comes, and who is told."""

import errno
import random
from collections.abc import AsyncIterator, Iterator, Sized
from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol import fuse
from protocol.fuse import NodeId, Opcode
from tests.delivered import tree_delivered
from tests.fake.backend import Answer, FakeBackend, FuseRequest, cancelled_when
from vuserd.delivery.pages import TreePage, TreePages
from vuserd.device.gate import Gate
from vuserd.device.session import Session
from vuserd.errors import BackendBroken, BackendTimeout, HeldBack
from vuserd.fs.filesystem import FileSystem
from vuserd.users.asker import Asker

COUNT = 150
OF_A_FILE = (Opcode.OPEN, Opcode.READ, Opcode.GETATTR, Opcode.RELEASE)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"%d" % n: b"%d" % n * n for n in range(COUNT)})


class Observed:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.asked: dict[int, fuse.Request] = {}
        self.pending: set[int] = set()

    def sent(self, unique: int, request: fuse.Request) -> None:
        assert unique not in self.asked
        self.asked[unique] = request
        self.pending.add(unique)

    def ended(self, unique: int, _error: int, _length: int) -> None:
        self.pending.remove(unique)

    def timed_out(self, unique: int) -> None:
        assert unique in self.pending

    def lost(self) -> None:
        self.pending.clear()


@pytest.fixture
def observer() -> Observed:
    return Observed()


@pytest.fixture
async def session(backend: FakeBackend, observer: Observed) -> AsyncIterator[Session]:
    async with backend.session(observer=observer) as session:
        session.lane.answers_in_order = True
        yield session


@pytest.fixture
def files(session: Session) -> Iterator[FileSystem]:
    files = FileSystem(session, idle_nodes=0)
    yield files
    files.close()


@pytest.fixture
async def pages(backend: FakeBackend, files: FileSystem) -> AsyncIterator[TreePages]:
    async with tree_delivered(backend, files) as pages:
        yield pages


def require_all(backend: FakeBackend, page: TreePage, *but: bytes) -> None:
    """Give a page back, which has to have the bytes of all files but some."""
    content = b"".join(page.content.views())
    page.content.give_back()
    assert {each.name for each in page.found} == backend.files.keys()
    for each in page.found:
        assert (each.place is None) == (each.name in but)
        if each.place is not None:
            assert each.length is not None
            assert content[each.place :][: each.length] == backend.files[each.name].content


async def page_of(pages: TreePages, files: FileSystem) -> TreePage:
    return await pages.next_page(files, 1000, 1 << 20)


class Refusing:
    """A gate that holds requests of one kind back, for some nodes."""

    threads = 1

    def __init__(self, opcode: Opcode, *nodes: int) -> None:
        self._held = {(opcode, node) for node in nodes}
        self.held: Sized = self._held
        self.hangs: list[tuple[Opcode, bytes | None]] = []
        self._files: FileSystem | None = None

    def admit(self, request: fuse.Request) -> None:
        if (request.opcode, request.node) in self._held:
            raise HeldBack(request.opcode.name, 9.0)

    def answered(self, request: fuse.Request) -> None:
        pass

    def path(self, _: fuse.Request) -> bytes | None:
        return None

    def hung(self, request: fuse.Request, path: bytes | None, _: Asker | None) -> None:
        assert self._files is not None
        self.hangs.append((request.opcode, path or self._files.nodes.path(request.node)))

    def was_late(self, request: fuse.Request, path: bytes | None, asker: Asker | None) -> None:
        pass

    def about(self, files: FileSystem) -> Gate:
        """Look paths up there."""
        self._files = files
        return self


async def test_each_file_takes_four_requests_of_which_all_are_observed(
    backend: FakeBackend, files: FileSystem, pages: TreePages, observer: Observed
) -> None:
    require_all(backend, await page_of(pages, files))
    await wait_all_tasks_blocked()
    assert not observer.pending
    nodes = range(2, COUNT + 2)
    for opcode in OF_A_FILE:
        asked = [each for each in observer.asked.values() if each.opcode is opcode]
        assert sorted(each.node for each in asked if each.node != fuse.ROOT_ID) == [*nodes]
        assert {each.node: each.body for each in asked} == {
            each.node: each.body for each in backend.named(opcode)
        }


async def test_what_comes_while_the_lane_is_held_waits(
    backend: FakeBackend, files: FileSystem, pages: TreePages, session: Session
) -> None:
    """At any time: with files that begin, are open, are read, and are to be released."""
    answers, holding = 0, ExitStack()

    def answer(request: FuseRequest) -> Answer | None:
        nonlocal answers
        answers += 1
        if answers % 97 == 0:
            holding.enter_context(session.lane.held())
        return backend.serve_files(request)

    backend.answer = answer
    async with trio.open_nursery() as nursery:

        async def let_go_on() -> None:
            while True:
                await wait_all_tasks_blocked()
                holding.close()

        nursery.start_soon(let_go_on)
        require_all(backend, await page_of(pages, files))
        nursery.cancel_scope.cancel()
    holding.close()


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.READ, Opcode.GETATTR])
async def test_a_file_that_is_held_back_is_an_entry_with_an_error(
    backend: FakeBackend,
    files: FileSystem,
    pages: TreePages,
    session: Session,
    opcode: Opcode,
    in_order: bool,
) -> None:
    session.lane.answers_in_order = in_order
    session.lane.obey(Refusing(opcode, 100))
    page = await page_of(pages, files)
    assert [(each.name, str(each.error.code)) for each in page.found if each.error] == [
        (b"98", "ETIMEDOUT")
    ]
    require_all(backend, page, b"98")
    assert not any(each.node == 100 for each in backend.named(opcode))


async def test_where_all_files_are_held_back_a_page_comes_without_bytes(
    backend: FakeBackend, files: FileSystem, pages: TreePages, session: Session
) -> None:
    session.lane.obey(Refusing(Opcode.OPEN, *range(2, COUNT + 2)))
    require_all(backend, await page_of(pages, files), *backend.files)


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.READ, Opcode.GETATTR])
async def test_a_request_that_hangs_ends_the_page_and_is_told(
    backend: FakeBackend,
    files: FileSystem,
    pages: TreePages,
    session: Session,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
    opcode: Opcode,
) -> None:
    hung: list[FuseRequest] = []

    def hang(request: FuseRequest) -> Answer | None:
        if request.opcode is opcode and request.node == 100:
            hung.append(request)
            return None
        return backend.serve_files(request)

    backend.answer = hang
    gate = Refusing(opcode)
    session.lane.obey(gate.about(files))
    with pytest.raises(BackendTimeout, match=opcode.name):
        await page_of(pages, files)
    assert gate.hangs == [(opcode, b"/98")]
    backend.answer = backend.serve_files
    answered = backend.serve_files(hung[0])
    assert answered is not None
    backend.reply(hung[0], answered)
    await wait_all_tasks_blocked()
    require_all(backend, await page_of(pages, files))


async def test_nobody_waits_for_a_release_and_the_node_stays_as_long(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    """A line that reads the next file meanwhile releases that one as well."""
    released: list[FuseRequest] = []

    def hold(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.RELEASE and len(released) < 100:
            released.append(request)
            return None
        return backend.serve_files(request)

    backend.answer = hold
    require_all(backend, await page_of(pages, files))
    assert len(released) == 100
    assert files.nodes.path(NodeId(released[0].node)) == b"/%d" % (released[0].node - 2)
    for each in released:
        answered = backend.serve_files(each)
        assert answered is not None
        backend.reply(each, answered)


@pytest.mark.parametrize(
    ("opcode", "size"), [(Opcode.OPEN, 15), (Opcode.OPEN, 0), (Opcode.GETATTR, 103)]
)
async def test_a_reply_of_another_length_ends_the_session(
    backend: FakeBackend, opcode: Opcode, size: int
) -> None:
    def lie(request: FuseRequest) -> Answer | None:
        if request.opcode is opcode and request.node == 100:
            return Answer(bytes(size))
        return backend.serve_files(request)

    backend.answer = lie
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=0)
        with pytest.raises(BackendBroken, match=f"{size} bytes"):
            await page_of(TreePages(b""), files)
        files.close()


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.READ, Opcode.GETATTR])
async def test_a_page_that_is_cancelled_leaves_nothing(
    backend: FakeBackend, files: FileSystem, pages: TreePages, opcode: Opcode
) -> None:
    """What is asked of the backend then comes back later, and is undone."""
    held: list[FuseRequest] = []

    def hold(request: FuseRequest) -> Answer | None:
        if request.opcode is opcode and request.node % 2 and request.node != fuse.ROOT_ID:
            held.append(request)
            return None
        return backend.serve_files(request)

    backend.answer = hold
    await cancelled_when(lambda: len(held) >= 10, lambda: page_of(pages, files))
    backend.answer = backend.serve_files
    for each in held:
        answered = backend.serve_files(each)
        assert answered is not None
        backend.reply(each, answered)
    await wait_all_tasks_blocked()
    require_all(backend, await page_of(pages, files))


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_comes_when_and_in_whichever_order(
    backend: FakeBackend, files: FileSystem, pages: TreePages, session: Session, seed: int
) -> None:
    """Each file that has bytes in a page has those of the version that is named beside them."""
    dice = random.Random(seed)
    session.lane.answers_in_order = bool(seed % 2)
    held: list[tuple[FuseRequest, Answer]] = []
    holding = ExitStack()
    versions = {name: [file.content] for name, file in backend.files.items()}

    def change(node: int) -> None:
        name = b"%d" % (node - 2)
        file = backend.files[name]
        content = bytes([dice.randrange(256)]) * dice.choice([len(file.content), 5, 700])
        backend.files[name] = file._replace(content=content, mtime=file.mtime + 1)
        versions[name].append(content)

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode not in OF_A_FILE or request.node == fuse.ROOT_ID:
            return backend.serve_files(request)
        chance = dice.random()
        if chance < 0.02 and request.opcode is not Opcode.RELEASE:
            return Answer(error=errno.EIO)
        if chance < 0.06:
            change(request.node)
        elif chance < 0.07:
            holding.enter_context(session.lane.held())
        answered = backend.serve_files(request)
        assert answered is not None
        if chance > 0.4:
            return answered
        held.append((request, answered))
        return None

    async def let_go_on() -> None:
        while True:
            await wait_all_tasks_blocked()
            holding.close()
            dice.shuffle(held)
            backend_has = [held.pop() for _ in range(dice.randint(0, len(held)))]
            for request, answered in backend_has:
                backend.reply(request, answered)

    backend.answer = answer
    found = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_go_on)
        while not pages.finished:
            page = await pages.next_page(files, dice.randint(1, 100), 1 << 20)
            content = b"".join(page.content.views())
            page.content.give_back()
            for each in page.found:
                found += 1
                if each.place is not None:
                    assert each.length == each.size
                    assert content[each.place :][: each.size] in versions[each.name]
        nursery.cancel_scope.cancel()
    backend.answer = backend.serve_files
    for request, answered in held:
        backend.reply(request, answered)
    holding.close()
    await wait_all_tasks_blocked()
    assert found == COUNT


async def test_an_error_of_a_release_is_nobodys(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    def refuse(request: FuseRequest) -> Answer | None:
        answered = backend.serve_files(request)
        return Answer(error=errno.EIO) if request.opcode is Opcode.RELEASE else answered

    backend.answer = refuse
    require_all(backend, await page_of(pages, files))
