"""Images and those who wait for them: who holds one, and who ends a holding."""

import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vuserd.config.model import ExportConfig
from vuserd.delivery.image import SealedImage
from vuserd.delivery.images import ImageStore
from vuserd.errors import ConfigurationError, FileError
from vuserd.fs.export import Export
from vuserd.fs.version import Version

VERSION = Version(ino=1, size=4, mtime_ns=0, ctime_ns=0)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_client_that_goes_as_the_image_is_done_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    descriptor = os.memfd_create("image", os.MFD_CLOEXEC)
    image = SealedImage(descriptor, 4, VERSION)
    export = Export(ExportConfig("files", socket="none"), ConfigurationError("not asked for"))
    answers = iter([VERSION, image])

    async def call(_: object) -> object:
        answer = next(answers)
        if answer is image:
            await wait_all_tasks_blocked()
            client.cancel()  # who waits is told after this task has had its turn
            if fails:
                raise FileError(5)
        return answer

    monkeypatch.setattr(export, "call", call)
    async with trio.open_nursery() as nursery:
        store = ImageStore(0, 1, nursery)
        with trio.CancelScope() as client:
            await store.fetch(export, b"Image")
    assert client.cancelled_caught
    if fails:
        image.give_back()  # it was never handed out
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
