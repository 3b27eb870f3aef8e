"""What one backend says is used for its own export alone, whatever it shares with another."""

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.attacks.threats import Who, threat
from tests.fake.backend import CONFIGURE_MEM_SLOTS, ROOT, FakeBackend, File
from tests.faults.harness import FOR_EVER
from vuserd.client import TrioClient, calls
from vuserd.client.errors import RemoteError
from vuserd.config.model import DaemonConfig, ExportConfig, ListenConfig
from vuserd.daemon import Daemon

GENUINE: Final = b"the GENUINE kernel\n"
TROJAN: Final = b"the TROJAN! kernel\n"
#: Settled: what is kept of a file, is kept of such a one.
_WHEN: Final = 1_000_000_000

_POISON: Final = threat(
    "poisoning",
    who=Who.BACKEND,
    against="users of another export of the same directory",
    does="says other bytes, with the very attributes that the file has, before and after all that"
    " the daemon keeps of it",
    promise="what is kept (images, open files, listings) is kept with a node of one session, and"
    " serves those alone who ask for it there",
)


class Liar(FakeBackend):
    """A backend that says of one real file what is true, but for its bytes."""

    def __init__(self, path: Path) -> None:
        self._status = os.stat(path)
        super().__init__({os.fsencode(path.name): File(TROJAN), b"other": File(TROJAN)})
        self.protocol_features |= CONFIGURE_MEM_SLOTS

    def attributes(self, node: int) -> bytes:
        told = bytearray(super().attributes(node))
        if node != ROOT:
            status = self._status
            struct.pack_into("=QQQ", told, 0, status.st_ino, status.st_size, status.st_blocks)
            (mtime, mtime_ns), (ctime, ctime_ns) = (
                divmod(when, 10**9) for when in (status.st_mtime_ns, status.st_ctime_ns)
            )
            struct.pack_into("=qqqIII", told, 24, mtime, mtime, ctime, 0, mtime_ns, ctime_ns)
        return bytes(told)


@asynccontextmanager
async def _both(folder: Path, virtiofsd: str) -> AsyncIterator[tuple[TrioClient, Liar]]:
    """Run a daemon with ``ci`` on a directory and ``public``, whose backend lies about it."""
    shared = folder / "shared"
    shared.mkdir()
    image = shared / "Image"
    image.write_bytes(GENUINE)
    os.utime(image, (_WHEN, _WHEN))
    liar = Liar(image)
    sockets = str(folder / "liar"), str(folder / "s")
    exports = (
        ExportConfig("ci", directory=str(shared), program=virtiofsd),
        ExportConfig("public", socket=sockets[0]),
    )
    config = DaemonConfig((ListenConfig(sockets[1]),), exports)
    daemon = Daemon(lambda: config)
    async with liar.listening(sockets[0]), trio.open_nursery() as nursery:
        with trio.fail_after(FOR_EVER):
            await nursery.start(daemon.run)
        try:
            async with TrioClient.connect(sockets[1]) as client:
                yield client, liar
        finally:
            daemon.stop()


async def _fetch(client: TrioClient, export: str) -> bytes:
    with await client.fetch(export, "Image") as image:
        return bytes(image.buffer())


async def _all_ways(client: TrioClient, export: str) -> set[bytes]:
    """Return what is given of the file in each way."""
    async with await client.attach(size=4096) as memory:
        length = await memory.load(export, "Image", 0)
        loaded = bytes(memory.buffer[:length])
    return {
        await _fetch(client, export),
        await _fetch(client, export),
        bytes(await client.read(export, "Image", 0, 100)),
        loaded,
    }


@_POISON
async def test_a_lying_backend_lies_to_its_own_users_alone(tmp_path: Path, virtiofsd: str) -> None:
    with trio.fail_after(FOR_EVER):
        async with _both(tmp_path, virtiofsd) as (client, liar):
            told = [await client.stat(export, "Image") for export in ("ci", "public")]
            assert len({(one.ino, one.size, one.mtime_ns, one.ctime_ns) for one in told}) == 1
            for _ in range(2):
                assert await _all_ways(client, "public") == {TROJAN}
                assert await _all_ways(client, "ci") == {GENUINE}
                await client.reload("ci")  # the next one has the numbers of the one before
                assert await _all_ways(client, "ci") == {GENUINE}
                liar.die()
                assert await _all_ways(client, "public") == {TROJAN}


@_POISON
async def test_what_is_open_in_one_export_is_not_open_in_another(
    tmp_path: Path, rust_virtiofsd: str
) -> None:
    with trio.fail_after(FOR_EVER):
        async with _both(tmp_path, rust_virtiofsd) as (client, _):
            page = await client.readdir("public", "", limit=1)
            file = (await client.call(calls.open_file("public", "Image"))).file
            with pytest.raises(RemoteError, match="no open file"):
                await client.call(calls.stat_open("ci", "Image", file))
            assert page.next is not None
            with pytest.raises(RemoteError, match="not the token"):
                await client.readdir("ci", "", limit=1, after=page.next)
            assert await _all_ways(client, "ci") == {GENUINE}
