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
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from vuserd.client import composite
from vuserd.client.calls import RemotePath
from vuserd.client.core.ticket import Ticket
from vuserd.client.records import Entry
from vuserd.client.sync_client import Client
from vuserd.ctl.output import is_dumb, printable
from vuserd.wire.address import SYSTEM_SOCKET

T = TypeVar("T")

#: Seconds without an answer before it is said.
SILENCE: Final = 2.0


#: Seconds for what systemd and its journal have to say.
_PATIENCE: Final = 2.0


def where_to_look(socket: str | None) -> str:
    """Return the commands that tell of the daemon at a socket; None is the default one."""
    user = " --user" if _is_own(socket) else ""
    return f"'systemctl{user} status vuserd' and 'journalctl{user} -u vuserd'"


def hint(socket: str | None, *, of_failure: bool = False) -> str:
    """Return what to add to words on a daemon that does not answer.

    With ``of_failure`` that is nothing where its service has no part in it, as far as is known.
    """
    state = state_of_service(socket)
    if of_failure and not state:
        return ""
    return (f"; {state}" if state else "") + f"; see {where_to_look(socket)}"


def state_of_service(socket: str | None) -> str:
    """Return what systemd says of a daemon that is not up, and what that said last.

    Empty where it is up, or is no service that systemd knows. Not every user may read the journal.
    """
    is_own = _is_own(socket)
    if not is_own and _named(socket) not in (None, SYSTEM_SOCKET):
        return ""
    user, kind = (["--user"], "USER_") if is_own else ([], "")
    asked = ["show", "--property=LoadState,ActiveState,Result", "vuserd.service"]
    lines = _said("systemctl", *user, *asked).splitlines()
    found = {name: value for name, _, value in (line.partition("=") for line in lines)}
    state, result = found.get("ActiveState"), found.get("Result", "success")
    if found.get("LoadState") != "loaded" or state in ("active", "reloading"):
        return ""
    if (state, result) == ("inactive", "success"):  # nobody has started it
        return ""
    why = "" if result == "success" else f" ({result})"
    unit = f"_SYSTEMD_{kind}UNIT=vuserd.service"
    last = _said("journalctl", *user, "--quiet", "--output=cat", "--lines=1", unit).strip()
    return f"vuserd.service is {state}{why}" + (f" and said last: {last}" if last else "")


def _is_own(socket: str | None) -> bool:
    """Return whether the daemon at a socket would be a service of the user's own."""
    named = _named(socket)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = os.path.join(runtime, "vuserd.sock") if runtime else None
    return own is not None and (named == own if named else os.path.exists(own))


def _named(socket: str | None) -> str | None:
    return socket or os.environ.get("VUSERD_SOCKET")


def _said(*command: str) -> str:
    """Return what a command prints; nothing where there is none, or where it fails or hangs."""
    import subprocess  # which nobody needs who is answered

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE,
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


class Notice:
    """Watches how long this process has waited for an answer."""

    def __init__(self, command: str, socket: str | None) -> None:
        self._command, self._socket = command, socket
        self._since: float | None = None
        if sys.stderr.isatty():
            with suppress(RuntimeError):  # no thread is to be had: rather say nothing
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
            if not self._is_silent():
                continue
            words = f"still waiting for the daemon's answer to '{self._command}'"
            words += hint(self._socket)
            if self._is_silent():  # still
                line_anew = "\r\n" if is_dumb() else "\r\x1b[K"
                os.write(2, f"{line_anew}vuserctl: {printable(words)}\n".encode())
                return

    def _is_silent(self) -> bool:
        since = self._since
        return since is not None and time.monotonic() - since >= SILENCE


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
    notice = Notice(command, socket)
    if timeout is not None:
        reconnect = min(reconnect, timeout)
    with notice.waiting():
        client = PatientClient.connect(socket, timeout=timeout, reconnect=reconnect)
    assert isinstance(client, PatientClient)
    client.notice = notice
    return client
