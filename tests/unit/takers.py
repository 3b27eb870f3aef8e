"""Both clients behind one interface, for tests of what they share: fetching whole files."""

from collections.abc import Callable
from typing import Any, Protocol

import trio

from vuserd.client import Client, TrioClient
from vuserd.client.records import Stat

Write = Callable[[memoryview], object]


class Taker(Protocol):
    """A client that connects for each file that it takes."""

    def __init__(self, address: str, *, reconnect: float = 5.0) -> None: ...

    def download(self, path: str, fileno: int, **options: Any) -> Stat: ...

    def stream(self, path: str, write: Write, **options: Any) -> Stat: ...


class SyncTaker:
    def __init__(self, address: str, *, reconnect: float = 5.0) -> None:
        self._address, self._reconnect = address, reconnect

    def download(self, path: str, fileno: int, **options: Any) -> Stat:
        with Client.connect(self._address, reconnect=self._reconnect) as client:
            return client.download("kernels", path, fileno, **options)

    def stream(self, path: str, write: Write, **options: Any) -> Stat:
        with Client.connect(self._address, reconnect=self._reconnect) as client:
            return client.stream("kernels", path, write, **options)


class TrioTaker:
    def __init__(self, address: str, *, reconnect: float = 5.0) -> None:
        self._address, self._reconnect = address, reconnect

    def download(self, path: str, fileno: int, **options: Any) -> Stat:
        async def main() -> Stat:
            async with TrioClient.connect(self._address, reconnect=self._reconnect) as client:
                return await client.download("kernels", path, fileno, **options)

        return trio.run(main)

    def stream(self, path: str, write: Write, **options: Any) -> Stat:
        async def write_async(payload: memoryview) -> None:
            write(payload)

        async def main() -> Stat:
            async with TrioClient.connect(self._address, reconnect=self._reconnect) as client:
                return await client.stream("kernels", path, write_async, **options)

        return trio.run(main)
