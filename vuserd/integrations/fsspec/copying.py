"""Copy a directory by the pages of its tree, which have the bytes of its small files."""

import asyncio
import os
from pathlib import Path
from typing import Any, Final

from vuserd.client import AsyncioClient, RemoteError, TreeEntry

#: Files that come by themselves, at once.
_AT_ONCE: Final = 16


async def get_tree(
    client: AsyncioClient, export: str, path: str, local: str, callback: Any
) -> None:
    """Copy a directory with all below it to ``local``, which may be there.

    A symlink comes as the file that it leads to. Left out are symlinks that lead to no file, and
    what is neither a file nor a directory.

    Args:
        client: of the daemon.
        export: the export.
        path: the directory in it.
        local: the directory that becomes the copy.
        callback: fsspec's, for progress by files.

    Raises:
        RemoteError: a file or a directory cannot be read.

    """
    copy = _Copy(client, export, path, local, callback)
    await asyncio.to_thread(os.makedirs, local, exist_ok=True)
    try:
        async with asyncio.TaskGroup() as group:
            async for entry in client.tree(export, path):
                await copy.take(entry, group)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


class _Copy:
    def __init__(
        self, client: AsyncioClient, export: str, path: str, local: str, callback: Any
    ) -> None:
        self._client, self._export, self._path = client, export, path
        self._local, self._callback = local, callback
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def take(self, entry: TreeEntry, group: asyncio.TaskGroup) -> None:
        """Copy one entry, or have it copied by a task."""
        if entry.error is not None:
            raise entry.error
        kind = None if entry.stat is None else entry.stat.type
        local = os.path.join(self._local, entry.path)
        if kind == "dir":
            await asyncio.to_thread(os.makedirs, local, exist_ok=True)
        elif entry.content is not None:
            await asyncio.to_thread(Path(local).write_bytes, entry.content)
            self._callback.relative_update(1)
        elif kind in ("file", "symlink"):
            await self._at_once.acquire()
            group.create_task(self._download(entry.path, local, is_link=kind == "symlink"))

    async def _download(self, path: str, local: str, *, is_link: bool) -> None:
        try:
            await self._client.download(self._export, f"{self._path}/{path}", local)
            self._callback.relative_update(1)
        except RemoteError as error:
            if not (is_link and error.code in ("ENOENT", "ENOTDIR", "ELOOP", "EISDIR", "EINVAL")):
                raise
        finally:
            self._at_once.release()
