"""The keys of configuration files, each with its kind, its default and a line about it."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from vuserd.config import values
from vuserd.config.values import Kind


class Key(NamedTuple):
    """A key that a table may have."""

    kind: Kind
    #: The default as a file would spell it; empty if there is none.
    default: str
    #: What it means, for people.
    text: str
    required: bool = False


class Table(NamedTuple):
    """A table of a file: its keys, and whether a file may have several of it."""

    text: str
    keys: Mapping[str, Key]
    repeated: bool = False


_SESSION: Final[Mapping[str, Key]] = {
    "timeout": Key(values.seconds(0.001), "10.0", "how long a backend may take for each answer"),
    "idle_nodes": Key(
        values.integer(0, 1 << 24), "4096", "how many nodes stay known though no call uses them"
    ),
    "idle_time": Key(
        values.seconds(0),
        "5.0",
        "how long they do after their last use, and images and unfinished listings likewise",
    ),
}

#: Keys for backends that the daemon starts itself.
BACKEND: Final[Mapping[str, Key]] = {
    "backend": Key(values.PROGRAM, "", "the virtiofsd to start (default: the first one found)"),
    "restarts": Key(
        values.integer(0, 1 << 20),
        "8",
        "starts of a backend that may fail in a row before the export has failed",
    ),
    "sandbox": Key(
        values.choice("auto", "namespace", "landlock", "chroot", "none"),
        '"auto"',
        "how the backend is confined; auto is the best that the machine grants",
    ),
    "cache": Key(
        values.choice("never", "metadata", "auto", "always"),
        '"auto"',
        "what the backend may have cached; metadata is the Rust virtiofsd's alone",
    ),
    "thread_pool": Key(values.integer(0, 256), "0", "threads of the backend beside its main one"),
    "xattr": Key(
        values.FLAG, "false", "whether extended attributes can be read through the backend"
    ),
    "inode_file_handles": Key(
        values.choice("never", "prefer", "mandatory"),
        '"never"',
        "whether the Rust virtiofsd, as root, keeps file handles instead of descriptors",
    ),
    "descriptors": Key(
        values.integer(1024, 1 << 30),
        "65536",
        "the most descriptors that the backend may open: one for each node that is known",
    ),
}

#: Keys that, at the top of a file, are the defaults of all exports.
SHARED: Final[Mapping[str, Key]] = {**_SESSION, **BACKEND}

_TOP: Final[Mapping[str, Key]] = {
    "image_cache": Key(
        values.size(0),
        '"1G"',
        "memory in which images of fetched files are kept for later fetches; 0 keeps none",
    ),
    "drain": Key(
        values.seconds(0),
        "5.0",
        "how long calls in progress may still take when the daemon ends",
    ),
    "metrics_file": Key(
        values.NEW_FILE,
        "",
        "where to write metrics for node_exporter's textfile collector (default: nowhere)",
    ),
    "metrics_interval": Key(values.seconds(0.1), "15.0", "how often to write metrics_file"),
    **SHARED,
}

_LIMITS: Final[Mapping[str, Key]] = {
    "requests": Key(values.integer(1, 1 << 20), "64", "requests of a connection in flight"),
    "payload": Key(values.size(1 << 20), '"16M"', "bytes of a connection's replies in flight"),
    "memories": Key(
        values.integer(0, 1 << 16), "8", "memories that a connection may have attached"
    ),
    "memory": Key(values.size(0), '"16G"', "bytes of all of those together"),
    "walks": Key(
        values.integer(1, 1 << 16), "4", "unfinished walks of a connection, and as many trees"
    ),
    "listings": Key(
        values.integer(1, 1 << 16), "256", "unfinished directory listings of a connection"
    ),
    "files": Key(
        values.integer(1, 1 << 16), "64", "files that a connection may have open between calls"
    ),
    "frame": Key(values.size(4096), '"1M"', "bytes of one request"),
    "depth": Key(values.integer(4, 64), "16", "nesting of the values of one request"),
    "stall": Key(
        values.seconds(0.001),
        "30.0",
        "how long the daemon waits for a client that does not read or does not finish a request",
    ),
    "user_connections": Key(values.integer(1, 1 << 20), "4096", "connections of one user"),
    "user_requests": Key(
        values.integer(1, 1 << 24), "4096", "requests of all of a user's connections in flight"
    ),
    "user_payload": Key(
        values.size(1 << 20), '"512M"', "bytes of replies of all of those in flight"
    ),
    "user_frames": Key(
        values.size(1 << 20), '"64M"', "bytes of unfinished requests of all of a user's connections"
    ),
    "user_kept": Key(
        values.integer(1, 1 << 24),
        "4096",
        "open files, listings, walks, traces and attached memories of all of a user's connections",
    ),
    "user_remembered": Key(
        values.size(1 << 20),
        '"512M"',
        "bytes in which one user's listings and walks remember where they were",
    ),
    "user_images": Key(
        values.size(1 << 20),
        '"16G"',
        "bytes of images of one user: being made, kept, and in the hands of its clients",
    ),
    "user_descriptors": Key(
        values.integer(1, 1 << 20),
        "1024",
        "descriptors that one user's connections sent: attached, or waiting to be closed",
    ),
}

_EXPORT: Final[Mapping[str, Key]] = {
    "name": Key(values.EXPORT_NAME, "", "what clients call it", required=True),
    "path": Key(values.DIRECTORY, "", "the directory to serve, through a backend of its own"),
    "socket": Key(
        values.SOCKET_PATH,
        "",
        "instead of path: the socket of a virtiofsd that the daemon does not start",
    ),
    "users": Key(
        values.USERS,
        "[]",
        'who sees it beside root and the daemon\'s own user; "*" is all users',
    ),
    "groups": Key(values.GROUPS, "[]", "groups whose members see it, too"),
    **SHARED,
}

_LISTEN: Final[Mapping[str, Key]] = {
    "socket": Key(
        values.SOCKET,
        "",
        "where clients connect: a path, or '@' and a name for an abstract socket",
        required=True,
    ),
    "mode": Key(
        values.MODE, '"0600"', "the mode of the socket's file, in octal digits: who may connect"
    ),
    "group": Key(values.GROUP, "", "the group of the socket's file (default: the daemon's)"),
}

_RIG: Final[Mapping[str, Key]] = {
    "netns": Key(
        values.NETNS,
        "",
        "the network namespace of the rig: a name of ip-netns(8), or a path",
        required=True,
    ),
    "exports": Key(values.EXPORT_NAMES, "", "the exports that the rig sees", required=True),
    "socket": Key(values.ABSTRACT, '"@vuserd"', "the abstract socket in that namespace"),
}

#: The tables by name; the top of a file has none.
TABLES: Final[Mapping[str, Table]] = {
    "": Table("the daemon itself, and defaults of exports", _TOP),
    "limits": Table("what clients may use", _LIMITS),
    "export": Table("something to serve", _EXPORT, repeated=True),
    "listen": Table("a socket for clients", _LISTEN, repeated=True),
    "rig": Table("a network namespace with a socket of its own", _RIG, repeated=True),
}


def heading(table: str) -> str:
    """Return a table's name as a file spells it."""
    if not table:
        return "the top of the file"
    return f"[[{table}]]" if TABLES[table].repeated else f"[{table}]"


def spelled(table: str, key: str) -> str:
    """Return a key's name as problems and documents spell it."""
    return f"{table}.{key}" if table else key
