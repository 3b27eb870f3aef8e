"""What a user has in images: counted from before one is made until nobody has it any more."""

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
from vuserd.asker import ASKER, Asker
from vuserd.delivery import image as image_module
from vuserd.delivery.headroom import HEADROOM
from vuserd.delivery.holdings import Holdings
from vuserd.delivery.images import ImageStore
from vuserd.errors import CallError, FileError

SIZE = 1 << 20
ONE, OTHER = Asker(1000, None), Asker(1001, None)


@pytest.fixture
def holdings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Holdings]:
    """Give books of the test's own, for four images."""
    holdings = Holdings()
    holdings.limit = 4 * SIZE
    monkeypatch.setattr(image_module, "HOLDINGS", holdings)
    monkeypatch.setattr("vuserd.delivery.images.HOLDINGS", holdings)
    yield holdings
    ASKER.set(None)
    if holdings._inotify >= 0:
        os.close(holdings._inotify)


def create(holdings: Holdings, stack: ExitStack, size: int = SIZE) -> int:
    descriptor, _ = holdings.create("image", size)
    stack.callback(os.close, descriptor)
    return descriptor


def test_each_user_has_its_own_share(holdings: Holdings) -> None:
    with ExitStack() as stack:
        for user in (ONE, OTHER):
            ASKER.set(user)
            for _ in range(4):
                create(holdings, stack)
            with pytest.raises(
                CallError, match=r"uid \d+ has 4 images of 4194304 bytes"
            ) as refused:
                create(holdings, stack, 1)
            assert refused.value.code == "BUSY"
            assert refused.value.to_wire()["limit"] == 4 * SIZE
            create(holdings, stack, 0)
    ASKER.set(ONE)
    with ExitStack() as stack:
        create(holdings, stack, 4 * SIZE)
        assert holdings.bytes_of(OTHER) == 0


def test_only_so_many(holdings: Holdings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "_most_images", 2)
    with ExitStack() as stack:
        create(holdings, stack, 0)
        create(holdings, stack, 0)
        with pytest.raises(CallError, match="close some") as refused:
            create(holdings, stack, 0)
        assert refused.value.to_wire()["limit"] == 2


def test_others_have_half_of_the_memory(
    holdings: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HEADROOM, "total", lambda: 2 * SIZE)
    with ExitStack() as stack:
        create(holdings, stack)
        with pytest.raises(CallError):
            create(holdings, stack)


def test_one_that_grows(holdings: Holdings) -> None:
    descriptor, holding = holdings.create("image", 0)
    with ExitStack() as stack:
        create(holdings, stack)
        holding.grow(3 * SIZE)
        with pytest.raises(CallError):
            holding.grow(3 * SIZE + 1)
        holding.settle(SIZE)
        create(holdings, stack, 2 * SIZE)
    os.close(descriptor)


def test_more_are_gone_than_the_kernel_tells(holdings: Holdings) -> None:
    """Its queue has room for so many events; which are left it tells elsewhere."""
    kept = []
    for _ in range(4):
        descriptor, _ = holdings.create("image", SIZE)
        os.truncate(descriptor, 1)
        kept.append(mmap.mmap(descriptor, 1, prot=mmap.PROT_READ))
        os.close(descriptor)
    for each in kept[1:]:
        each.close()
    os.read(holdings._inotify, 1 << 16)  # these are lost
    holdings._look_through()
    assert holdings.bytes_of(None) == SIZE
    kept[0].close()


def test_there_are_no_watches_left(holdings: Holdings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def inotify_init1(self, _: int) -> int:
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

        def inotify_add_watch(self, *_: object) -> int:
            ctypes.set_errno(errno.ENOSPC)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Full())
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileError, match="max_user_watches") as refused:
        holdings.create("image", SIZE)
    assert refused.value.code == "ENOSPC"
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert holdings.bytes_of(None) == 0


async def test_a_thousand_one_after_the_other(holdings: Holdings, tmp_path: Path) -> None:
    backend = FakeBackend({b"%d" % each: File(b"x" * SIZE) for each in range(6)})
    async with exported(backend, str(tmp_path / "s")) as export, trio.open_nursery() as nursery:
        store = ImageStore(1 << 30, 100, nursery)
        for number in range(30):
            (await store.fetch(export, b"%d" % (number % 6))).image.give_back()
            assert holdings.bytes_of(None) <= 4 * SIZE
        assert len(store) == 4
        fetched = [await store.fetch(export, b"0") for _ in range(1000)]
        for each in fetched:
            each.image.give_back()
        store.close()
        assert store.bytes == 0


async def test_what_is_on_its_way_counts(holdings: Holdings, tmp_path: Path) -> None:
    backend = FakeBackend({b"%d" % each: File(b"x" * SIZE) for each in range(6)})
    async with exported(backend, str(tmp_path / "s")) as export, trio.open_nursery() as nursery:
        store = ImageStore(0, 1, nursery)
        backend.answer_to(Opcode.READ, None)
        async with trio.open_nursery() as waiting:
            for number in range(4):
                waiting.start_soon(store.fetch, export, b"%d" % number)
            await wait_all_tasks_blocked()
            assert holdings.bytes_of(None) == 4 * SIZE
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
