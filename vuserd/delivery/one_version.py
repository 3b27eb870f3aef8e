"""Deliver one version of a file: again when it changed meanwhile, and not for ever."""

from collections.abc import Awaitable, Callable
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from vuserd.errors import CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import OpenFile

#: How often a file that goes on changing is read before that is reported.
ATTEMPTS: Final = 3
#: Seconds between two readings that are compared: a write that is under way ends in them, unless
#: its writer is slower than that. Both would find the same half of it.
_PAUSE: Final = 0.05

Delivered = TypeVar("Delivered")


class FileChanged(Exception):  # noqa: N818 - never leaves the deliveries
    """What was read is of no use: the file is not what was opened any more."""


class Delivery(NamedTuple, Generic[Delivered]):
    """A way to deliver a file, or a part of it."""

    #: Reads what is wanted; may raise FileChanged.
    deliver: Callable[[OpenFile], Awaitable[Delivered]]
    #: Reads it once more; tells whether that is the same. For a file that may change without a
    #: trace: two readings that agree are of one version.
    agrees: Callable[[OpenFile, Delivered], Awaitable[bool]]
    #: Gives back what was delivered of a file that changed.
    discard: Callable[[Delivered], None]


async def deliver_whole(filesystem: FileSystem, path: bytes, way: Delivery[Delivered]) -> Delivered:
    """Open ``path``, deliver from it, and look whether it changed since it was opened.

    Args:
        filesystem: where the file is.
        path: a regular file.
        way: how it is delivered.

    Raises:
        CallError: CHANGED, when it changed in every attempt.

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
    """Tell whether what was delivered is one version of the file."""
    if not await file.unchanged():
        return False
    if file.settled:
        return True
    await trio.sleep(_PAUSE)
    return await way.agrees(file, delivered) and await file.unchanged()
