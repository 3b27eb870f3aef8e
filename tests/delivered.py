"""Files as the daemon delivers them to a test, which has nothing left of them in the end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trio.testing import wait_all_tasks_blocked

from tests.fake.backend import FakeBackend
from vuserd.delivery.inline import FileContent, read_inline, read_small
from vuserd.delivery.pages import TreePages
from vuserd.device.procedure import NeedsTask, carry_out
from vuserd.fs.filesystem import FileSystem


async def read_delivered(files: FileSystem, path: bytes, offset: int, length: int) -> FileContent:
    """Read as the daemon does: by a procedure, and what is more than that in a task.

    The caller gives the buffers back.
    """
    if length:
        try:
            return await carry_out(files.session.lane, read_small(path, offset, length, files))
        except NeedsTask:
            pass
    return await read_inline(files, path, offset, length)


@asynccontextmanager
async def tree_delivered(backend: FakeBackend, files: FileSystem) -> AsyncIterator[TreePages]:
    """Deliver a tree, of which nothing is left at the block's end."""
    pages = TreePages(b"")
    yield pages
    pages.close()
    files.nodes.flush()
    await wait_all_tasks_blocked()
    assert +backend.lookups == {}
    assert not backend.open_handles
    assert files.session.payloads.taken == 0
    assert files.nodes.lookups == 0
    assert not files.session.lane.in_flight
