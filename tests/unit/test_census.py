"""What a user has in images is counted from before one is made until it is gone."""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.fake.backend import FakeBackend, File
from tests.faults.harness import exported
from vuserd.delivery import image as image_module
from vuserd.delivery.census import Census
from vuserd.delivery.headroom import HEADROOM
from vuserd.delivery.images import ImageStore
from vuserd.errors import CallError
from vuserd.users.asker import ASKER, Asker

SIZE = 1 << 20
ONE, OTHER = Asker(1000, None), Asker(1001, None)


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> Iterator[Census]:
    """Yield books of the test's own, for four images."""
    census = Census()
    census.limit = 4 * SIZE
    monkeypatch.setattr(image_module, "CENSUS", census)
    monkeypatch.setattr("vuserd.delivery.images.CENSUS", census)
    yield census
    ASKER.set(None)
    if census._inotify >= 0:
        os.close(census._inotify)


def create(census: Census, stack: ExitStack, size: int = SIZE) -> int:
    descriptor, _ = census.create("image", size)
    stack.callback(os.close, descriptor)
    return descriptor


def test_each_user_has_its_own_share(census: Census) -> None:
    with ExitStack() as stack:
        for user in (ONE, OTHER):
            ASKER.set(user)
            for _ in range(4):
                create(census, stack)
            with pytest.raises(
                CallError, match=r"uid \d+ has 4 images of 4194304 bytes"
            ) as refused:
                create(census, stack, 1)
            assert refused.value.code == "BUSY"
            assert refused.value.to_wire()["limit"] == 4 * SIZE
            create(census, stack, 0)
    ASKER.set(ONE)
    with ExitStack() as stack:
        create(census, stack, 4 * SIZE)
        assert census.bytes_of(OTHER) == 0


def test_only_so_many(census: Census, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "_most_images", 2)
    with ExitStack() as stack:
        create(census, stack, 0)
        create(census, stack, 0)
        with pytest.raises(CallError, match="close some") as refused:
            create(census, stack, 0)
        assert refused.value.to_wire()["limit"] == 2


def test_others_have_half_of_the_memory(census: Census, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HEADROOM, "total", lambda: 2 * SIZE)
    with ExitStack() as stack:
        create(census, stack)
        with pytest.raises(CallError):
            create(census, stack)


def test_one_that_grows(census: Census) -> None:
    descriptor, holding = census.create("image", 0)
    with ExitStack() as stack:
        create(census, stack)
        holding.grow(3 * SIZE)
        with pytest.raises(CallError):
            holding.grow(3 * SIZE + 1)
        holding.settle(SIZE)
        create(census, stack, 2 * SIZE)
    os.close(descriptor)


def test_more_are_gone_than_the_kernel_tells(census: Census) -> None:
    """Its queue has room for so many events; which are left it tells elsewhere."""
    kept = []
    for _ in range(4):
        descriptor, _ = census.create("image", SIZE)
        os.truncate(descriptor, 1)
        kept.append(mmap.mmap(descriptor, 1, prot=mmap.PROT_READ))
        os.close(descriptor)
    for each in kept[1:]:
        each.close()
    os.read(census._inotify, 1 << 16)  # these are lost
    census._look_through()
    assert census.bytes_of(None) == SIZE
    kept[0].close()


def test_there_are_no_watches_left(
    census: Census, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Images are made all the same."""

    class Full:
        def inotify_init1(self, _: int) -> int:
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

        def inotify_add_watch(self, *_: object) -> int:
            ctypes.set_errno(errno.ENOSPC)
            return -1

    monkeypatch.setattr("vuserd.delivery.census._LIBC", Full())
    with ExitStack() as stack:
        for _ in range(9):
            create(census, stack)
    assert [record.getMessage() for record in caplog.records] == [
        "images are not counted: No space left on device (fs.inotify.max_user_watches)"
    ]
    assert census.bytes_of(None) == 0


async def test_a_thousand_one_after_the_other(census: Census, tmp_path: Path) -> None:
    backend = FakeBackend({b"%d" % each: File(b"x" * SIZE) for each in range(6)})
    async with exported(backend, str(tmp_path / "s")) as export, trio.open_nursery() as nursery:
        store = ImageStore(1 << 30, 100, nursery)
        for number in range(30):
            (await store.fetch(export, b"%d" % (number % 6))).image.give_back()
            assert census.bytes_of(None) <= 4 * SIZE
        assert len(store) == 4
        fetched = [await store.fetch(export, b"0") for _ in range(1000)]
        for each in fetched:
            each.image.give_back()
        store.close()
        assert store.bytes == 0


async def test_what_is_on_its_way_counts(census: Census, tmp_path: Path) -> None:
    backend = FakeBackend({b"%d" % each: File(b"x" * SIZE) for each in range(6)})
    async with exported(backend, str(tmp_path / "s")) as export, trio.open_nursery() as nursery:
        store = ImageStore(0, 1, nursery)
        backend.answer_to(Opcode.READ, None)
        async with trio.open_nursery() as waiting:
            for number in range(4):
                waiting.start_soon(store.fetch, export, b"%d" % number)
            await wait_all_tasks_blocked()
            assert census.bytes_of(None) == 4 * SIZE
            with pytest.raises(CallError):
                await store.fetch(export, b"4")
            waiting.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        for request in backend.named(Opcode.READ):
            answer = backend.serve_files(request)
            assert answer is not None
            backend.reply(request, answer)
        backend.answer = backend.serve_files
        await wait_all_tasks_blocked()
        (await store.fetch(export, b"4")).image.give_back()
        store.close()
