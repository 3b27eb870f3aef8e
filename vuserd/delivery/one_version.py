"""Deliver a single version of a file, with a few more attempts if it changes meanwhile."""

from collections.abc import Awaitable, Callable
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from protocol.fuse import Attributes
from vuserd.errors import CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import OpenFile

#: How often a file that keeps changing is read before that is reported.
ATTEMPTS: Final = 3
#: Seconds between two readings that are compared. A write in progress ends meanwhile; one that is
#: slower could show both readings the same half of it.
_PAUSE: Final = 0.05

Delivered = TypeVar("Delivered")


class FileChanged(Exception):  # noqa: N818 - never leaves the deliveries
    """The bytes that were read are useless: the file is no longer the version that was opened."""


class Delivery(NamedTuple, Generic[Delivered]):
    """A way to deliver a file, or a part of it."""

    #: Reads the file; may raise FileChanged.
    deliver: Callable[[OpenFile], Awaitable[Delivered]]
    #: Reads it once more, and returns whether that is the same. It is for a file that may change
    #: without a trace: two readings that agree are of one version.
    agrees: Callable[[OpenFile, Delivered], Awaitable[bool]]
    #: Gives back what was delivered if the file has changed.
    discard: Callable[[Delivered], None]
    #: What the file looked like after it was read, if that is known.
    seen: Callable[[Delivered], Attributes | None] = lambda _: None


async def deliver_whole(filesystem: FileSystem, path: bytes, way: Delivery[Delivered]) -> Delivered:
    """Open ``path``, deliver it, and check whether it has changed since it was opened.

    Args:
        filesystem: where the file is.
        path: a regular file.
        way: how it is delivered.

    Raises:
        CallError: CHANGED: it changed in every attempt.

    """
    for _ in range(ATTEMPTS):
        async with filesystem.opened(path) as file:
            try:
                delivered = await way.deliver(file)
            except FileChanged:
                continue
            try:
                is_whole = await _is_whole(file, way, delivered)
            except BaseException:
                way.discard(delivered)
                raise
        if is_whole:
            return delivered
        way.discard(delivered)
    raise CallError(ErrorCode.CHANGED, f"the file changed in each of {ATTEMPTS} attempts")


async def _is_whole(file: OpenFile, way: Delivery[Delivered], delivered: Delivered) -> bool:
    """Return whether what was delivered is one version of the file."""
    if not await file.unchanged(way.seen(delivered)):
        return False
    if file.settled:
        return True
    await trio.sleep(_PAUSE)
    return await way.agrees(file, delivered) and await file.unchanged()
