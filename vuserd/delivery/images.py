"""The images of all exports: kept while there is room, made once however many ask at once.

An image is kept with the node of its file: so it serves those alone who ask for that file, through
the same session, and ends when nobody has asked for a while. And it is one user's: two who hold the
same memory could lock it against each other, or pass word by its locks and times.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import trio

from vuserd.delivery.census import CENSUS
from vuserd.delivery.headroom import HEADROOM
from vuserd.delivery.image import SealedImage, image_delivery
from vuserd.delivery.one_version import deliver_whole
from vuserd.errors import CallError, ErrorCode, VuserdError
from vuserd.exports.export import Export
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.nodes import Node
from vuserd.fs.version import Version
from vuserd.users.asker import ASKER, Asker


class _Place(NamedTuple):
    """Where an image is kept: one for each file and user."""

    node: Node
    user: Asker | None


class ImageKey(NamedTuple):
    """What an image is an image of, and whose."""

    place: _Place
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
        self._kept: OrderedDict[_Place, SealedImage] = OrderedDict()
        self._making: dict[ImageKey, _Making] = {}
        HEADROOM.give_back = self._give_back
        CENSUS.let_go = self._let_go
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def fetch(self, export: Export, path: bytes) -> Fetched:
        """Return an image of the regular file at ``path`` as it is now.

        Raises:
            FileError: what the file system says, or ENOMEM and its kin of this machine's.
            CallError: CHANGED when the file went on changing; BUSY when its user has too many
                images.

        """
        making = await export.call(lambda files: self._find(export, files, path))
        if isinstance(making, Fetched):
            return making
        return Fetched(await self._wait_for(making), cached=False)

    async def _find(self, export: Export, files: FileSystem, path: bytes) -> "Fetched | _Making":
        """Return the image of what is at ``path`` now; or how it is made, which is begun."""
        async with files.looked_up(path) as (node, version, settled):
            place = _Place(node, ASKER.get())
            key = ImageKey(place, version)
            kept = self._kept.get(place)
            if kept is not None and kept.version == version:
                self._kept.move_to_end(place)
                self.hits += 1
                return Fetched(kept.hold(), cached=True)
            # What others began to read of a version that may change unseen is no use to this one.
            making = self._making.get(key) if settled else None
            if making is None:
                self.misses += 1
                making = _Making(key)
                if settled:
                    self._making[key] = making
                self._nursery.start_soon(self._make, making, export, path)
            return making

    def resize(self, budget: int) -> None:
        """Keep up to ``budget`` bytes from here on."""
        self._budget = budget
        while self.bytes > self._budget:
            self._drop(next(iter(self._kept)))

    def close(self) -> None:
        """Let go of all images."""
        HEADROOM.give_back = lambda _: None
        CENSUS.let_go = lambda _: iter(())
        while self._kept:
            self._drop(next(iter(self._kept)))

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
        try:
            with making.scope:
                making.image = await export.call(
                    lambda files: deliver_whole(files, path, image_delivery())
                )
        except VuserdError as error:
            # Without what the traceback refers to: the buffers of a backend that is lost by now.
            making.error = error.with_traceback(None)
        finally:
            self._forget(making)
            if making.image is not None:
                for _ in range(making.waiting):
                    making.image.hold()
                self._keep(making.image, making.key.place.user)
                making.image.give_back()
            making.done.set()

    def _forget(self, making: _Making) -> None:
        """Let nobody else wait for it."""
        if self._making.get(making.key) is making:
            del self._making[making.key]

    def _keep(self, image: SealedImage, user: Asker | None) -> None:
        """Keep an image as long as its file's node is known, unless there is no room for it."""
        node = image.node
        if node is None or not node.lookups or not self._budget or image.cost > self._budget:
            return
        place = _Place(node, user)
        self._drop(place)
        self._kept[place] = image.hold()
        node.on_drop = self._drop_all
        self.bytes += image.cost
        while self.bytes > self._budget or len(self._kept) > self._most:
            self._drop(next(iter(self._kept)))
        self._give_back(HEADROOM.bytes_to_give_back())

    def _give_back(self, size: int) -> None:
        """Let images go that take so many bytes, as far as there are any, the oldest first."""
        enough = self.bytes - size
        while self._kept and self.bytes > enough:
            self._drop(next(iter(self._kept)))

    def _let_go(self, user: Asker | None) -> Iterator[None]:
        """Let a user's images go, the oldest first, one with each step."""
        for place in [place for place in self._kept if place.user == user]:
            self._drop(place)
            yield

    def _drop_all(self, node: Node) -> None:
        """Let go of the images that are kept with a node."""
        for place in [place for place in self._kept if place.node is node]:
            self._drop(place)

    def _drop(self, place: _Place) -> None:
        """Let go of the image that is kept in a place, if there is one."""
        image = self._kept.pop(place, None)
        if image is not None:
            self.bytes -= image.cost
            image.give_back()
