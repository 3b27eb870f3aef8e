"""Listings that are read ahead: nothing is lost of what no page wants any more."""

import errno
import struct
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.attacks.threats import Who, threat
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from vuserd.device.session import Session
from vuserd.errors import BackendBroken, BackendError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.listings import Listing
from vuserd.users.asker import ASKER, Asker

ENTRIES = 50
PAGE = 16
MOST_AHEAD = 3  #: replies that wait


@pytest.fixture
def entries() -> int:
    return ENTRIES


@pytest.fixture
def backend(entries: int) -> FakeBackend:
    files: dict[bytes, File | bytes] = {b"f%03d" % number: b"" for number in range(entries)}
    return FakeBackend(files)


@pytest.fixture
def files(session: Session) -> FileSystem:
    return FileSystem(session, idle_nodes=10)


def opcode(attributes: bool) -> Opcode:
    return Opcode.READDIRPLUS if attributes else Opcode.READDIR


def offsets(backend: FakeBackend, attributes: bool) -> list[int]:
    """Return where each reply that was asked for begins: behind so many entries."""
    asked = backend.named(opcode(attributes))
    return [struct.unpack_from("=QQ", request.body)[1] for request in asked]


async def owes_nothing(backend: FakeBackend, files: FileSystem) -> None:
    files.close()
    with trio.fail_after(60):
        await files.session.lane.drained()
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()
    assert not +backend.lookups
    assert files.session.payloads.taken == 0


@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 20, 1000])
async def test_every_entry_is_listed_once(
    files: FileSystem, backend: FakeBackend, attributes: bool, limit: int
) -> None:
    listing = Listing(b"", attributes=attributes)
    found: list[bytes] = []
    while not listing.finished:
        page = await listing.next_page(files, limit, goes_on=True)
        assert len(page.names) <= limit
        found += page.names
    assert found == [*backend.files]
    await owes_nothing(backend, files)


@pytest.mark.parametrize("attributes", [False, True])
async def test_the_next_page_is_asked_for_before_it_is_wanted(
    files: FileSystem, backend: FakeBackend, attributes: bool
) -> None:
    listing = Listing(b"", attributes=attributes)
    page = await listing.next_page(files, PAGE, goes_on=True)
    await wait_all_tasks_blocked()
    asked = offsets(backend, attributes)
    assert len(page.names) in asked
    assert files.session.payloads.taken == 0  # what came is kept as bytes
    await listing.next_page(files, PAGE, goes_on=True)
    later = offsets(backend, attributes)
    assert later[: len(asked)] == asked
    assert all(before < after for before, after in pairwise(later))  # none is asked for twice
    listing.close()
    await owes_nothing(backend, files)


async def test_a_page_alone_has_nothing_read_ahead(files: FileSystem, backend: FakeBackend) -> None:
    listing = Listing(b"", attributes=True)
    page = await listing.next_page(files, PAGE)
    await wait_all_tasks_blocked()
    assert max(offsets(backend, attributes=True)) < len(page.names)
    assert files.session.payloads.taken == 0
    listing.close()
    await owes_nothing(backend, files)


async def test_nothing_is_read_ahead_while_another_client_asks(
    files: FileSystem, backend: FakeBackend
) -> None:
    for uid in (1, 2):
        ASKER.set(Asker(uid, None))
        await files.stat(b"f001", follow=True)
    listing = Listing(b"", attributes=True)
    page = await listing.next_page(files, PAGE, goes_on=True)
    await wait_all_tasks_blocked()
    assert max(offsets(backend, attributes=True)) < len(page.names)
    listing.close()
    await owes_nothing(backend, files)


@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("end", [Listing.close, Listing.lapse])
@pytest.mark.parametrize("is_late", [False, True])
async def test_what_no_page_wants_is_given_back(
    files: FileSystem, backend: FakeBackend, attributes: bool, end: object, is_late: bool
) -> None:
    """Whether the backend has answered by then or not."""
    listing = Listing(b"", attributes=attributes)
    held = _hold(backend, attributes) if is_late else []
    await listing.next_page(files, PAGE, goes_on=True)
    await wait_all_tasks_blocked()
    assert files.session.payloads.taken == int(is_late)
    assert callable(end)
    end(listing)
    listing.close()
    files.close()
    if is_late:
        backend.let_go(held)
    await owes_nothing(backend, files)


async def test_a_caller_that_waits_for_it_may_give_up(
    files: FileSystem, backend: FakeBackend
) -> None:
    listing = Listing(b"", attributes=True)
    held = _hold(backend, attributes=True)
    first = await listing.next_page(files, PAGE, goes_on=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listing.next_page, files, PAGE)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    backend.let_go(held)
    found = first.names
    while not listing.finished:
        found += (await listing.next_page(files, PAGE, goes_on=True)).names
    assert found == [*backend.files]
    await owes_nothing(backend, files)


async def test_one_listing_at_a_time_is_read_ahead(files: FileSystem, backend: FakeBackend) -> None:
    listings = [Listing(b"", attributes=True) for _ in range(3)]
    for listing in listings:
        await listing.next_page(files, PAGE, goes_on=True)
        await wait_all_tasks_blocked()
    assert sum(backend.lookups.values()) < 2 * PAGE
    for listing in listings:
        found = (await listing.next_page(files, PAGE)).names
        assert found[0] == [*backend.files][PAGE]
        listing.close()
    await owes_nothing(backend, files)


@threat(
    "a listing in another's way",
    who=Who.CLIENT,
    against="clients that list directories",
    does="lists a long directory with `ahead`, while another client's next page is read",
    promise="only what no call waits for is dropped for it: the other listing goes on",
)
@pytest.mark.parametrize("attributes", [False, True])
async def test_what_a_call_waits_for_is_not_dropped_for_another_listing(
    files: FileSystem, backend: FakeBackend, attributes: bool
) -> None:
    """It was kept between two pages, and is not any longer."""
    listing, other = (Listing(b"", attributes=attributes) for _ in range(2))
    found = (await listing.next_page(files, PAGE, goes_on=True)).names
    await wait_all_tasks_blocked()
    handle = backend.named(opcode(attributes))[0].body[:8]
    held: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is opcode(attributes) and request.body[:8] == handle:
            held.append(request)
            return None
        return backend.serve_files(request)

    async def read_on() -> None:
        while not listing.finished:
            found.extend((await listing.next_page(files, 2 * PAGE, goes_on=True)).names)

    backend.answer = answer
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on)
            await wait_all_tasks_blocked()
            assert held
            await other.next_page(files, PAGE, goes_on=True)
            backend.answer = backend.serve_files
            backend.let_go(held)
    assert found == [*backend.files]
    other.close()
    await owes_nothing(backend, files)


@pytest.fixture
def small_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have replies of about twelve entries with attributes, or fifty without."""
    for size in ("_BATCH_SIZE", "_BATCH_SIZE_PLUS"):
        monkeypatch.setattr(f"vuserd.fs.directories.opened.{size}", 256)


@pytest.mark.usefixtures("small_replies")
@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("entries", [450])
async def test_the_backend_reads_on_but_not_for_ever(
    files: FileSystem, backend: FakeBackend, attributes: bool
) -> None:
    listing = Listing(b"", attributes=attributes)
    found: list[bytes] = []
    ahead: list[int] = []
    while not listing.finished:
        page = await listing.next_page(files, 200, goes_on=True)
        found += page.names
        await wait_all_tasks_blocked()
        asked = offsets(backend, attributes)
        ahead.append(sum(offset >= len(found) for offset in asked))
    assert found == [*backend.files]
    assert max(ahead) == MOST_AHEAD
    assert all(before < after for before, after in pairwise(offsets(backend, attributes)))
    await owes_nothing(backend, files)


@pytest.mark.usefixtures("small_replies")
async def test_it_does_not_read_on_where_it_has_much_to_forget(
    files: FileSystem, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vuserd.fs.directories.opened._MOST_NODES", -1)
    listing = Listing(b"", attributes=True)
    page = await listing.next_page(files, PAGE, goes_on=True)
    await wait_all_tasks_blocked()
    assert max(offsets(backend, attributes=True)) < len(page.names)
    listing.close()
    await owes_nothing(backend, files)


@pytest.mark.usefixtures("small_replies")
@pytest.mark.parametrize("entries", [450])
async def test_it_stops_as_soon_as_another_client_asks(
    files: FileSystem, backend: FakeBackend
) -> None:
    """Though fewer replies wait than may."""
    ASKER.set(Asker(1, None))
    listing = Listing(b"", attributes=True)
    held = _hold(backend, attributes=True, begin=170)
    await listing.next_page(files, 200, goes_on=True)
    await wait_all_tasks_blocked()
    ASKER.set(Asker(2, None))
    await files.stat(b"f001", follow=True)
    backend.let_go(held)
    await wait_all_tasks_blocked()
    assert sum(offset > 170 for offset in offsets(backend, attributes=True)) == 1
    listing.close()
    await owes_nothing(backend, files)


async def test_an_entry_that_vanishes_meanwhile_is_left_out(
    files: FileSystem, backend: FakeBackend
) -> None:
    """One error is READDIRPLUS's; what is there READDIR and LOOKUP tell."""
    listing = Listing(b"", attributes=True)
    refused: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if struct.unpack_from("=QQ", request.body)[1] and not refused:
            refused.append(request)
            return Answer(error=errno.ENOENT)
        return backend.serve_files(request)

    backend.answer_to(Opcode.READDIRPLUS, answer)
    found: list[bytes] = []
    while not listing.finished:
        found += (await listing.next_page(files, PAGE, goes_on=True)).names
    assert found == [*backend.files]
    await owes_nothing(backend, files)


@pytest.mark.parametrize("attributes", [False, True])
async def test_the_next_backend_is_asked_anew(backend: FakeBackend, attributes: bool) -> None:
    listing = Listing(b"", attributes=attributes)
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=10)
        _hold(backend, attributes)
        found = (await listing.next_page(files, PAGE, goes_on=True)).names
        backend.die()
        await session.wait_lost()
        with pytest.raises(BackendError):
            await listing.next_page(files, PAGE, goes_on=True)
        files.close()
    backend.answer = backend.serve_files
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=10)
        while not listing.finished:
            found += (await listing.next_page(files, PAGE, goes_on=True)).names
        assert found == [*backend.files]
        await owes_nothing(backend, files)


@pytest.mark.parametrize("end", [Listing.close, Listing.lapse])
async def test_a_lie_that_nobody_waits_for_ends_the_session_alone(
    files: FileSystem,
    backend: FakeBackend,
    caplog: pytest.LogCaptureFixture,
    end: Callable[[Listing], None],
) -> None:
    """It shows when the client is gone, or where idle things are ended, which others share."""

    def lie(request: FuseRequest) -> Answer | None:
        if int.from_bytes(request.body[8:16], "little"):
            return Answer(b"no directory entry")
        return backend.serve_files(request)

    backend.answer_to(Opcode.READDIRPLUS, lie)
    listing = Listing(b"", attributes=True)
    await listing.next_page(files, PAGE, goes_on=True)
    await wait_all_tasks_blocked()
    assert not files.session.lost
    end(listing)
    with trio.fail_after(60):
        assert isinstance(await files.session.wait_lost(), BackendBroken)
    caplog.clear()  # which keeps the error, and the memory of the session with it


def _hold(backend: FakeBackend, attributes: bool, begin: int = 1) -> list[FuseRequest]:
    """Hold all replies of a listing from an offset on: all but the first."""
    kind = opcode(attributes)
    return backend.hold(
        lambda request: (
            request.opcode is kind and struct.unpack_from("=QQ", request.body)[1] >= begin
        )
    )
