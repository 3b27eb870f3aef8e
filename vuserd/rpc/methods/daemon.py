"""The methods about the daemon: its exports, rigs and state, its configuration, and traces."""

from typing import Any, Final, Protocol

from vuserd.rpc.access import Rights, VisibleExports
from vuserd.rpc.caller import Caller
from vuserd.rpc.methods.signature import (
    FLAG,
    TEXT,
    Option,
    integer,
    listing_weight,
    method,
    optional,
    seconds,
)
from vuserd.rpc.results.maps import event_map
from vuserd.tracing.trace import CAPACITY

#: About the most bytes that a status has: it names clients.
_STATUS_BYTES: Final = 256 << 10
#: The most seconds that ``trace`` waits for something to happen.
TRACE_WAIT_MAX: Final = 10.0


class Manager(Protocol):
    """What the methods ask of the daemon itself."""

    def status(self, rights: Rights) -> dict[str, Any]:
        """Return the daemon's state, as far as this client may see it."""

    def rigs(self, rights: Rights) -> list[dict[str, Any]]:
        """Return the rigs that this client may see, and their state."""

    async def metrics(self) -> str:
        """Return all metrics as Prometheus reads them."""

    async def reload(self) -> list[str]:
        """Read the configuration again and apply what differs; return what was done.

        Raises:
            VuserdError: it is wrong, and nothing was done; or a part of it cannot be had.

        """

    async def reload_export(self, name: str) -> list[str]:
        """Replace an export's backend.

        Raises:
            VuserdError: it cannot be had; the old one, if there is one, goes on.

        """


class DaemonMethods:
    """What a client can ask about the daemon.

    Args:
        exports: as each client sees them.
        manager: the daemon itself, for what concerns all of it.

    """

    def __init__(self, exports: VisibleExports, manager: Manager) -> None:
        self._exports = exports
        self._manager = manager

    @method({}, {}, "array of map")
    async def exports(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the exports that this client sees, and their state."""
        await self._exports.look(caller.rights)
        async with caller.one_at_a_time():
            return [export.describe() for export in self._exports.of(caller.rights)]

    @method({}, {}, "array of map")
    async def rigs(self, caller: Caller) -> list[dict[str, Any]]:
        """Return the rigs that this client may see, and their state."""
        return self._manager.rigs(caller.rights)

    @method({}, {}, "map", weight=lambda _, __: _STATUS_BYTES)
    async def status(self, caller: Caller) -> dict[str, Any]:
        """Return the daemon's state, as far as this client may see it."""
        await self._exports.look(caller.rights)  # one look serves all calls that wait for it
        async with caller.one_at_a_time():
            return self._manager.status(caller.rights)

    @method({}, {}, "map", since=3)
    async def origin(self, caller: Caller) -> dict[str, Any]:
        """Return through which socket and rig this client came, and from which namespace."""
        return caller.rights.origin._asdict()

    @method({}, {}, "str", manages=True)
    async def metrics(self, _: Caller) -> str:
        """Return all metrics as Prometheus reads them."""
        return await self._manager.metrics()

    @method({"export": optional(TEXT)}, {}, "array of str", manages=True)
    async def reload(self, caller: Caller, export: str | None) -> list[str]:
        """Replace an export's backend, or read the configuration again; return what was done."""
        if export is None:
            return await self._manager.reload()
        self._exports.find(caller.rights, export)
        return await self._manager.reload_export(export)

    @method(
        {"export": TEXT},
        {
            "limit": Option(integer(1, CAPACITY), 1000),
            "wait": Option(seconds(TRACE_WAIT_MAX), 1.0),
            "end": Option(FLAG, default=False),
        },
        "map of events, lost",
        weight=listing_weight,
        manages=True,
    )
    async def trace(
        self, caller: Caller, export: str, *, limit: int, wait: float, end: bool
    ) -> dict[str, Any]:
        """Return the FUSE requests of an export that ended since the last time.

        The first call begins the trace. It ends with ``end``, with the connection, or after a
        minute without a call.
        """
        trace = caller.traces.find(export, self._exports.find(caller.rights, export).tracing)
        if end:
            caller.traces.end(export)
        events, lost = await trace.take(limit, wait)
        return {"events": [event_map(event) for event in events], "lost": lost}
