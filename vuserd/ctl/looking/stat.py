"""``vuserctl stat``: print the attributes of files."""

import stat as modes
from typing import Any

from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.operands import for_each
from vuserd.ctl.output import emit, emit_json, known, long_time, shown, size_or_device
from vuserd.ctl.target import Target


def stat(client: Client, targets: list[Target], *, follow: bool, as_json: bool) -> int:
    """Print attributes, as JSON a list if several files are named; return the exit code."""
    maps: list[dict[str, Any]] = []

    def show(target: Target) -> None:
        found = client.stat(*target, follow=follow)
        link = client.readlink(*target) if found.type == "symlink" else None
        if as_json:
            maps.append(found._asdict() | ({} if link is None else {"target": link}))
        else:
            _print(target, found, link)

    code = for_each(client, targets, show)
    if as_json and (len(targets) > 1 or len(maps) > 1):
        emit_json(maps)
    elif maps:
        emit_json(maps[0])
    return code


def _print(target: Target, found: Stat, link: str | None) -> None:
    kind = found.type + (", a mount point" if found.submount else "")
    permissions = f"{modes.filemode(found.mode & 0o177777)} ({found.mode & 0o7777:04o})"
    sized = "device" if found.type in ("char", "block") else "size"
    emit(f"    file  {shown(str(target))}" + ("" if link is None else f" -> {shown(link)}"))
    emit(f"    type  {shown(kind)}")
    emit(f"{sized:>8}  {size_or_device(found)}")
    emit(f"  blocks  {found.blocks} of 512 bytes, {found.blksize} at a time")
    emit(f"   inode  {found.ino}, {found.nlink} {'link' if found.nlink == 1 else 'links'}")
    emit(f"    mode  {permissions}")
    emit(f"   owner  {known(found.uid)}:{known(found.gid)}")
    emit(f"accessed  {long_time(found.atime_ns)}")
    emit(f"modified  {long_time(found.mtime_ns)}")
    emit(f" changed  {long_time(found.ctime_ns)}")
