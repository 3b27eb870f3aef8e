"""``vuserctl exports``, ``stat``, ``reload`` and ``rigs``: print the daemon's answers."""

import stat as modes

from vuserd.client.sync_client import Client
from vuserd.ctl.output import emit, emit_json, emit_table, known, long_time, shown, size_or_device
from vuserd.ctl.target import Target


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
    permissions = f"{modes.filemode(found.mode & 0o177777)} ({found.mode & 0o7777:04o})"
    sized = "device" if found.type in ("char", "block") else "size"
    emit(f"    file  {shown(str(target))}" + ("" if link is None else f" -> {shown(link)}"))
    emit(f"    type  {kind}")
    emit(f"{sized:>8}  {size_or_device(found)}")
    emit(f"  blocks  {found.blocks} of 512 bytes, {found.blksize} at a time")
    emit(f"   inode  {found.ino}, {found.nlink} {'link' if found.nlink == 1 else 'links'}")
    emit(f"    mode  {permissions}")
    emit(f"   owner  {known(found.uid)}:{known(found.gid)}")
    emit(f"accessed  {long_time(found.atime_ns)}")
    emit(f"modified  {long_time(found.mtime_ns)}")
    emit(f" changed  {long_time(found.ctime_ns)}")


def reload(client: Client, export: str | None, *, as_json: bool) -> None:
    """Replace an export's backend, or reload the configuration; print the changes made."""
    done = client.reload(export)
    if as_json:
        emit_json(done)
        return
    for line in done or ["nothing changed"]:
        emit(shown(line))


def rigs(client: Client, *, as_json: bool) -> None:
    """Print the rigs, with the reason where one cannot be served."""
    from vuserd.ctl.status import rig_lines

    found = client.rigs()
    if as_json:
        emit_json([rig._asdict() for rig in found])
        return
    for line in rig_lines(rig._asdict() for rig in found):
        emit(line)
