"""``vuserctl exports``, ``reload`` and ``rigs``: print the daemon's answers."""

import sys

from vuserd.client.calls import Call
from vuserd.client.errors import RemoteError
from vuserd.client.records import to_map
from vuserd.client.sync_client import Client
from vuserd.ctl.output import complain, emit, emit_json, emit_table, shown


def exports(client: Client, *, as_json: bool) -> None:
    """Print the exports, their state and their backends."""
    found = client.exports()
    if as_json:
        emit_json(
            [
                export._asdict() | {"backend": export.backend and export.backend._asdict()}
                for export in found
            ]
        )
        return
    rows = []
    for name, state, backend, reason in found:
        kind, version, pid, _generation = backend or (None, None, None, None)
        rows.append((name, state, kind, version, pid, reason))
    emit_table(("NAME", "STATE", "BACKEND", "VERSION", "PID", "REASON"), rows)
    from vuserd.ctl.status import note_namespace, reached

    try:
        origin = client.call(Call("origin", [], to_map))
    except RemoteError:  # a daemon that does not know this
        return
    if sys.stdout.isatty():
        emit(f"from {reached(origin)}")
    note_namespace(origin)


def reload(client: Client, export: str | None, *, as_json: bool) -> int:
    """Replace an export's backend, or reload the configuration; print the changes made.

    Mistakes of the configuration have a line each, on standard error. Return the exit code.
    """
    try:
        done = client.reload(export)
    except RemoteError as error:
        if "\n" not in error.message:
            raise
        for line in error.message.split("\n"):
            complain(line)
        return 1
    if as_json:
        emit_json(done)
        return 0
    for line in done or ["nothing changed"]:
        emit(shown(line))
    return 0


def rigs(client: Client, *, as_json: bool) -> None:
    """Print the rigs, with the reason where one cannot be served."""
    from vuserd.ctl.status import rig_lines

    found = client.rigs()
    if as_json:
        emit_json([rig._asdict() for rig in found])
        return
    for line in rig_lines(rig._asdict() for rig in found):
        emit(line)
