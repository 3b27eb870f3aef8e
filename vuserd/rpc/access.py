"""Who a client is, by the kernel's word, and what it may see."""

import logging
import os
import socket
import struct
from collections.abc import Container, Hashable, Iterator, Mapping
from typing import Final, NamedTuple, Self

from vuserd.config.model import Access
from vuserd.errors import CallError, ErrorCode, os_reason
from vuserd.exports.export import Export
from vuserd.rpc.peer_log import PeerLog
from vuserd.tasks.gather import gather

#: struct ucred: pid, uid, gid.
_UCRED: Final = struct.Struct("=iII")
_GID: Final = struct.Struct("=I")
#: SO_PEERGROUPS of asm-generic/socket.h: the supplementary groups at connect(), gid_t each.
_SO_PEERGROUPS: Final = 59
#: SO_NETNS_COOKIE of asm-generic/socket.h.
_SO_NETNS_COOKIE: Final = 71
_COOKIE: Final = struct.Struct("=Q")
#: What the standard library makes room for; hardly anybody is in more.
_MOST_GROUPS: Final = 256
_ROOT: Final = 0


class Peer(NamedTuple):
    """The process that connected, with its credentials at that moment."""

    pid: int
    uid: int
    groups: frozenset[int]  #: its own and the supplementary ones
    #: Why the supplementary groups are not among them, if so.
    without_groups: str | None = None

    @classmethod
    def of(cls, sock: socket.socket) -> Self:
        """Ask the kernel (SO_PEERCRED, SO_PEERGROUPS) who is at the other end."""
        pid, uid, gid = _UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        more, problem = b"", None
        try:
            more = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GID.size * _MOST_GROUPS)
        except OSError as error:  # ERANGE: in too many; ENOPROTOOPT: before Linux 4.13
            problem = os_reason(error)
        groups = frozenset({gid, *(group for (group,) in _GID.iter_unpack(more))})
        return cls(pid, uid, groups, problem)

    def command(self) -> str | None:
        """Return the name of the process, while it lives and may be looked at."""
        try:
            with open(f"/proc/{self.pid}/comm", errors="backslashreplace") as file:
                return file.read().rstrip("\n")
        except OSError:
            return None


class Origin(NamedTuple):
    """Where a client came from."""

    socket: str = ""  #: the address that it connected to
    rig: str | None = None  #: the rig whose socket that is
    #: Its network namespace: ``same`` as the socket's, a ``rig``'s, an ``other``, or ``unknown``.
    namespace: str = "unknown"


def netns_cookie(sock: socket.socket) -> int | None:
    """Return what the kernel calls a socket's network namespace; None if it does not tell.

    A connection that was accepted has the client's: the kernel makes it in the namespace that the
    client's socket is in. No process is looked at, whose id could be another one's by now.
    """
    try:
        (cookie,) = _COOKIE.unpack(
            sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size)
        )
    except OSError:  # ENOPROTOOPT: before Linux 5.14
        return None
    return int(cookie)


class Rights:
    """What a client may see and do: by who it is, and by the listener that it came through.

    Root and the daemon's own user see everything and may manage the daemon. A client in a rig sees
    what the rig has, and manages nothing, whoever it is.

    Args:
        peer: who it is.
        exports: those behind the listener, as they are at any time; None for all.
        origin: where it came from, which changes nothing of this.

    """

    def __init__(
        self, peer: Peer, exports: Container[str] | None = None, origin: Origin | None = None
    ) -> None:
        self.peer = peer
        self.exports = exports
        self.origin = origin or Origin()
        self._is_trusted = peer.uid in (_ROOT, os.geteuid())
        #: Whether this client may change the daemon, and see what others do.
        self.manages = exports is None and self._is_trusted

    @property
    def alike(self) -> Hashable:
        """What is equal for clients who see the same, whatever the exports are."""
        return self.peer.uid, self.peer.groups, id(self.exports)

    def sees(self, name: str, access: Access) -> bool:
        """Return whether an export exists for this client."""
        if self.exports is not None and name not in self.exports:
            return False
        return (
            self._is_trusted
            or access.everyone
            or self.peer.uid in access.users
            or not access.groups.isdisjoint(self.peer.groups)
        )

    def is_same_user(self, other: "Rights") -> bool:
        """Return whether both are one user in one place; each rig has users of its own."""
        return self.peer.uid == other.peer.uid and self.exports is other.exports


class VisibleExports:
    """The exports, as each client sees them.

    Args:
        exports: by name, as they are at any time.

    """

    def __init__(self, exports: Mapping[str, Export]) -> None:
        self._exports = exports
        self.refusals = PeerLog(logging.WARNING, "refused to %s: %s%s")

    def find(self, rights: Rights, name: str) -> Export:
        """Return the export of this name.

        Raises:
            CallError: UNKNOWN_EXPORT: there is none, or the client may not know of it.

        """
        try:
            found = self._exports[name]
        except KeyError:
            found = None
        if found is None or not rights.sees(name, found.config.access):
            if found is not None:
                self.refusals.note(rights.peer, f"export {name}")
            raise CallError(ErrorCode.UNKNOWN_EXPORT, f"there is no export {name!r}")
        return found

    def of(self, rights: Rights) -> Iterator[Export]:
        """Return those that the client sees."""
        for export in self._exports.values():
            if rights.sees(export.config.name, export.config.access):
                yield export

    async def look(self, rights: Rights) -> None:
        """Look where the paths of those lead: a directory may be gone, and no call have found out.

        The client neither waits for the file systems of other exports nor sets off looks at them.
        """
        await gather([export.look for export in self.of(rights)])
