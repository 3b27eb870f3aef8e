"""The objects that the metrics are read from."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from vuserd.delivery.images import ImageStore
from vuserd.exports.export import Export
from vuserd.rpc.counters import Counters
from vuserd.rpc.peer_log import PeerLog


class Sources(NamedTuple):
    """The objects that the metrics are read from."""

    counters: Counters
    exports: Mapping[str, Export]
    images: ImageStore
    refusals: PeerLog
    clients: Callable[[], int]
    #: Listeners and rigs, as ``status`` shows them to who manages the daemon.
    sockets: Callable[[], Iterable[Mapping[str, Any]]]
