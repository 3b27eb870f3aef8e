"""Keep the images of all exports while there is room, and make each once for all that wait.

An image is kept with the node of its file. So it serves only requests for that same file in the
same session, and ends when it has not been requested for a while. An image is for one user only:
two users who hold the same memory could lock it against each other, or communicate by its locks and
times.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import trio

from vuserd.delivery.census import CENSUS
from vuserd.delivery.headroom import HEADROOM
from vuserd.delivery.image import SealedImage, image_delivery, make_image
from vuserd.delivery.one_version import deliver_whole
from vuserd.device.procedure import NeedsTask, Procedure
from vuserd.errors import CallError, ErrorCode, VuserdError
from vuserd.exports.export import Export
from vuserd.fs.filesystem import FileSystem, require_regular
from vuserd.fs.nodes import Hold, Node
from vuserd.fs.openfile import OpenFile
from vuserd.fs.version import Version, time_to_settle
from vuserd.users.asker import ASKER, Asker


class _Place(NamedTuple):
    """The key under which an image is kept: one for each file and user."""

    node: Node
    user: Asker | None


class ImageKey(NamedTuple):
    """The file, version and user of an image that is made, and the path that it was asked for by.

    A file that changes meanwhile is read anew from the path, which may lead to another one by then:
    who has asked for it by another path wants nothing of that.
    """

    place: _Place
    version: Version
    path: bytes


class Fetched(NamedTuple):
    """An image, and whether it was kept already; the receiver gives the image back."""

    image: SealedImage
    cached: bool


class _Making:
    """An image that is being made, and how many callers wait for it."""

    def __init__(self, key: ImageKey) -> None:
        self.key = key
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.image: SealedImage | None = None
        self.error: VuserdError = CallError(ErrorCode.SHUTTING_DOWN, "the daemon is about to end")
        #: How many callers wait; each becomes a holder of the image.
        self.waiting = 0


class ImageStore:
    """Hands out images, and keeps the most recently used ones, up to ``budget`` bytes.

    Args:
        budget: bytes of images kept for later fetches; 0 keeps none.
        most: how many are kept, since each takes a descriptor.
        nursery: runs the tasks that make images, since the first caller may go before the others.

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
            CallError: CHANGED if the file kept changing; BUSY if the user has too many images.

        """
        making = await export.call(lambda files: self._find(export, files, path))
        if isinstance(making, Fetched):
            return making
        return Fetched(await self._wait_for(making), cached=False)

    def fetch_kept(self, path: bytes, files: FileSystem) -> Procedure[Fetched]:
        """Return the image that is kept of the regular file at ``path`` as it is now.

        Raises:
            NeedsTask: there is none, or it may be of another version with the same times.
            FileError: as :meth:`fetch`.

        """
        with Hold(files.nodes) as hold:
            node = yield from files.lookups.resolve(path, hold, follow=True)
            require_regular(node.attributes)
            version = Version.of(node.attributes)
            if time_to_settle(version):
                raise NeedsTask
            kept = self._hit(_Place(node, ASKER.get()), version)
            if kept is None:
                raise NeedsTask
            return Fetched(kept.hold(), cached=True)

    def _hit(self, place: _Place, version: Version) -> SealedImage | None:
        """Return the image that is kept of this version, as one that was used."""
        kept = self._kept.get(place)
        if kept is None or kept.version != version:
            return None
        self._kept.move_to_end(place)
        self.hits += 1
        return kept

    async def _find(self, export: Export, files: FileSystem, path: bytes) -> "Fetched | _Making":
        """Return the image of the file at ``path`` now, or its making, begun if necessary."""
        async with files.looked_up(path) as (node, version, settled):
            place = _Place(node, ASKER.get())
            key = ImageKey(place, version, path)
            kept = self._hit(place, version)
            if kept is not None:
                return Fetched(kept.hold(), cached=True)
            # If this version may change unseen, a making that began earlier is of no use here.
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
        """Give back all images that are kept."""
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
                self._forget(making)  # no caller waits for it any more
                making.scope.cancel()
            raise
        if making.image is None:
            raise making.error.again()
        return making.image

    async def _make(self, making: _Making, export: Export, path: bytes) -> None:
        async def deliver(file: OpenFile) -> SealedImage:
            if (file.node, file.version) != (making.key.place.node, making.key.version):
                self._forget(making)  # the path may lead back to what it was begun for
            return await make_image(file)

        way = image_delivery()._replace(deliver=deliver)
        try:
            with making.scope:
                making.image = await export.call(lambda files: deliver_whole(files, path, way))
        except VuserdError as error:
            making.error = error.again()
        finally:
            self._forget(making)
            if making.image is not None:
                for _ in range(making.waiting):
                    making.image.hold()
                self._keep(making.image, making.key.place.user)
                making.image.give_back()
            making.done.set()

    def _forget(self, making: _Making) -> None:
        """Let no further caller wait for it."""
        if self._making.get(making.key) is making:
            del self._making[making.key]

    def _keep(self, image: SealedImage, user: Asker | None) -> None:
        """Keep an image as long as its file's node is known, if there is room for it."""
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
        """Drop images of ``size`` bytes in total, as far as there are any, the oldest first."""
        enough = self.bytes - size
        while self._kept and self.bytes > enough:
            self._drop(next(iter(self._kept)))

    def _let_go(self, user: Asker | None) -> Iterator[None]:
        """Drop a user's images, the oldest first, one at each step."""
        for place in [place for place in self._kept if place.user == user]:
            self._drop(place)
            yield

    def _drop_all(self, node: Node) -> None:
        """Drop the images that are kept with a node."""
        for place in [place for place in self._kept if place.node is node]:
            self._drop(place)

    def _drop(self, place: _Place) -> None:
        """Drop the image that is kept under this key, if there is one."""
        image = self._kept.pop(place, None)
        if image is not None:
            self.bytes -= image.cost
            image.give_back()
