"""What the daemon is to do, as values that can be compared: a reload applies the difference."""

import os
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vuserd.backend.process import BackendOptions
from vuserd.device.session import SessionOptions


@dataclass(frozen=True)
class Access:
    """Who may see an export, beside root and the daemon's own user."""

    everyone: bool = False
    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ExportConfig:
    """One export: a directory of ours with a backend of ours, or a socket of somebody's backend."""

    name: str
    directory: str | None = None
    socket: str | None = None
    access: Access = Access()
    #: The virtiofsd to start; None for the first one found.
    program: str | None = None
    options: BackendOptions = field(default_factory=BackendOptions)
    session: SessionOptions = field(default_factory=SessionOptions)
    #: Nodes that nobody uses and that stay known.
    idle_nodes: int = 4096
    #: Seconds for which they do, and with them images and directories that a listing may go on in.
    idle_time: float = 5.0
    #: Starts of a backend that may fail in a row before it has failed.
    restarts: int = 8
    #: Seconds before the second try in a row, doubled with each more, and the longest of them.
    restart_delays: tuple[float, float] = (0.05, 5.0)

    @property
    def source(self) -> str:
        """The directory or socket, for people."""
        return self.directory or f"unix:{self.socket}"

    def with_access(self, access: Access) -> "ExportConfig":
        """Return the same export for others."""
        return replace(self, access=access)

    def serves_like(self, other: "ExportConfig") -> bool:
        """Tell whether the two differ in nothing but who may see them."""
        return self.with_access(other.access) == other


@dataclass(frozen=True)
class ListenConfig:
    """One socket for clients: a path, or '@' and a name for an abstract socket."""

    address: str
    mode: int = 0o600
    #: The group of the socket's file; None for the daemon's.
    group: int | None = None


@dataclass(frozen=True)
class RigConfig:
    """A network namespace with a socket of its own, behind which there are these exports alone."""

    #: A name of ``ip netns``, or a path.
    netns: str
    exports: tuple[str, ...]
    address: str = "@vuserd"

    @property
    def path(self) -> str:
        """Where the namespace is mounted."""
        return os.path.join("/run/netns", self.netns)


class ClientLimits(NamedTuple):
    """What one connection may use, and what one user's connections may use together."""

    requests: int = 64  #: in flight
    payload: int = 16 << 20  #: bytes in flight
    memories: int = 8  #: attached
    memory: int = 16 << 30  #: bytes of them
    walks: int = 4  #: begun and not finished
    listings: int = 256  #: of directories, likewise
    files: int = 64  #: open
    frame: int = 1 << 20  #: bytes of one request
    depth: int = 16  #: nesting of one request
    #: Seconds for a request to come, once it has begun, and without progress of one who reads.
    stall: float = 30.0
    user_connections: int = 4096
    user_requests: int = 4096  #: in flight
    user_payload: int = 512 << 20  #: bytes in flight
    user_frames: int = 64 << 20  #: bytes of requests that are not finished
    #: Open files, listings, walks, traces and attached memories between calls.
    user_kept: int = 4096
    user_remembered: int = 512 << 20  #: bytes for those listings and walks to go on
    user_images: int = 16 << 30  #: bytes of images that exist, also in the client's hands
    user_descriptors: int = 1024  #: that came from it, and are not closed yet


@dataclass(frozen=True)
class DaemonConfig:
    """All that ``vuserd serve`` needs to know."""

    listeners: tuple[ListenConfig, ...]
    exports: tuple[ExportConfig, ...]
    rigs: tuple[RigConfig, ...] = ()
    limits: ClientLimits = field(default_factory=ClientLimits)
    #: Bytes of sealed images that are kept for a next fetch; 0 keeps none.
    image_cache: int = 1 << 30
    #: Seconds that calls in progress may take when the daemon is told to end.
    drain: float = 5.0
    #: Where to write metrics for node_exporter's textfile collector, and how often, in seconds.
    metrics_file: str | None = None
    metrics_interval: float = 15.0
