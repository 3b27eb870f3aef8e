"""The file system that fsspec knows as ``vuserd``."""

import asyncio
import io
import os
import weakref
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.local import make_path_posix
from fsspec.utils import tokenize

from vuserd.client import AsyncioClient, Entry, RemoteError
from vuserd.client.errors import RemoteOSError
from vuserd.integrations.fsspec.connections import Connections, loop_in_a_thread
from vuserd.integrations.fsspec.copying import get_tree
from vuserd.integrations.fsspec.errors import NOT_THERE, os_errors, refuse
from vuserd.integrations.fsspec.files import StreamedFile, file_in_parts, image_file
from vuserd.integrations.fsspec.infos import Info, entry_info, info_of, split

Range = tuple[int | None, int | None]

#: Bytes of a range that one call reads.
_ONE_READ: Final = 8 << 20
#: Bytes of a block of a file that is too large for an image.
_BLOCK: Final = 1 << 20
#: Files that are read or copied at once, fewer than a daemon lets a client have open (64).
_BATCH: Final = 32


class VuserdFileSystem(AsyncFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Exports of a daemon, read-only: ``fsspec.open("vuserd://EXPORT/PATH")``.

    Nothing is cached: each call asks the daemon, which asks the host. Errors are OSErrors. What is
    opened, or read by one call, is one version of a file. Threads share an instance, and so do
    tasks of several loops where it is ``asynchronous``; the child of a fork may go on with it.

    Args:
        socket: of the daemon, by default where clients look for it.
        timeout: seconds for each answer of the daemon; None is any number.
        options: those of every AsyncFileSystem, such as ``asynchronous`` and ``batch_size``.

    """

    protocol = "vuserd"
    _pid: int
    _loop: asyncio.AbstractEventLoop | None

    def __init__(
        self, socket: str | None = None, *, timeout: float | None = None, **options: Any
    ) -> None:
        super().__init__(**{"batch_size": _BATCH, **options})
        self._connections = Connections(socket, timeout)
        weakref.finalize(self, self._connections.close)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that runs calls of threads; None if it is ``asynchronous``."""
        if self._pid != os.getpid():  # a child of a fork has none of its parent's threads
            self._pid = os.getpid()
            self._loop = None if self.asynchronous else loop_in_a_thread()
        return self._loop

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        return stripped if isinstance(stripped, list) else stripped.lstrip("/")

    # -- looking -----------------------------------------------------------------------------------

    async def _info(self, path: str, **_: Any) -> Info:
        name = self._strip_protocol(path)
        if not name:
            return {"name": "", "size": 0, "type": "directory"}
        with os_errors(name):
            client = await self._connections.client()
            return await info_of(client, name, await client.stat(*split(name), follow=False))

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Info] | list[str]:  # noqa: FBT001, FBT002 - fsspec's own
        name = self._strip_protocol(path)
        with os_errors(name):
            client = await self._connections.client()
            if not name:
                names = [export.name for export in await client.exports()]
                found = [{"name": each, "size": 0, "type": "directory"} for each in names]
            else:
                found = await self._entries(client, name)
        return found if detail else sorted(str(each["name"]) for each in found)

    async def _entries(self, client: AsyncioClient, name: str) -> list[Info]:
        listing = client.iterdir(*split(name), attrs=True)
        try:
            entries = [(f"{name}/{entry.name}", entry) async for entry in listing]
        except NotADirectoryError:
            return [await self._info(name)]
        return await asyncio.gather(*(entry_info(client, *each) for each in entries))

    async def _find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,  # noqa: FBT001, FBT002 - fsspec's own
        **options: Any,
    ) -> Any:
        """List all below a directory in as few calls as it takes."""
        name = self._strip_protocol(path)
        if not name or (maxdepth is not None and await self._isdir(name)):
            return await super()._find(path, maxdepth=maxdepth, withdirs=withdirs, **options)
        with os_errors(name):
            found = await self._below(await self._connections.client(), name, withdirs=withdirs)
        named = {info["name"]: info for info in sorted(found, key=lambda info: str(info["name"]))}
        return named if options.get("detail") else list(named)

    async def _below(self, client: AsyncioClient, name: str, *, withdirs: bool) -> list[Info]:
        try:
            top = await self._info(name)
        except NOT_THERE:
            return []
        if top["type"] != "directory":
            return [top]
        entries = []
        try:
            async for entry in client.iterwalk(*split(name), attrs=True):
                if withdirs or entry.type != "dir":
                    entries.append((f"{name}/{entry.path}", Entry(*entry)))  # noqa: PERF401 - up to an error
        except RemoteOSError:
            pass  # of a directory that cannot be read, as find does everywhere in fsspec
        found = await asyncio.gather(*(entry_info(client, *each) for each in entries))
        return [*found, top] if withdirs else found

    async def _du(
        self,
        path: str,
        total: bool = True,  # noqa: FBT001, FBT002 - fsspec's own
        maxdepth: int | None = None,
        **options: Any,
    ) -> Any:
        """Add up sizes, which a listing has already."""
        found = await self._find(path, maxdepth=maxdepth, **{**options, "detail": True})
        sizes = {name: info.get("size") or 0 for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    async def _exists(self, path: str, **_: Any) -> bool:
        try:
            await self._info(path)
        except NOT_THERE:
            return False
        return True

    async def _isfile(self, path: str) -> bool:
        return await self._is(path, "file")

    async def _isdir(self, path: str) -> bool:
        return await self._is(path, "directory")

    async def _is(self, path: str, kind: str) -> bool:
        try:
            return bool((await self._info(path))["type"] == kind)
        except NOT_THERE:
            return False

    def modified(self, path: str) -> datetime:
        """Return when the file was last written to."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def created(self, path: str) -> datetime:
        """Return when the file, or its attributes, last changed: when it was made is not known."""
        return datetime.fromtimestamp(self.info(path)["created"], UTC)

    def ukey(self, path: str) -> str:
        """Return what changes with the file: of its inode, size and times."""
        info = self.info(path)
        return "-".join(str(info[key]) for key in ("ino", "size", "mtime_ns", "ctime_ns"))

    def checksum(self, path: str) -> int:
        """Return what changes with the file, as a number."""
        return int(tokenize(self.ukey(path)), 16)

    # -- reading -----------------------------------------------------------------------------------

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        return (await self._ranges(path, [(start, end)]))[0]

    async def _cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[bytes | BaseException]:
        """Read ranges, those of one file in one version of it."""
        if max_gap is not None:
            raise NotImplementedError("max_gap")
        if not isinstance(paths, list):
            raise TypeError("paths is no list")
        begins, limits = _each(starts, len(paths)), _each(ends, len(paths))
        places: dict[str, list[int]] = {}
        for place, path in enumerate(paths):
            places.setdefault(self._strip_protocol(path), []).append(place)
        at_once = asyncio.Semaphore(batch_size or self.batch_size)

        async def read(path: str) -> list[bytes]:
            async with at_once:
                return await self._ranges(path, [(begins[at], limits[at]) for at in places[path]])

        results = await asyncio.gather(*map(read, places), return_exceptions=True)
        found: list[bytes | BaseException] = [b""] * len(paths)
        for path, result in zip(places, results, strict=True):
            if isinstance(result, BaseException) and on_error != "return":
                raise result
            for index, place in enumerate(places[path]):
                found[place] = result if isinstance(result, BaseException) else result[index]
        return found

    async def _ranges(self, path: str, ranges: Sequence[Range]) -> list[bytes]:
        """Return parts of one version of a file; negative offsets count from its end."""
        name = self._strip_protocol(path)
        with os_errors(name):
            client = await self._connections.client()
            where = split(name)
            if len(ranges) == 1:
                start, end = ranges[0][0] or 0, ranges[0][1]
                if (start, end) == (0, None):
                    return [await client.read_bytes(*where)]
                if end is not None and 0 <= start <= end <= start + _ONE_READ:
                    return [await client.read(*where, start, end - start)]
            async with await client.open(*where) as file:
                size = await file.seek(0, os.SEEK_END)
                parts = []
                for start, end, _ in (slice(*each).indices(size) for each in ranges):
                    await file.seek(start)
                    parts.append(await file.read(max(0, end - start)))
                return parts

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any
    ) -> io.BufferedReader:
        """Open one version of a file, as an image in memory or, if it is too large, in blocks."""
        if mode != "rb":
            refuse(path)
        loop = self.loop
        if loop is None:
            raise RuntimeError("the file system is asynchronous: await open_async()")
        opened: io.BufferedReader = sync(loop, self._opened, path, loop, block_size or _BLOCK)
        return opened

    async def _opened(
        self, path: str, loop: asyncio.AbstractEventLoop, block: int
    ) -> io.BufferedReader:
        name = self._strip_protocol(path)
        with os_errors(name):
            client = await self._connections.client()
            try:
                return image_file(await client.fetch(*split(name)), name)
            except RemoteError:  # too large, or of no image for another reason: open() says
                file = await client.open(*split(name))
                return file_in_parts(file, await file.seek(0, os.SEEK_END), loop, block)

    async def open_async(self, path: str, mode: str = "rb", **_: Any) -> StreamedFile:
        """Open one version of a file to ``await file.read()``; close it, or use it as a block."""
        if mode != "rb":
            refuse(path)
        name = self._strip_protocol(path)
        with os_errors(name):
            client = await self._connections.client()
            file = await client.open(*split(name))
            return StreamedFile(self, name, file, await file.seek(0, os.SEEK_END))

    # -- copying -----------------------------------------------------------------------------------

    async def _get_file(
        self, rpath: str, lpath: Any, callback: Any = DEFAULT_CALLBACK, **_: Any
    ) -> None:
        name = self._strip_protocol(rpath)
        if await self._isdir(name):
            os.makedirs(lpath, exist_ok=True)
            return
        with os_errors(name):
            client = await self._connections.client()

            def progress(there: int, total: int) -> None:
                callback.set_size(total)
                callback.absolute_update(there)

            await client.download(*split(name), lpath, progress=progress)

    async def _get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,  # noqa: FBT001, FBT002 - fsspec's own
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **options: Any,
    ) -> Any:
        """Copy files; a whole directory, of one name, by the pages of its tree."""
        plain = isinstance(rpath, str) and isinstance(lpath, str) and not _has_magic(rpath)
        name = self._strip_protocol(rpath)
        if not (recursive and maxdepth is None and plain and name and await self._isdir(name)):
            return await super()._get(
                rpath, lpath, recursive=recursive, callback=callback, maxdepth=maxdepth, **options
            )
        local = make_path_posix(lpath)
        into = lpath.endswith("/") or await asyncio.to_thread(os.path.isdir, local)
        if into and not rpath.endswith("/"):
            local = os.path.join(local, name.rpartition("/")[2])
        with os_errors(name):
            await get_tree(await self._connections.client(), *split(name), local, callback)
        return None

    # -- writing, which no export can --------------------------------------------------------------

    async def _put_file(self, lpath: str, rpath: str, **_: Any) -> None:  # noqa: ARG002
        refuse(rpath)

    async def _cp_file(self, path1: str, path2: str, **_: Any) -> None:  # noqa: ARG002
        refuse(path2)

    async def _refuse(self, path: Any, *_: Any, **__: Any) -> None:
        refuse(path)

    _pipe_file = _rm = _rm_file = _mkdir = _makedirs = _refuse

    def rmdir(self, path: str) -> None:
        """Refuse to."""
        refuse(path)

    def touch(self, path: str, **_: Any) -> None:
        """Refuse to."""
        refuse(path)


def _has_magic(path: str) -> bool:
    return any(character in path for character in "*?[")


def _each(value: Any, count: int) -> list[int | None]:
    """Return a value for each path; ValueError where there are others than that many."""
    values = list(value) if isinstance(value, Iterable) else [value] * count
    if len(values) != count:
        raise ValueError(f"{len(values)} offsets of {count} paths")
    return values
