"""What fsspec is told of a file: a name that begins with the export, a type, a size and more."""

from typing import Any, Final

from vuserd.client import AsyncioClient, Entry, Stat
from vuserd.client.errors import RemoteOSError

Info = dict[str, Any]

_TYPES: Final = {"file": "file", "dir": "directory"}
_KEYS: Final = ("mode", "uid", "gid", "ino", "nlink", "mtime_ns", "ctime_ns")


def split(name: str) -> tuple[str, str]:
    """Return the export, and the path in it."""
    export, _, path = name.partition("/")
    return export, f"/{path}"


async def entry_info(client: AsyncioClient, name: str, entry: Entry) -> Info:
    """Return what a listing says of an entry."""
    try:
        stat = entry.stat
        if stat is None:
            stat = await client.stat(*split(name), follow=False)
    except RemoteOSError:  # it is gone meanwhile, or has no attributes
        return {"name": name, "size": None, "type": _TYPES.get(entry.type, "other")}
    info = await info_of(client, name, stat, dangling=True)
    if info["islink"] and info["type"] == "directory":
        info["type"] = "other"  # or searches would go in circles
    return info


async def info_of(client: AsyncioClient, name: str, stat: Stat, *, dangling: bool = False) -> Info:
    """Return what fsspec says of a file; of a symlink, about what it leads to."""
    link: Info = {"islink": stat.type == "symlink"}
    if link["islink"]:
        link["destination"] = await client.readlink(*split(name))
        try:
            stat = await client.stat(*split(name))
        except RemoteOSError:
            if not dangling:
                raise
    return {
        "name": name,
        "size": 0 if stat.type == "dir" else stat.size,
        "type": _TYPES.get(stat.type, "other"),
        "mtime": stat.mtime_ns / 1e9,
        "created": stat.ctime_ns / 1e9,
        **{key: getattr(stat, key) for key in _KEYS},
        **link,
    }
