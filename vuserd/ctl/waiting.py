"""Say what vuserctl waits for, once the daemon has been silent for long.

It is a line on standard error, where that is a terminal, and one for each run.  A thread writes it:
a signal would interrupt the connecting that it is about.
"""

import _thread
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from vuserd.client import composite
from vuserd.client.calls import RemotePath
from vuserd.client.core.ticket import Ticket
from vuserd.client.records import Entry
from vuserd.client.sync_client import Client
from vuserd.ctl.output import printable

T = TypeVar("T")

#: Seconds without an answer before it is said.
SILENCE: Final = 2.0


def where_to_look(socket: str | None) -> str:
    """Return the commands that tell of the daemon at a socket; None is the default one."""
    named = socket or os.environ.get("VUSERD_SOCKET")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = os.path.join(runtime, "vuserd.sock") if runtime else None
    is_own = own is not None and (named == own if named else os.path.exists(own))
    user = " --user" if is_own else ""
    return f"'systemctl{user} status vuserd' and 'journalctl{user} -u vuserd'"


class Notice:
    """Watches how long this process has waited for an answer."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._since: float | None = None
        if sys.stderr.isatty():
            _thread.start_new_thread(self._watch, ())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for one answer."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main one's
        while True:
            time.sleep(SILENCE / 2)
            since = self._since
            if since is not None and time.monotonic() - since >= SILENCE:
                os.write(2, f"\r\x1b[Kvuserctl: {printable(self._words)}\n".encode())
                return


class PatientClient(Client):
    """A client that gives notice of each answer that it waits for."""

    notice: Notice | None = None

    def finish(self, ticket: Ticket[T], *, timeout: float | None = None) -> T:
        """Wait for a call that was begun."""
        if ticket.done or self.notice is None:
            return super().finish(ticket, timeout=timeout)
        with self.notice.waiting():
            return super().finish(ticket, timeout=timeout)

    def iterdir(  # type: ignore[override] # one without attributes, too
        self, export: str, path: RemotePath, *, attrs: bool = False, timeout: float | None = None
    ) -> Iterator[Entry]:
        """Return all entries of a directory, those without attributes among them."""
        return self._iterate(composite.iterdir(self._talk, export, path, attrs=attrs), timeout)


def connect(
    socket: str | None, command: str, *, timeout: float | None, reconnect: float
) -> PatientClient:
    """Connect to the daemon for a command, with notice of what it waits for.

    Args:
        socket: as :meth:`vuserd.client.sync_client.Client.connect` takes it.
        command: what the user asked for.
        timeout: the most seconds without a sign of the daemon; None to wait for ever.
        reconnect: seconds to look for the daemon's successor.

    Raises:
        CannotConnect: no daemon was reached.

    """
    notice = Notice(
        f"still waiting for the daemon's answer to '{command}'; see {where_to_look(socket)}"
    )
    if timeout is not None:
        reconnect = min(reconnect, timeout)
    with notice.waiting():
        client = PatientClient.connect(socket, timeout=timeout, reconnect=reconnect)
    assert isinstance(client, PatientClient)
    client.notice = notice
    return client
