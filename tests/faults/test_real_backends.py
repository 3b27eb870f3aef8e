"""Real backends: the faults that a signal or a limit makes of an honest virtiofsd."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.e2e.processes import stop_group
from tests.faults.catalogue import fault
from tests.faults.harness import FOR_EVER, entries, names, read
from tests.faults.shared import EXHAUSTED, KILLED
from vuserd.backend.find import identify
from vuserd.backend.process import BackendOptions
from vuserd.config.model import ExportConfig
from vuserd.device.payloads import given_back
from vuserd.device.session import SessionOptions
from vuserd.errors import BackendDown, BackendTimeout
from vuserd.exports.export import Export
from vuserd.fs.filesystem import FileSystem

CONTENT = os.urandom(1 << 20)
#: Nearly all of them are taken by the Rust backend itself.
FEW_DESCRIPTORS = 700
MANY_FILES = 900


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "Image").write_bytes(CONTENT)
    return folder


@asynccontextmanager
async def served(
    program: str, folder: Path, seconds: float = 10.0, descriptors: int = 4096
) -> AsyncIterator[Export]:
    """Run an export of a folder on a virtiofsd of its own."""
    config = ExportConfig(
        "files",
        directory=str(folder),
        session=SessionOptions(timeout=seconds),
        options=BackendOptions(descriptors=descriptors),
    )
    export = Export(config, await identify(program))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.run)
        with trio.fail_after(FOR_EVER):
            await export.settled.wait()
        yield export
        export.stop()


def process_of(export: Export) -> int:
    backend = export.describe()["backend"]
    assert backend is not None, export.reason
    pid = backend["pid"]
    assert isinstance(pid, int)
    return pid


@KILLED
async def test_a_backend_that_is_killed_is_replaced(virtiofsd: str, shared: Path) -> None:
    async with served(virtiofsd, shared) as export:
        reads = 0

        async def read_on() -> None:
            nonlocal reads
            while export.generation < 3:
                with trio.fail_after(FOR_EVER):
                    assert await export.call(read) == CONTENT
                reads += 1

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(read_on)
            for generation in (1, 2):
                seen = reads
                while reads < seen + 8 or export.generation < generation:
                    await trio.lowlevel.checkpoint()
                while export._calls.trials.are_on:  # a call that is alone is put to no third one
                    await trio.lowlevel.checkpoint()
                os.killpg(process_of(export), signal.SIGKILL)
        assert export.generation == 3


@fault(
    "stopped",
    done="the backend's process is stopped (SIGSTOP): its socket stays open, its rings are dead",
    must="The caller gets TIMEOUT at its deadline; a second later the backend is replaced, and"
    " calls are served again.",
)
async def test_a_backend_that_is_stopped_is_replaced(virtiofsd: str, shared: Path) -> None:
    async with served(virtiofsd, shared, seconds=4) as export:
        assert await export.call(read) == CONTENT
        stop_group(process_of(export))
        begun = trio.current_time()
        with pytest.raises(BackendTimeout) as raised:
            await export.call(read)
        assert raised.value.code == "TIMEOUT"
        assert trio.current_time() - begun < FOR_EVER
        got = None
        with trio.fail_after(FOR_EVER):
            while got is None:  # until the next one is up, which takes longer than so short a time
                with contextlib.suppress(BackendTimeout, BackendDown):
                    got = await export.call(read)
        assert got == CONTENT
        assert export.generation > 1


@EXHAUSTED
@pytest.mark.alike(0)
async def test_a_backend_with_few_descriptors(virtiofsd: str, shared: Path) -> None:
    names = [b"file-%d" % number for number in range(MANY_FILES)]
    for name in names:
        (shared / os.fsdecode(name)).write_bytes(name)
    async with served(virtiofsd, shared, descriptors=FEW_DESCRIPTORS) as export:
        for name in names[:300]:
            await export.call(partial(FileSystem.stat, path=name, follow=True))
        for name in names[:50]:
            assert await export.call(partial(read, name=name)) == name
        assert len(await export.call(entries)) == 100
        assert export.generation == 1


async def test_open_files_go_along(rust_virtiofsd: str, shared: Path) -> None:
    (shared / "other").write_bytes(b"other")
    read_so_far, may_go_on = trio.Event(), trio.Event()

    async def read_in_two(files: FileSystem) -> bytes:
        content = b""
        async with files.opened(b"Image") as file:
            for offset in (0, 1 << 19):
                with given_back(await file.session.payloads.take(1)) as buffers:
                    length = await file.read_into(buffers[0], offset, 1 << 19)
                    content += bytes(buffers[0].view[:length])
                read_so_far.set()
                await may_go_on.wait()
            assert await file.unchanged()
        return content

    async with served(rust_virtiofsd, shared) as export, trio.open_nursery() as nursery:

        async def read_all() -> None:
            assert await export.call(read_in_two) == CONTENT

        nursery.start_soon(read_all)
        await read_so_far.wait()
        processes = [process_of(export)]
        for threads in (1, 2):
            config = replace(
                export.config, options=export.config.options._replace(thread_pool=threads)
            )
            await export.replace(config, await identify(rust_virtiofsd))
            processes.append(process_of(export))
            assert await export.call(partial(read, name=b"other")) == b"other"
        assert export.generation == 1
        assert len(set(processes)) == len(processes)
        may_go_on.set()


@fault(
    "open-file-deleted",
    done="a reload finds a file open that was deleted, which has no path by which it could move",
    must="The calls that the backend has end on it, and all others go to one that begins anew.",
)
async def test_a_deleted_file_does_not_go_along(rust_virtiofsd: str, shared: Path) -> None:
    opened, may_go_on = trio.Event(), trio.Event()

    async def read_late(files: FileSystem) -> bytes:
        async with files.opened(b"Image") as file:
            opened.set()
            await may_go_on.wait()
            with given_back(await file.session.payloads.take(1)) as buffers:
                return bytes(buffers[0].view[: await file.read_into(buffers[0], 0, 1 << 20)])

    async with served(rust_virtiofsd, shared) as export, trio.open_nursery() as nursery:

        async def read_all() -> None:
            assert await export.call(read_late) == CONTENT

        nursery.start_soon(read_all)
        await opened.wait()
        (shared / "Image").unlink()
        async with trio.open_nursery() as replacing:
            replacing.start_soon(export.replace, export.config, await identify(rust_virtiofsd))
            with trio.fail_after(FOR_EVER):
                while export.generation == 1:
                    await trio.lowlevel.checkpoint()
            assert await export.call(names) == []
            may_go_on.set()
        assert export.generation == 2
