"""A backend whose directories have no end, at a place where they are read to their end."""

import itertools
import stat
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import pytest
import trio

from protocol.fuse import Opcode
from tests.attacks.threats import Who, threat
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from tests.fake.files import directory_record
from vuserd.delivery.pages import TreePages
from vuserd.fs import walk as walk_module
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.tree import search
from vuserd.fs.walk import TreeWalk

_OPEN: Final = 3
_ENTRIES: Final = 20
#: Requests after which the daemon would read for ever.
_ENOUGH: Final = 2000


async def _walk(files: FileSystem) -> None:
    walk = TreeWalk(b"", attributes=True)
    for _ in range(5 * _OPEN):
        await walk.next_page(files, _ENTRIES)
    walk.close()


async def _tree(files: FileSystem) -> None:
    pages = TreePages(b"")
    for _ in range(5 * _OPEN):
        page = await pages.next_page(files, _ENTRIES, 1 << 20)
        page.content.give_back()
    pages.close()


@threat(
    "directories without end",
    who=Who.BACKEND,
    against="the daemon's memory",
    does="shows directories without end in one another, more than are kept open",
    promise="a page of a walk or a tree takes bounded memory, and comes",
)
@pytest.mark.parametrize("read", [_walk, _tree])
async def test_directories_without_end(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[FileSystem], Awaitable[None]]
) -> None:
    for module in (walk_module, search):
        monkeypatch.setattr(module, "_MOST_OPEN", _OPEN)
    monkeypatch.setattr(walk_module, "_PORTION", _ENTRIES)
    monkeypatch.setattr(walk_module, "_MOST_HELD", 100 << 10)
    monkeypatch.setattr(search, "_MOST_NODES", 10 * _ENTRIES)
    backend = FakeBackend({b"folder": File(mode=stat.S_IFDIR | 0o755)})
    nodes = itertools.count(100)
    asked = 0

    def found(kind: int) -> bytes:
        node = next(nodes)
        entry = struct.pack("=QQQQII", node, 0, 1, 1, 0, 0)
        return entry + struct.pack("=6Q10I", node, 1 << 30, *[0] * 7, kind | 0o755, 1, *[0] * 5)

    def answer(request: FuseRequest) -> Answer | None:
        nonlocal asked
        if request.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            return None  # it does not count what it says
        if request.opcode is Opcode.OPENDIR:
            return Answer(bytes(16))
        if request.opcode is Opcode.LOOKUP:
            return Answer(found(stat.S_IFDIR))
        if request.opcode is not Opcode.READDIRPLUS:
            return backend.serve_files(request)
        asked += 1
        if asked > _ENOUGH:
            backend.die()
        [offset] = struct.unpack_from("=Q", request.body, 8)
        records = []
        for place in range(offset + 1, offset + 6):
            kind = stat.S_IFDIR if place == 1 else stat.S_IFREG
            records.append(found(kind))
            records.append(directory_record(b"%020d" % place, place, kind=kind >> 12))
        return Answer(b"".join(records))

    backend.answer = answer
    async with backend.session() as session:
        with trio.fail_after(60):
            await read(FileSystem(session, idle_nodes=0))
    assert asked < _ENOUGH
