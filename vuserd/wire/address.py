"""Find the address of the daemon's socket, for the daemon and its clients alike.

An address is a path, or '@' and a name for a socket in Linux's abstract namespace.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

SYSTEM_SOCKET = "/run/vuserd/vuserd.sock"
#: Inside a rig's network namespace.
RIG_SOCKET = "@vuserd"


class Candidate(NamedTuple):
    """An address that a client tries."""

    address: str
    is_guessed: bool  #: not named by the caller, nor by ``VUSERD_SOCKET``

    @property
    def is_abstract(self) -> bool:
        """Whether the address is abstract: not a path, whose folder and owner could be checked."""
        return self.address.startswith("@")


def socket_candidates(
    explicit: str | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[Candidate, ...]:
    """Return the addresses that a client tries, in this order.

    An address that the caller or ``VUSERD_SOCKET`` names is the only one. Else: the rig's, which
    exists only in a rig's network namespace; the user's own daemon under ``XDG_RUNTIME_DIR``; the
    system's.
    """
    if named := explicit or environ.get("VUSERD_SOCKET"):
        return (Candidate(named, is_guessed=False),)
    guesses = dict.fromkeys((RIG_SOCKET, socket_address(None, environ), SYSTEM_SOCKET))
    return tuple(Candidate(guess, is_guessed=True) for guess in guesses)


def socket_address(explicit: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the address that a daemon listens on."""
    if named := explicit or environ.get("VUSERD_SOCKET"):
        return named
    if runtime_dir := environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime_dir, "vuserd.sock")
    return SYSTEM_SOCKET


def to_sockaddr(address: str) -> str:
    """Return the address in the form that ``connect`` and ``bind`` take."""
    return "\0" + address[1:] if address.startswith("@") else address
