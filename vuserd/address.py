"""Where the daemon's socket is, for the daemon and its clients alike.

An address is a path, or '@' and a name for a socket in Linux's abstract namespace.
"""

import os
from collections.abc import Mapping

SYSTEM_SOCKET = "/run/vuserd/vuserd.sock"


def socket_candidates(
    explicit: str | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Give the addresses that a client tries, in this order.

    One alone where it was named, by the caller or by ``VUSERD_SOCKET``.  Else the user's own daemon
    under ``XDG_RUNTIME_DIR``, then the system's.
    """
    if named := explicit or environ.get("VUSERD_SOCKET"):
        return (named,)
    if runtime_dir := environ.get("XDG_RUNTIME_DIR"):
        return (os.path.join(runtime_dir, "vuserd.sock"), SYSTEM_SOCKET)
    return (SYSTEM_SOCKET,)


def socket_address(explicit: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Give the address that a daemon listens on: the first one that its clients try."""
    return socket_candidates(explicit, environ)[0]


def to_sockaddr(address: str) -> str:
    """Give what ``connect`` and ``bind`` take for it."""
    return "\0" + address[1:] if address.startswith("@") else address
