"""The images of all exports: kept while there is room, made once however many ask at once."""

from collections import OrderedDict
from collections.abc import Awaitable
from typing import NamedTuple

import trio

from vuserd.delivery.image import SealedImage, make_image
from vuserd.delivery.whole import deliver_whole
from vuserd.errors import CallError, ErrorCode, VuserdError
from vuserd.fs.export import Export
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.version import Version


class ImageKey(NamedTuple):
    """What an image is an image of."""

    source: str
    version: Version


class Fetched(NamedTuple):
    """An image, and whether it was there already; the receiver gives the image back."""

    image: SealedImage
    cached: bool


class _Making:
    """An image on its way, and how many wait for it."""

    def __init__(self, key: ImageKey) -> None:
        self.key = key
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.image: SealedImage | None = None
        self.error: VuserdError = CallError(ErrorCode.SHUTTING_DOWN, "the daemon is about to end")
        #: Each of them is given a holding of the image.
        self.waiting = 0


class ImageStore:
    """Hands out images; keeps those used last, up to ``budget`` bytes.

    Args:
        budget: bytes of images kept for a next time; 0 keeps none.
        most: how many are kept: each takes a descriptor.
        nursery: where images are made: the client that asked first may go before the others.

    """

    def __init__(self, budget: int, most: int, nursery: trio.Nursery) -> None:
        self._budget = budget
        self._most = most
        self._nursery = nursery
        self._kept: OrderedDict[ImageKey, SealedImage] = OrderedDict()
        self._making: dict[ImageKey, _Making] = {}
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def fetch(self, export: Export, path: bytes) -> Fetched:
        """Return an image of the regular file at ``path`` as it is now.

        Raises:
            FileError: what the file system says, or ENOMEM and its kin of this machine's.
            CallError: CHANGED when the file went on changing.

        """
        version = await export.call(lambda files: files.version(path))
        key = ImageKey(export.config.source, version)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            self.hits += 1
            return Fetched(kept.hold(), cached=True)
        making = self._making.get(key)
        if making is None:
            self.misses += 1
            making = self._making[key] = _Making(key)
            self._nursery.start_soon(self._make, making, export, path)
        return Fetched(await self._wait_for(making), cached=False)

    def resize(self, budget: int) -> None:
        """Keep up to ``budget`` bytes from here on."""
        self._budget = budget
        while self.bytes > self._budget:
            self._drop_oldest()

    def close(self) -> None:
        """Let go of all images."""
        while self._kept:
            self._drop_oldest()

    async def _wait_for(self, making: _Making) -> SealedImage:
        making.waiting += 1
        try:
            await making.done.wait()
        except trio.Cancelled:
            if making.done.is_set():  # between the cancellation and this
                if making.image is not None:
                    making.image.give_back()
                raise
            making.waiting -= 1
            if making.waiting == 0:
                self._forget(making)  # nobody wants it any more
                making.scope.cancel()
            raise
        if making.image is None:
            raise making.error
        return making.image

    async def _make(self, making: _Making, export: Export, path: bytes) -> None:
        def deliver(files: FileSystem) -> Awaitable[SealedImage]:
            return deliver_whole(files, path, make_image, SealedImage.give_back)

        try:
            with making.scope:
                making.image = await export.call(deliver)
        except VuserdError as error:
            # Without what the traceback refers to: the buffers of a backend that is lost by now.
            making.error = error.with_traceback(None)
        finally:
            self._forget(making)
            if making.image is not None:
                for _ in range(making.waiting):
                    making.image.hold()
                self._keep(ImageKey(making.key.source, making.image.version), making.image)
            making.done.set()

    def _forget(self, making: _Making) -> None:
        """Let nobody else wait for it."""
        if self._making.get(making.key) is making:
            del self._making[making.key]

    def _keep(self, key: ImageKey, image: SealedImage) -> None:
        """Take over the maker's holding: keep the image, or let it go."""
        if not self._budget or image.size > self._budget or key in self._kept:
            image.give_back()
            return
        self._kept[key] = image
        self.bytes += image.size
        while self.bytes > self._budget or len(self._kept) > self._most:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, image = self._kept.popitem(last=False)
        self.bytes -= image.size
        image.give_back()
