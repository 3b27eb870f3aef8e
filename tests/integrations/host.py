"""A file system of fsspec that writes into the exported directory, beside the daemon."""

import os
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from vuserd.integrations.fsspec.filesystem import VuserdFileSystem


class WithHost(VuserdFileSystem):
    """All that reads asks the daemon, and what writes goes to the host's directory.

    So what fsspec's own tests write is looked at through the daemon in the next moment.
    """

    cachable = False

    def __init__(self, socket: str, directory: str) -> None:
        super().__init__(socket)
        self._directory = directory
        self._host = LocalFileSystem(auto_mkdir=True)

    def _on_host(self, path: str) -> str:
        return os.path.join(self._directory, self._strip_protocol(path).partition("/")[2])

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._host.makedirs(self._on_host(path), exist_ok=exist_ok)

    async def _mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self._host.mkdir(self._on_host(path), create_parents=create_parents)

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        self._host.pipe_file(self._on_host(path), value, mode=mode)

    async def _rm(self, path: Any, recursive: bool = False, **_: Any) -> None:
        for each in await self._expand_path(path):
            self._host.rm(self._on_host(each), recursive=recursive)

    def touch(self, path: str, **options: Any) -> None:
        self._host.touch(self._on_host(path), **options)

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any
    ) -> Any:
        if mode == "rb":
            return super()._open(path, mode, block_size, **options)
        return self._host.open(self._on_host(path), mode)
