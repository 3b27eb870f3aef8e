"""``vuserctl exports``, ``stat`` and ``status``: an answer of the daemon's, laid out to be read."""

import stat as modes
from collections.abc import Mapping
from typing import Any

from vuserd.client.output import (
    binary_size,
    cell,
    duration,
    emit,
    emit_json,
    emit_table,
    long_time,
    shown,
    size_or_device,
)
from vuserd.client.sync_client import Client
from vuserd.client.target import Target


def exports(client: Client, *, as_json: bool) -> None:
    """Print the exports, their state and what is behind them."""
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


def stat(client: Client, target: Target, *, follow: bool, as_json: bool) -> None:
    """Print a file's attributes."""
    found = client.stat(target.export, target.path, follow=follow)
    link = None
    if found.type == "symlink":
        link = client.readlink(target.export, target.path)
    if as_json:
        emit_json(found._asdict() | ({} if link is None else {"target": link}))
        return
    kind = found.type + (", a mount point" if found.submount else "")
    permissions = f"{modes.filemode(found.mode)} ({modes.S_IMODE(found.mode):04o})"
    sized = "device" if found.type in ("char", "block") else "size"
    emit(f"    file  {shown(str(target))}" + ("" if link is None else f" -> {shown(link)}"))
    emit(f"    type  {kind}")
    emit(f"{sized:>8}  {size_or_device(found)}")
    emit(f"  blocks  {found.blocks} of 512 bytes, {found.blksize} at a time")
    emit(f"   inode  {found.ino}, {found.nlink} {'link' if found.nlink == 1 else 'links'}")
    emit(f"    mode  {permissions}")
    emit(f"   owner  {found.uid}:{found.gid}")
    emit(f"accessed  {long_time(found.atime_ns)}")
    emit(f"modified  {long_time(found.mtime_ns)}")
    emit(f" changed  {long_time(found.ctime_ns)}")


def status(client: Client, *, as_json: bool) -> None:
    """Print the daemon's state: whatever of it is there."""
    found = client.status()
    if as_json:
        emit_json(found)
        return
    emit(
        f"vuserd {cell(found.get('version'))}, pid {cell(found.get('pid'))}, "
        f"up {duration(found.get('uptime_s'))}"
    )
    emit(f"socket       {cell(found.get('socket'))}")
    emit(f"connections  {cell(found.get('connections'))}")
    emit(f"requests     {cell(found.get('requests'))}")
    emit(f"bytes read   {binary_size(found.get('bytes_read'))}")
    listed = found.get("exports")
    if isinstance(listed, list) and listed:
        emit()
        emit_table(
            ("EXPORT", "STATE", "BACKEND", "NODES", "LOOKUPS", "IN FLIGHT", "REQUESTS", "SOURCE"),
            [_export_row(export) for export in listed if isinstance(export, Mapping)],
        )


def _export_row(export: Mapping[str, Any]) -> list[object]:
    state, reason = cell(export.get("state")), export.get("reason")
    backend = export.get("backend")
    if isinstance(backend, Mapping):
        parts = [backend.get("kind"), backend.get("version")]
        backend = " ".join(str(part) for part in parts if part is not None)
    return [
        export.get("name"),
        state if reason is None else f"{state}: {cell(reason)}",
        backend,
        *(export.get(key) for key in ("nodes", "lookups", "in_flight", "requests", "source")),
    ]
