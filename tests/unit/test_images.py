"""Images: how much memory they may take, and how holders come and go."""

import errno
import gc
import os
import struct
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from tests.faults.harness import exported
from vuserd.delivery import image as image_module
from vuserd.delivery import images as images_module
from vuserd.delivery.headroom import HEADROOM, RESERVE
from vuserd.delivery.image import SealedImage, make_image
from vuserd.delivery.images import ImageStore
from vuserd.delivery.one_version import Delivery, deliver_whole
from vuserd.errors import FileError
from vuserd.fs.filesystem import FileSystem


def taken_by_images() -> int:
    """Return the bytes of all images that this process has open."""
    held = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if "vuserd-image" in os.readlink(link):
                held += link.stat().st_blocks * 512
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return held


async def test_images_made_at_once_leave_the_machine_what_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 4 << 20
    available = RESERVE + 6 * size // 4
    monkeypatch.setattr(image_module, "_STEP", size // 4)
    monkeypatch.setattr(HEADROOM, "available", lambda _: available - taken_by_images())
    backend = FakeBackend({b"a": bytes(size), b"b": bytes(size)})
    images: list[SealedImage] = []
    refused: list[FileError] = []

    async def take(files: FileSystem, name: bytes) -> None:
        async with files.opened(name) as file:
            try:
                images.append(await make_image(file))
            except FileError as error:
                refused.append(error)

    async with backend.session() as session, trio.open_nursery() as nursery:
        files = FileSystem(session, idle_nodes=10)
        nursery.start_soon(take, files, b"a")
        nursery.start_soon(take, files, b"b")
    assert [error.code for error in refused] == ["ENOMEM"]
    assert [image.size for image in images] == [size]
    assert taken_by_images() == size
    images[0].give_back()


async def test_a_small_image_is_refused_like_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HEADROOM, "available", lambda _: RESERVE)
    backend = FakeBackend({b"Image": b"kernel", b"version": File()})
    async with backend.session() as session:
        async with FileSystem(session, idle_nodes=10).opened(b"Image") as file:
            with pytest.raises(FileError, match="6 bytes of an image do not fit") as refused:
                await make_image(file)
            assert refused.value.number == errno.ENOMEM
        async with FileSystem(session, idle_nodes=10).opened(b"version") as file:
            image = await make_image(file)  # an empty one takes nothing
    image.give_back()


async def test_a_file_of_unknown_size_is_copied_to_its_end() -> None:
    content = bytes(range(250)) * 10_000
    backend = FakeBackend({b"crypto": File(content, most=4001)})
    async with (
        backend.session() as session,
        FileSystem(session, idle_nodes=10).opened(b"crypto") as file,
    ):
        image = await make_image(file)
    copy = image.reopen()
    assert os.pread(copy, len(content) + 1, 0) == content
    os.close(copy)
    image.give_back()


async def test_a_file_of_unknown_size_that_does_not_end() -> None:
    most = image_module._MOST_UNKNOWN
    backend = FakeBackend({b"zeros": File()})

    def read(request: FuseRequest) -> Answer:
        _, offset, size = struct.unpack_from("=QQI", request.body)
        assert offset <= most
        return Answer(bytes(size))

    backend.answer_to(Opcode.READ, read)
    async with (
        backend.session() as session,
        FileSystem(session, idle_nodes=10).opened(b"zeros") as file,
    ):
        with pytest.raises(FileError, match="does not end") as refused:
            await make_image(file)
        assert refused.value.code == "EFBIG"
    assert taken_by_images() == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_a_client_that_goes_as_the_image_is_done_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
) -> None:
    async def deliver(files: FileSystem, path: bytes, way: Delivery[SealedImage]) -> SealedImage:
        image = await deliver_whole(files, path, way)
        client.cancel()  # who waits is told after this task has had its turn
        if fails:
            image.give_back()
            raise FileError(errno.EIO)
        return image

    monkeypatch.setattr(images_module, "deliver_whole", deliver)
    backend = FakeBackend({b"Image": b"kernel"})
    async with exported(backend, str(tmp_path / "backend.sock")) as export:
        async with trio.open_nursery() as nursery:
            store = ImageStore(0, 1, nursery)
            with trio.CancelScope() as client:
                await store.fetch(export, b"Image")
        assert client.cancelled_caught
    assert taken_by_images() == 0


async def test_what_failed_keeps_nothing_of_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not even until the garbage collector runs, which it does not in an idle daemon."""

    async def deliver(*_: object) -> SealedImage:
        await wait_all_tasks_blocked()
        raise FileError(errno.EIO)

    async def fail() -> None:
        with pytest.raises(FileError) as raised:
            await store.fetch(export, b"Image")
        errors.append(str(raised.value))
        del raised

    monkeypatch.setattr(images_module, "deliver_whole", deliver)
    backend = FakeBackend({b"Image": b"kernel"})
    errors: list[str] = []
    async with exported(backend, str(tmp_path / "backend.sock")) as export:
        gc.collect()
        gc.disable()
        try:
            async with trio.open_nursery() as nursery:
                store = ImageStore(0, 1, nursery)
                async with trio.open_nursery() as clients:
                    clients.start_soon(fail)
                    clients.start_soon(fail)
            made = [each for each in gc.get_objects() if isinstance(each, images_module._Making)]
        finally:
            gc.enable()
    assert errors == ["input/output error"] * 2
    assert made == []
