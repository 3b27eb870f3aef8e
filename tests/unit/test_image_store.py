"""The image store: which user an image is for, how long it is kept, and what is never kept."""

import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.fake.backend import MAX_PAGES, Answer, FakeBackend, File, FuseRequest
from tests.fake.files import coarse_now
from tests.faults.catalogue import fault
from tests.faults.harness import exported
from vuserd.delivery.images import ImageStore
from vuserd.errors import CallError, FileError
from vuserd.exports.export import Export

PAGE = 4096


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(
        {b"Image": b"kernel", b"twin": b"lenrek", b"folder": File(mode=stat.S_IFDIR | 0o755)}
    )


@asynccontextmanager
async def storing(budget: int = 1 << 20, most: int = 10) -> AsyncIterator[ImageStore]:
    """Yield a store, and check that no image is open once it was closed."""
    async with trio.open_nursery() as nursery:
        store = ImageStore(budget, most, nursery)
        yield store
        store.close()
    assert len(store) == store.bytes == 0
    assert images_open() == 0


@pytest.fixture
async def export(backend: FakeBackend, tmp_path: Path) -> AsyncIterator[Export]:
    async with exported(backend, str(tmp_path / "backend.sock")) as export:
        yield export


def images_open() -> int:
    """Return how many images this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += "vuserd-image" in os.readlink(link)
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return count


async def fetch(store: ImageStore, export: Export, path: bytes = b"Image") -> tuple[bytes, bool]:
    """Return an image's bytes, and whether it was there already."""
    fetched = await store.fetch(export, path)
    content = fetched.image.read(0, 1 << 20)
    assert len(content) == fetched.image.size
    fetched.image.give_back()
    return content, fetched.cached


async def test_an_image_serves_again(backend: FakeBackend, export: Export) -> None:
    async with storing() as store:
        assert await fetch(store, export) == (b"kernel", False)
        for path in (b"Image", b"/Image", b"folder/../Image"):
            assert await fetch(store, export, path) == (b"kernel", True)
        assert (store.hits, store.misses, len(store), store.bytes) == (3, 1, 1, PAGE)
        assert len(backend.named(Opcode.READ)) == 2  # its bytes, and that it ends there


async def test_another_version_is_made_anew_and_takes_the_place(
    backend: FakeBackend, export: Export
) -> None:
    async with storing() as store:
        await fetch(store, export)
        backend.files[b"Image"] = File(b"KERNEL", ctime=1_000_000_001)
        assert await fetch(store, export) == (b"KERNEL", False)
        assert await fetch(store, export) == (b"KERNEL", True)
        assert (len(store), store.bytes) == (1, PAGE)


@fault(
    "attributes-alike",
    done="two files are alike in inode number, size and times, and not in their bytes",
    must="Each has its own image: an image is kept with the node.",
)
@pytest.mark.parametrize("flags", [0, 1])
async def test_two_files_of_the_same_attributes(
    backend: FakeBackend, export: Export, flags: int
) -> None:
    """Of two file systems that were made alike: each has its own image, in any order."""
    for name, content in ((b"Image", b"kernel"), (b"twin", b"lenrek")):
        backend.files[name] = File(content, ino=7, flags=flags)
    async with storing() as store:
        for cached in (False, True):
            for name, content in ((b"Image", b"kernel"), (b"twin", b"lenrek")):
                assert await fetch(store, export, name) == (content, cached)
        assert len(store) == 2


async def test_a_file_that_takes_anothers_place_and_attributes(
    backend: FakeBackend, export: Export
) -> None:
    """As where one image is mounted after another: the backend gives it a node of its own."""
    async with storing() as store:
        assert await fetch(store, export) == (b"kernel", False)
        backend.files[b"Image"] = File(b"kernel", ino=1002)
        backend.files[b"twin"] = File(b"lenrek", ino=1002)

        def answer(request: FuseRequest) -> Answer | None:
            if request.opcode is Opcode.LOOKUP:
                return backend.serve_files(request._replace(body=b"twin\0"))
            return backend.serve_files(request)

        backend.answer = answer
        assert await fetch(store, export) == (b"lenrek", False)


@fault(
    "alike-in-the-next-backend",
    done="the backend ends, and the next one has other bytes under the same attributes",
    must="No image of the session before is given.",
)
async def test_no_image_outlives_its_session(backend: FakeBackend, export: Export) -> None:
    async with storing() as store:
        await fetch(store, export)
        backend.files[b"Image"] = File(b"KERNEL")  # mounted anew meanwhile: attributes as before
        backend.die()
        await wait_all_tasks_blocked()
        assert await fetch(store, export) == (b"KERNEL", False)
        assert await fetch(store, export) == (b"KERNEL", True)
        assert len(store) == images_open() == 1


async def test_an_image_ends_when_nobody_asked_for_a_while(
    backend: FakeBackend,
    tmp_path: Path,
    autojump_clock: MockClock,  # noqa: ARG001 - seconds pass at once
) -> None:
    async with (
        exported(backend, str(tmp_path / "backend.sock"), idle_time=5.0) as export,
        storing() as store,
    ):
        await fetch(store, export)
        for _ in range(5):
            await trio.sleep(4)
            assert await fetch(store, export) == (b"kernel", True)
        await trio.sleep(6)
        assert len(store) == store.bytes == images_open() == 0
        assert not +backend.lookups
        assert await fetch(store, export) == (b"kernel", False)


async def test_whoever_has_an_image_keeps_it_beyond_that(
    backend: FakeBackend,
    tmp_path: Path,
    autojump_clock: MockClock,  # noqa: ARG001 - seconds pass at once
) -> None:
    async with (
        exported(backend, str(tmp_path / "backend.sock"), idle_time=5.0) as export,
        storing() as store,
    ):
        fetched = await store.fetch(export, b"Image")
        await trio.sleep(10)
        assert len(store) == 0
        assert fetched.image.read(0, 100) == b"kernel"
        fetched.image.give_back()


async def test_those_used_last_are_kept(backend: FakeBackend, export: Export) -> None:
    for number in range(4):
        backend.files[b"%d" % number] = File(b"%d" % number * 5000)  # two pages each
    async with storing(budget=4 * PAGE) as store:
        await fetch(store, export, b"0")
        await fetch(store, export, b"1")
        await fetch(store, export, b"0")
        await fetch(store, export, b"2")
        assert (len(store), store.bytes) == (2, 4 * PAGE)
        assert (await fetch(store, export, b"0"))[1]
        assert not (await fetch(store, export, b"1"))[1]
        assert (await fetch(store, export, b"0"))[1]
        store.resize(2 * PAGE)
        assert (len(store), store.bytes) == (1, 2 * PAGE)
        assert (await fetch(store, export, b"0"))[1]
        store.resize(0)
        assert len(store) == 0


async def test_only_so_many_are_kept(backend: FakeBackend, export: Export) -> None:
    for number in range(4):
        backend.files[b"%d" % number] = File()
    async with storing(most=2) as store:
        for number in range(4):
            await fetch(store, export, b"%d" % number)
        assert (len(store), store.bytes) == (2, 0)


@pytest.mark.parametrize("budget", [0, PAGE - 1])
async def test_what_there_is_no_room_for_is_not_kept(export: Export, budget: int) -> None:
    async with storing(budget=budget) as store:
        for _ in range(2):
            assert await fetch(store, export) == (b"kernel", False)
        assert len(store) == images_open() == 0


async def test_nothing_is_kept_without_idle_nodes(backend: FakeBackend, tmp_path: Path) -> None:
    async with (
        exported(backend, str(tmp_path / "backend.sock"), idle_nodes=0) as export,
        storing() as store,
    ):
        for _ in range(2):
            assert await fetch(store, export) == (b"kernel", False)
        assert len(store) == 0


@fault(
    "image-not-settled",
    done="a file with coarse timestamps is fetched soon after it changed",
    must="Its image is given, and not kept.",
)
async def test_what_may_change_unseen_is_not_kept(backend: FakeBackend, export: Export) -> None:
    now = coarse_now()
    backend.files[b"Image"] = File(b"kernel", mtime=now, ctime=now)
    async with storing() as store:
        assert await fetch(store, export) == (b"kernel", False)
        backend.files[b"Image"] = File(b"KERNEL", mtime=now, ctime=now)
        assert await fetch(store, export) == (b"KERNEL", False)
        assert len(store) == 0


@pytest.mark.parametrize("settled", [True, False])
async def test_several_who_ask_at_once(backend: FakeBackend, export: Export, settled: bool) -> None:
    """They share one reading, unless that may be older than what one of them asked for."""
    now = 1_000_000_000 if settled else coarse_now()
    backend.files[b"Image"] = File(b"kernel", mtime=now, ctime=now)
    async with storing() as store:
        found: list[tuple[bytes, bool]] = []

        async def take() -> None:
            found.append(await fetch(store, export))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(take)
        assert found == [(b"kernel", False)] * 5
        assert len(backend.named(Opcode.OPEN)) == (1 if settled else 5)
        assert len(store) == settled


class Switched:
    """Has names lead to files as ``way`` says, and reads wait until :meth:`let_go`."""

    def __init__(self, backend: FakeBackend, way: Callable[[bytes], bytes]) -> None:
        self._backend = backend
        self._way = way
        self._held: list[FuseRequest] | None = []
        backend.answer = self._answer

    def _answer(self, request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ and self._held is not None:
            self._held.append(request)
            return None
        if request.opcode is Opcode.LOOKUP:
            name = self._way(request.body.rstrip(b"\0"))
            request = request._replace(body=name + b"\0")
        return self._backend.serve_files(request)

    def let_go(self) -> None:
        held, self._held = self._held, None
        for request in held or ():
            late = self._backend.serve_files(request)
            assert late is not None
            self._backend.reply(request, late)


async def test_who_asks_by_another_name_has_what_that_one_leads_to(
    backend: FakeBackend, export: Export
) -> None:
    """As where a kernel was linked to a name for the old one, and a new one takes its place."""
    leads_to = {b"vmlinuz": b"Image", b"vmlinuz.old": b"Image"}
    switched = Switched(backend, lambda name: leads_to[name])
    found: dict[bytes, tuple[bytes, bool]] = {}
    async with storing() as store:

        async def take(name: bytes) -> None:
            found[name] = await fetch(store, export, name)

        async with trio.open_nursery() as nursery:
            for name in leads_to:
                nursery.start_soon(take, name)
                await wait_all_tasks_blocked()
            leads_to[b"vmlinuz"] = b"twin"
            backend.files[b"Image"] = File(b"kernel", ctime=1_000_000_001)  # it has a name less
            switched.let_go()
        assert found == {b"vmlinuz": (b"lenrek", False), b"vmlinuz.old": (b"kernel", False)}


async def test_who_asks_when_the_path_leads_back_has_what_is_there_then(
    backend: FakeBackend, export: Export
) -> None:
    """As where "current" is switched and switched back while what it led to is read."""
    leads_to = iter([b"Image", b"twin", b"Image", b"Image"])
    switched = Switched(backend, lambda _: next(leads_to))
    found: list[tuple[bytes, bool]] = []
    async with storing() as store:

        async def take() -> None:
            found.append(await fetch(store, export, b"current"))

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(take)
                await wait_all_tasks_blocked()
            switched.let_go()
        assert sorted(found) == [(b"kernel", False), (b"lenrek", False)]


async def test_the_others_do_not_wait_in_vain_when_the_first_goes(
    backend: FakeBackend, export: Export
) -> None:
    backend.answer_to(Opcode.READ, None)
    first = trio.CancelScope()
    found: list[tuple[bytes, bool]] = []
    async with storing() as store:

        async def take(scope: trio.CancelScope) -> None:
            with scope:
                found.append(await fetch(store, export))

        async with trio.open_nursery() as nursery:
            for scope in (first, trio.CancelScope()):
                nursery.start_soon(take, scope)
                await wait_all_tasks_blocked()
            first.cancel()
            await wait_all_tasks_blocked()
            for request in backend.named(Opcode.READ):
                answer = backend.serve_files(request)
                assert answer is not None
                backend.reply(request, answer)
            backend.answer = backend.serve_files
        assert first.cancelled_caught
        assert found == [(b"kernel", False)]
        assert len(backend.named(Opcode.OPEN)) == 1


async def test_what_nobody_waits_for_is_not_made(backend: FakeBackend, export: Export) -> None:
    backend.answer_to(Opcode.READ, None)
    async with storing() as store:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(fetch, store, export)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert images_open() == 0
        for request in backend.named(Opcode.READ):
            answer = backend.serve_files(request)
            assert answer is not None
            backend.reply(request, answer)
        backend.answer = backend.serve_files
        assert await fetch(store, export) == (b"kernel", False)


async def test_an_error_is_everybodys_and_not_kept(backend: FakeBackend, export: Export) -> None:
    backend.answer_to(Opcode.READ, Answer(error=errno.EIO))
    async with storing() as store:
        refused: list[str] = []

        async def take() -> None:
            with pytest.raises(FileError) as error:
                await fetch(store, export)
            refused.append(error.value.code)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(take)
        assert refused == ["EIO"] * 3
        backend.answer = backend.serve_files
        assert await fetch(store, export) == (b"kernel", False)


async def test_what_has_no_identity_has_no_image(backend: FakeBackend, export: Export) -> None:
    """All files of its file system have inode number 0: the backend would give another one's."""
    backend.files[b"Image"] = File(b"kernel", ino=0)
    async with storing() as store:
        with pytest.raises(FileError, match="no inode number of its own"):
            await fetch(store, export)
        assert (await export.call(lambda files: files.stat(b"Image", follow=True))).ino == 0


async def test_where_mounts_are_not_told_images_are_kept_with_their_nodes(
    backend: FakeBackend, tmp_path: Path
) -> None:
    backend.flags = MAX_PAGES
    async with exported(backend, str(tmp_path / "backend.sock")) as export, storing() as store:
        assert await fetch(store, export) == (b"kernel", False)
        assert await fetch(store, export) == (b"kernel", True)


async def test_one_that_goes_on_changing(backend: FakeBackend, export: Export) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        reply = backend.serve_files(request)
        if request.opcode is Opcode.READ:
            now = backend.files[b"Image"].ctime + 1
            backend.files[b"Image"] = File(b"kernel", ctime=now)
        return reply

    backend.answer = answer
    async with storing() as store:
        with pytest.raises(CallError) as changed:
            await fetch(store, export)
        assert changed.value.code == "CHANGED"
        assert len(store) == images_open() == 0


# --- sparse files ---------------------------------------------------------------------------------

MIB = 1 << 20


def sparse(size: int, *data: tuple[int, int]) -> File:
    """Return a file with bytes in these parts, and holes elsewhere."""
    content = bytearray(size)
    for begin, end in data:
        content[begin:end] = b"%d " % begin * ((end - begin) // len(b"%d " % begin) + 1)
        del content[size:]
        content[end:size] = bytes(size - end)
    return File(bytes(content), data=data)


@pytest.mark.parametrize(
    "data",
    [
        (),
        ((0, PAGE),),
        ((5 * MIB - PAGE, 5 * MIB),),
        ((PAGE, 2 * PAGE), (3 * MIB, 3 * MIB + 5 * PAGE)),
        tuple((at * 2 * PAGE, at * 2 * PAGE + PAGE) for at in range(150)),  # more than come at once
    ],
)
@pytest.mark.parametrize("settled", [True, False])
async def test_a_sparse_file_has_a_sparse_image(
    backend: FakeBackend, export: Export, data: tuple[tuple[int, int], ...], settled: bool
) -> None:
    now = 1_000_000_000 if settled else coarse_now()
    file = sparse(5 * MIB, *data)._replace(mtime=now, ctime=now)
    backend.files[b"disk"] = file
    async with storing(budget=1 << 30) as store:
        fetched = await store.fetch(export, b"disk")
        try:
            assert fetched.image.size == 5 * MIB
            assert fetched.image.read(0, 6 * MIB) == file.content
            assert fetched.image.cost == sum(end - begin for begin, end in data)
            assert store.bytes == (fetched.image.cost if settled else 0)
        finally:
            fetched.image.give_back()


@pytest.mark.parametrize("settled", [True, False])
async def test_a_sparse_file_larger_than_all_memory(
    backend: FakeBackend, export: Export, settled: bool
) -> None:
    size = 1 << 42
    now = 1_000_000_000 if settled else coarse_now()

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LSEEK:
            return Answer(error=errno.ENXIO)
        return backend.serve_files(request)

    backend.files[b"disk"] = File(size=size, data=(), mtime=now, ctime=now)
    backend.answer = answer
    async with storing() as store:
        fetched = await store.fetch(export, b"disk")
        assert (fetched.image.size, fetched.image.cost) == (size, 0)
        assert fetched.image.read(size - 10, 100) == bytes(10)
        fetched.image.give_back()


@fault(
    "hole-unseen",
    done="a hole of a file with coarse timestamps is filled or punched while it is read",
    must="It is read again: one version is given.",
)
@pytest.mark.parametrize("place", [0, 3 * PAGE + 5, MIB - 1])
@pytest.mark.parametrize("was", [b"\0", b"x"])
async def test_a_hole_that_comes_or_goes_unseen_is_noticed(
    backend: FakeBackend, export: Export, place: int, was: bytes
) -> None:
    """A byte is written into a hole, or its block is punched out, under the same timestamps."""
    now = coarse_now()

    def holding(byte: bytes) -> File:
        block = place // PAGE * PAGE
        data = ((block, block + PAGE),) if byte == b"x" else ()
        content = bytearray(MIB)
        content[place : place + 1] = byte
        return File(bytes(content), data=data, mtime=now, ctime=now)

    backend.files[b"disk"] = holding(was)
    looked = 0

    def answer(request: FuseRequest) -> Answer | None:
        nonlocal looked
        if request.opcode is Opcode.GETATTR:
            looked += 1
            if looked == 1:
                backend.files[b"disk"] = holding(b"x" if was == b"\0" else b"\0")
        return backend.serve_files(request)

    backend.answer = answer
    async with storing() as store:
        content, _ = await fetch(store, export, b"disk")
        assert content == backend.files[b"disk"].content
        assert looked == 3  # before the two readings differed, and around the one that agreed


async def test_a_hole_that_is_filled_meanwhile(backend: FakeBackend, export: Export) -> None:
    """The GETATTR at the end tells, and the holes are asked for again."""
    backend.files[b"disk"] = sparse(MIB, (0, PAGE))
    filled = False

    def answer(request: FuseRequest) -> Answer | None:
        nonlocal filled
        reply = backend.serve_files(request)
        if request.opcode is Opcode.LSEEK and not filled:
            filled = True
            backend.files[b"disk"] = sparse(MIB, (0, MIB))._replace(ctime=1_000_000_001)
        return reply

    backend.answer = answer
    async with storing() as store:
        content, _ = await fetch(store, export, b"disk")
        assert content == backend.files[b"disk"].content
