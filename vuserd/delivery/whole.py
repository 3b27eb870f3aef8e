"""Deliver one version of a file: again when it changed meanwhile, and not for ever."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from vuserd.errors import CallError, ErrorCode
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.openfile import OpenFile

#: How often a file that goes on changing is read before that is reported.
ATTEMPTS: Final = 3

Delivered = TypeVar("Delivered")


async def deliver_whole(
    filesystem: FileSystem,
    path: bytes,
    deliver: Callable[[OpenFile], Awaitable[Delivered]],
    discard: Callable[[Delivered], None],
) -> Delivered:
    """Open ``path``, deliver from it, and look whether it changed since it was opened.

    Args:
        filesystem: where the file is.
        path: a regular file.
        deliver: reads what is wanted.
        discard: gives back what was delivered of a file that changed.

    Raises:
        CallError: CHANGED, when it changed in every attempt.

    """
    for _ in range(ATTEMPTS):
        async with filesystem.opened(path) as file:
            delivered = await deliver(file)
            try:
                unchanged = await file.unchanged()
            except BaseException:
                discard(delivered)
                raise
        if unchanged:
            return delivered
        discard(delivered)
    raise CallError(ErrorCode.CHANGED, f"the file changed in each of {ATTEMPTS} attempts")
