"""The client libraries of vuserd: :class:`Client`, :class:`TrioClient`, :class:`AsyncioClient`.

Each is loaded when it is first used, so that nobody waits for trio or asyncio who needs neither.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vuserd.client.asyncio_client import AsyncioClient as AsyncioClient
    from vuserd.client.sync_client import Client as Client
    from vuserd.client.trio_client import TrioClient as TrioClient

__all__ = ["AsyncioClient", "Client", "TrioClient"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from vuserd.client.sync_client import Client

        return Client
    if name == "AsyncioClient":
        from vuserd.client.asyncio_client import AsyncioClient

        return AsyncioClient
    if name == "TrioClient":
        from vuserd.client.trio_client import TrioClient

        return TrioClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
