"""The client libraries of vuserd: :class:`Client` and :class:`TrioClient`.

Both names are loaded when they are first used, so that nobody waits for trio who does not need it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vuserd.client.sync_client import Client as Client
    from vuserd.client.trio_client import TrioClient as TrioClient

__all__ = ["Client", "TrioClient"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from vuserd.client.sync_client import Client

        return Client
    if name == "TrioClient":
        from vuserd.client.trio_client import TrioClient

        return TrioClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
