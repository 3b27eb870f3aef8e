"""Files that a client has open between calls: one file in all of them, or CHANGED."""

import stat
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.fake.backend import MAX_PAGES, Answer, FakeBackend, File, FuseRequest
from tests.faults.catalogue import fault
from vuserd.delivery.inline import read_open
from vuserd.errors import CallError, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.heldfile import FileTable, HeldFile
from vuserd.fs.listings import Listing
from vuserd.fs.openfile import OpenFile
from vuserd.users.holdings import Holdings


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"Image": b"kernel", b"other": b"kernel"})


@pytest.fixture
async def files(backend: FakeBackend) -> AsyncIterator[FileSystem]:
    async with backend.session() as session:
        yield FileSystem(session, idle_nodes=10)


async def hold(files: FileSystem, path: bytes = b"Image") -> HeldFile:
    return HeldFile(path, await files.open(path), files)


async def content(file: OpenFile) -> bytes:
    found = await read_open(file, 0, 100)
    whole = b"".join(found.views())
    found.give_back()
    return whole


async def owes_nothing(backend: FakeBackend, files: FileSystem) -> None:
    files.close()
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()
    assert not +backend.lookups


async def test_it_stays_the_file_that_it_was(files: FileSystem, backend: FakeBackend) -> None:
    """Renamed over or deleted meanwhile: the path is not looked up again."""
    held = await hold(files)
    so_far = len(backend.requests)
    for _ in range(3):
        assert await held.use(files, content) == b"kernel"
    assert {one.opcode for one in backend.requests[so_far:]} == {Opcode.READ}
    assert held.attributes.size == 6
    assert held.settled
    assert held.is_known_by_attributes
    held.close()
    await owes_nothing(backend, files)


async def test_it_is_opened_anew_where_it_lapsed(files: FileSystem, backend: FakeBackend) -> None:
    held = await hold(files)
    held.lapse()
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()
    held.lapse()
    assert await held.use(files, content) == b"kernel"
    assert len(backend.named(Opcode.OPEN)) == 2
    held.close()
    await owes_nothing(backend, files)


@fault(
    "dies-with-an-open-file",
    done="the backend ends between two calls on a file that a client has open",
    must="It is opened anew: the same version of the same file is read on.",
)
async def test_it_is_opened_anew_in_the_next_backend(backend: FakeBackend) -> None:
    held: HeldFile | None = None
    for _ in range(3):
        async with backend.session() as session:
            files = FileSystem(session, idle_nodes=10)
            held = held or await hold(files)
            assert await held.use(files, content) == b"kernel"
            backend.die()
            await session.wait_lost()
            files.close()
    assert held is not None
    held.close()


@fault(
    "another-file-system-in-its-place",
    done="a file that a client has open, and a listing that goes on, are opened anew where another"
    " file system was mounted, with a file and a directory of the very attributes",
    must="The caller gets CHANGED: attributes name a file on one file system alone.",
)
async def test_attributes_say_nothing_on_another_file_system(backend: FakeBackend) -> None:
    held, listing = None, Listing(b"", attributes=False)
    for device in range(2):
        async with backend.session() as session:
            files = FileSystem(session, idle_nodes=10, device=(0, device))
            if held is None:
                held = await hold(files)
                await listing.next_page(files, 1)
            else:
                with pytest.raises(CallError, match="opened anew"):
                    await held.use(files, content)
                with pytest.raises(CallError, match="replaced"):
                    await listing.next_page(files, 1)
            backend.die()
            await session.wait_lost()
            files.close()
    assert held is not None
    held.close()
    listing.close()


@fault(
    "open-file-replaced",
    done="a file that a client has open is opened anew, and has another version",
    must="The caller gets CHANGED.",
)
@pytest.mark.parametrize(
    "now",
    [
        File(b"KERNEL", mtime=1_000_000_001, ctime=1_000_000_001),
        File(b"kernel", ctime=1_000_000_001),
        File(b"kernel", nanoseconds=1),
        File(b"kernel", ino=7),
        File(b"kernels"),
    ],
)
async def test_another_version_is_told(files: FileSystem, backend: FakeBackend, now: File) -> None:
    held = await hold(files)
    backend.files[b"Image"] = now
    assert await held.use(files, content) == now.content[:7]  # it is open: whoever reads compares
    held.lapse()
    for _ in range(2):
        with pytest.raises(CallError, match="opened anew") as changed:
            await held.use(files, content)
        assert changed.value.code == "CHANGED"
        await wait_all_tasks_blocked()
        assert backend.open_handles == set()
    held.close()
    await owes_nothing(backend, files)


@pytest.mark.parametrize(
    ("now", "code"),
    [(None, "ENOENT"), (File(mode=stat.S_IFDIR), "EISDIR"), (File(mode=stat.S_IFIFO), "EINVAL")],
)
async def test_what_is_no_file_any_more(
    files: FileSystem, backend: FakeBackend, now: File | None, code: str
) -> None:
    held = await hold(files, b"other")
    held.lapse()
    if now is None:
        del backend.files[b"other"]
    else:
        backend.files[b"other"] = now
    with pytest.raises(FileError) as refused:
        await held.use(files, content)
    assert refused.value.code == code
    held.close()


@fault(
    "open-file-elsewhere",
    done="a file on another file system is opened anew, with the same attributes",
    must="The caller gets CHANGED, as nothing shows that it is the same file.",
)
@pytest.mark.parametrize("submounts", [False, True])
async def test_one_elsewhere_is_not_known_again(backend: FakeBackend, submounts: bool) -> None:
    """Files of two images that were made alike have the same attributes in all."""
    if submounts:
        backend.files[b"Image"] = File(b"kernel", flags=1)
    else:
        backend.flags = MAX_PAGES
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=10)
        held = await hold(files)
        assert not held.is_known_by_attributes
        assert await held.use(files, content) == b"kernel"
        held.lapse()
        with pytest.raises(CallError) as changed:
            await held.use(files, content)
        assert changed.value.code == "CHANGED"
        held.close()
        await owes_nothing(backend, files)


@fault(
    "open-file-covered",
    done="a file that a client has open is opened anew, and another file system was mounted over"
    " its path, with a file of the same attributes",
    must="The caller gets CHANGED.",
)
async def test_one_that_is_elsewhere_by_now_is_another(
    files: FileSystem, backend: FakeBackend
) -> None:
    backend.files[b"folder"] = File(mode=stat.S_IFDIR | 0o755)
    held = await hold(files, b"folder/Image")
    held.lapse()
    backend.files[b"folder"] = File(mode=stat.S_IFDIR | 0o755, flags=1)
    backend.files[b"Image"] = File(b"lenrek")
    with pytest.raises(CallError, match="opened anew") as changed:
        await held.use(files, content)
    assert changed.value.code == "CHANGED"
    held.close()
    await owes_nothing(backend, files)


async def test_many_calls_at_once_open_it_once(files: FileSystem, backend: FakeBackend) -> None:
    held = await hold(files)
    held.lapse()
    found: list[bytes] = []

    async def use() -> None:
        found.append(await held.use(files, content))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(use)
    assert found == [b"kernel"] * 10
    assert len(backend.named(Opcode.OPEN)) == 2
    held.close()
    await owes_nothing(backend, files)


async def test_one_that_is_open_is_used_at_once(files: FileSystem) -> None:
    async def nothing(_: OpenFile) -> None:
        """End without a wait."""

    held = await hold(files)
    with assert_no_checkpoints():
        await held.use(files, nothing)
    held.close()


async def test_it_does_not_lapse_while_it_is_used(files: FileSystem, backend: FakeBackend) -> None:
    held = await hold(files)
    assert len(files.open_files) == 1
    backend.answer_to(Opcode.READ, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.use, files, content)
        await wait_all_tasks_blocked()
        assert len(files.open_files) == 0
        files.close()  # its session retires, and waits for those that use it
        await wait_all_tasks_blocked()
        assert len(backend.open_handles) == 1
        [request] = backend.named(Opcode.READ)
        answer_to(backend, request)
        backend.answer = backend.serve_files
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()


async def test_one_that_is_closed_while_it_is_used(files: FileSystem, backend: FakeBackend) -> None:
    held = await hold(files)
    backend.answer_to(Opcode.READ, None)
    found: list[bytes] = []

    async def use() -> None:
        found.append(await held.use(files, content))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await wait_all_tasks_blocked()
        held.close()
        await wait_all_tasks_blocked()
        assert len(backend.open_handles) == 1
        [request] = backend.named(Opcode.READ)
        answer_to(backend, request)
        backend.answer = backend.serve_files
    assert found == [b"kernel"]
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()
    with pytest.raises(CallError, match="was closed") as refused:
        await held.use(files, content)
    assert refused.value.code == "BAD_REQUEST"
    await owes_nothing(backend, files)


def answer_to(backend: FakeBackend, request: FuseRequest) -> None:
    answer = backend.serve_files(request)
    assert answer is not None
    backend.reply(request, answer)


async def test_the_end_of_the_session_before_takes_nothing_from_the_next(
    backend: FakeBackend,
) -> None:
    """A backend that retires goes on for a while beside the one that serves."""
    successor = FakeBackend(backend.files)
    async with backend.session() as one, successor.session() as other:
        before, after = FileSystem(one, idle_nodes=10), FileSystem(other, idle_nodes=10)
        held = await hold(before)
        successor.answer_to(Opcode.READ, None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.use, after, content)
            await wait_all_tasks_blocked()
            assert backend.open_handles == set()
            before.close()
            await wait_all_tasks_blocked()
            assert len(successor.open_handles) == 1
            [request] = successor.named(Opcode.READ)
            answer_to(successor, request)
            successor.answer = successor.serve_files
        assert await held.use(after, content) == b"kernel"
        assert len(successor.named(Opcode.OPEN)) == 1
        held.close()
        await owes_nothing(backend, before)
        await owes_nothing(successor, after)


async def test_those_who_use_it_in_the_session_before_go_on(backend: FakeBackend) -> None:
    successor = FakeBackend(backend.files)
    found: list[bytes] = []
    async with backend.session() as one, successor.session() as other:
        before, after = FileSystem(one, idle_nodes=10), FileSystem(other, idle_nodes=10)
        held = await hold(before)
        backend.answer_to(Opcode.READ, None)

        async def use() -> None:
            found.append(await held.use(before, content))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await wait_all_tasks_blocked()
            assert await held.use(after, content) == b"kernel"
            assert len(backend.open_handles) == len(successor.open_handles) == 1
            [request] = backend.named(Opcode.READ)
            answer_to(backend, request)
            backend.answer = backend.serve_files
        assert found == [b"kernel"]
        await wait_all_tasks_blocked()
        assert backend.open_handles == set()
        assert len(successor.open_handles) == len(after.open_files) == 1
        held.close()
        await owes_nothing(backend, before)
        await owes_nothing(successor, after)


async def test_one_that_cannot_be_opened_anew_is_tried_again(
    files: FileSystem, backend: FakeBackend
) -> None:
    held = await hold(files)
    held.lapse()
    backend.answer_to(Opcode.OPEN, Answer(error=5))
    for _ in range(2):
        with pytest.raises(FileError):
            await held.use(files, content)
    backend.answer = backend.serve_files
    assert await held.use(files, content) == b"kernel"
    held.close()
    await owes_nothing(backend, files)


async def test_a_call_that_is_given_up_leaves_it_open(
    files: FileSystem,
    backend: FakeBackend,
    autojump_clock: MockClock,  # noqa: ARG001 - a second passes at once
) -> None:
    held = await hold(files)
    backend.answer_to(Opcode.READ, None)
    with trio.move_on_after(1) as scope:
        await held.use(files, content)
    assert scope.cancelled_caught
    assert len(files.open_files) == 1
    [request] = backend.named(Opcode.READ)
    answer_to(backend, request)
    backend.answer = backend.serve_files
    assert await held.use(files, content) == b"kernel"
    held.close()
    await owes_nothing(backend, files)


# --- a client's table -----------------------------------------------------------------------------


async def test_a_file_is_found_by_its_number_and_export(files: FileSystem) -> None:
    table = FileTable(3, Holdings(99, 1 << 20))
    held = await hold(files)
    number = table.add(held, "files")
    assert table.find(number, "files") is held
    for wrong in ((number, "other"), (number + 1, "files"), (0, "files"), (-1, "files")):
        with pytest.raises(CallError, match="no open file") as refused:
            table.find(*wrong)
        assert refused.value.code == "BAD_REQUEST"
    table.close_one(number)
    with pytest.raises(CallError, match="no open file"):
        table.find(number, "files")
    with pytest.raises(CallError, match="no open file"):
        table.close_one(number)
    assert table.add(await hold(files), "files") != number
    table.close()


async def test_a_client_has_only_so_many(files: FileSystem, backend: FakeBackend) -> None:
    table = FileTable(2, Holdings(99, 1 << 20))
    table.require_room()
    numbers = [table.add(await hold(files), "files") for _ in range(2)]
    with pytest.raises(CallError, match="may have 2 files open") as refused:
        table.require_room()
    assert (refused.value.code, refused.value.fields) == ("TOO_LARGE", {"limit": 2})
    with pytest.raises(CallError, match="may have 2 files open"):
        table.add(await hold(files), "files")  # several were opened at once
    await wait_all_tasks_blocked()
    assert len(backend.open_handles) == 2
    table.close_one(numbers[0])
    table.require_room()
    table.close()
    await owes_nothing(backend, files)
