"""The configuration as comparable values, so that a reload applies only the differences."""

import os
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vuserd.backend.process import BackendOptions
from vuserd.device.session import SessionOptions


class Account(NamedTuple):
    """A user or group by its name."""

    word: str  #: "user" or "group"
    name: str

    def __str__(self) -> str:
        """Return what is wrong where it does not exist."""
        return f"there is no {self.word} {self.name}"


@dataclass(frozen=True)
class Access:
    """Who may see an export, beside root and the daemon's own user."""

    everyone: bool = False
    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()
    #: Those who are named and do not exist: nobody sees the export before they do.
    missing: frozenset[Account] = frozenset()


@dataclass(frozen=True)
class ExportConfig:
    """One export: a directory with a backend of the daemon's, or the socket of an adopted one."""

    name: str
    directory: str | None = None
    socket: str | None = None
    access: Access = Access()
    #: The virtiofsd to start; None for the first one found.
    program: str | None = None
    options: BackendOptions = field(default_factory=BackendOptions)
    session: SessionOptions = field(default_factory=SessionOptions)
    #: How many nodes stay known though no call uses them.
    idle_nodes: int = 4096
    #: Seconds for which they do, like images and the directories of unfinished listings.
    idle_time: float = 5.0
    #: Starts of a backend that may fail in a row before the export has failed.
    restarts: int = 8
    #: Seconds before the second try in a row, doubled with each further try, and their maximum.
    restart_delays: tuple[float, float] = (0.05, 5.0)

    @property
    def source(self) -> str:
        """The directory or socket, for people."""
        return self.directory or f"unix:{self.socket}"

    def with_access(self, access: Access) -> "ExportConfig":
        """Return the same export with other rights."""
        return replace(self, access=access)

    def serves_like(self, other: "ExportConfig") -> bool:
        """Return whether the two differ at most in who may see them."""
        return self.with_access(other.access) == other


@dataclass(frozen=True)
class ListenConfig:
    """One socket for clients: a path, or '@' and a name for an abstract socket."""

    address: str
    mode: int = 0o600
    #: The group of the socket's file; None for the daemon's.
    group: int | None = None
    #: The group that is named and does not exist: there is no socket before it does.
    missing: Account | None = None


@dataclass(frozen=True)
class RigConfig:
    """A network namespace with a socket of its own, through which only these exports are seen."""

    #: A name of ``ip netns``, or a path.
    netns: str
    exports: tuple[str, ...]
    address: str = "@vuserd"

    @property
    def path(self) -> str:
        """Where the namespace is mounted."""
        return os.path.join("/run/netns", self.netns)


class ClientLimits(NamedTuple):
    """The limits of one connection, and of all connections of one user together."""

    requests: int = 64  #: in flight
    payload: int = 16 << 20  #: bytes in flight
    memories: int = 8  #: attached
    memory: int = 16 << 30  #: bytes of them
    walks: int = 4  #: unfinished, and as many trees
    listings: int = 256  #: of directories, unfinished
    files: int = 64  #: open
    frame: int = 1 << 20  #: bytes of one request
    depth: int = 16  #: nesting of one request
    #: Seconds for a request to arrive once it has begun, and for a client to read some of a reply.
    stall: float = 30.0
    user_connections: int = 4096
    user_requests: int = 4096  #: in flight
    user_payload: int = 512 << 20  #: bytes in flight
    user_frames: int = 64 << 20  #: bytes of requests that are not finished
    #: Open files, listings, walks, traces and attached memories between calls.
    user_kept: int = 4096
    user_remembered: int = 512 << 20  #: bytes in which listings and walks remember where they were
    user_images: int = 16 << 30  #: bytes of images, including those that only clients still hold
    user_descriptors: int = 1024  #: received from the user's clients and not closed yet


@dataclass(frozen=True)
class DaemonConfig:
    """The whole configuration of ``vuserd serve``."""

    listeners: tuple[ListenConfig, ...]
    exports: tuple[ExportConfig, ...]
    rigs: tuple[RigConfig, ...] = ()
    limits: ClientLimits = field(default_factory=ClientLimits)
    #: Bytes of sealed images that are kept for later fetches; 0 keeps none.
    image_cache: int = 1 << 30
    #: Seconds that calls in progress may still take when the daemon ends.
    drain: float = 5.0
    #: Where to write metrics for node_exporter's textfile collector, and how often, in seconds.
    metrics_file: str | None = None
    metrics_interval: float = 15.0
