"""Read the memory limits of this process's cgroups, version 1 and 2, from its own up to the root.

The files are documented in the kernel's ``admin-guide/cgroup-v2.rst`` and
``admin-guide/cgroup-v1/memory.rst``; those of ``/proc`` in cgroups(7) and proc_pid_mountinfo(5).

A cgroup limits all that is below it, so every visible level counts. A process in a cgroup
namespace, as in a container, sees no level above its root: version 1 shows the least limit of those
in ``hierarchical_memory_limit``, version 2 shows nothing of them.
"""

import errno
import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

#: Bytes that mean no limit: version 1 writes the largest multiple of a page for that.
UNLIMITED: Final = 1 << 60
#: Errors of open() that say nothing about the file: it may well have a limit.
SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class _Files(NamedTuple):
    """The names of files and fields in a version of cgroups."""

    #: Pairs of a limit and the usage that it limits.
    limits: tuple[tuple[bytes, bytes], ...]
    #: The prefix of the fields of memory.stat that include descendants.
    prefix: bytes
    dirty: tuple[bytes, ...]
    #: Whether no limit is below the first one, so that none is set if that one is not.
    rising: bool


# memory.high does not kill, but slows down a process above it until it hardly makes progress.
_V2: Final = _Files(
    ((b"memory.max", b"memory.current"), (b"memory.high", b"memory.current")),
    prefix=b"",
    dirty=(b"file_dirty", b"file_writeback"),
    rising=False,
)
# The limit of memory and swap together is the lower one once swap is used up.
_V1: Final = _Files(
    (
        (b"memory.limit_in_bytes", b"memory.usage_in_bytes"),
        (b"memory.memsw.limit_in_bytes", b"memory.memsw.usage_in_bytes"),
    ),
    prefix=b"total_",
    dirty=(b"total_dirty", b"total_writeback"),
    rising=True,
)


class Room(NamedTuple):
    """The room under a limit: ``free`` bytes of the ``total`` that it allows."""

    free: int
    total: int

    def without(self, size: int) -> "Room":
        """Return what is left where ``size`` bytes are taken."""
        return self._replace(free=max(self.free - size, 0))


class Cgroup:
    """One level of a hierarchy, known by its folder."""

    def __init__(self, folder: bytes, files: _Files, inherited: int = UNLIMITED) -> None:
        self.folder = folder
        self._files = files
        #: The least limit of this level and of the invisible ones above.
        self._inherited = inherited

    def rooms(self, enough: int) -> Iterator[Room]:
        """Yield the room under each limit of this level.

        Memory that the kernel could reclaim is not added if ``enough`` is free without it, since
        reading the statistics costs more than all the rest. A missing file means no limit: the root
        has none of them, nor has a level whose parent does not control memory.

        Raises:
            OSError: one of :data:`SHORTAGES`.

        """
        reclaimable: int | None = None
        inherited = self._inherited
        for limit_file, usage_file in self._files.limits:
            limit = min(_number(self.folder, limit_file), inherited)
            inherited = UNLIMITED  # for the first limit, that of memory
            if limit >= UNLIMITED:
                if self._files.rising:
                    return
                continue
            usage = _number(self.folder, usage_file)
            if usage >= UNLIMITED:
                continue
            free = limit - usage
            if free < enough:
                if reclaimable is None:
                    reclaimable = self._reclaimable()
                free = limit - max(usage - reclaimable, 0)
            yield Room(max(free, 0), limit)

    def _reclaimable(self) -> int:
        """Return the bytes that the kernel reclaims before it kills.

        These are the clean pages of files, including active ones, which reading an image twice
        produces. Shared memory is not among them. Half of the slab counts, as in MemAvailable.
        """
        statistics = _statistics(self.folder)
        pages = sum(
            statistics.get(self._files.prefix + name, 0)
            for name in (b"inactive_file", b"active_file")
        )
        dirty = sum(statistics.get(name, 0) for name in self._files.dirty)
        return max(pages - dirty, 0) + statistics.get(b"slab_reclaimable", 0) // 2


def find_cgroups(memberships: bytes, mounts: bytes) -> list[Cgroup]:
    """Return the levels that may limit this process's memory, its own first in each hierarchy.

    Args:
        memberships: ``/proc/self/cgroup``.
        mounts: ``/proc/self/mountinfo``.

    Raises:
        OSError: one of :data:`SHORTAGES`.

    """
    found: list[Cgroup] = []
    for line in memberships.splitlines():
        number, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if number == b"0" and not controllers:
            folders = _levels(path, _mounts(mounts, b"cgroup2", None))
            found += [Cgroup(folder, _V2) for folder in folders]
        elif b"memory" in controllers.split(b","):
            found += _first_version(_levels(path, _mounts(mounts, b"cgroup", b"memory")))
    return found


def _first_version(folders: list[bytes]) -> list[Cgroup]:
    """Return the levels that include what is below them; the top one inherits limits from above."""
    limiting: list[bytes] = []
    for folder in folders:
        if limiting and _number(folder, b"memory.use_hierarchy", missing=1) == 0:
            break  # neither this level nor those above count their children
        limiting.append(folder)
    if not limiting:
        return []
    top = limiting.pop()
    inherited = _statistics(top).get(b"hierarchical_memory_limit", UNLIMITED)
    return [*(Cgroup(folder, _V1) for folder in limiting), Cgroup(top, _V1, inherited)]


class _Mount(NamedTuple):
    """A mount of a part of a hierarchy: the cgroup ``root`` is visible at ``point``."""

    root: bytes
    point: bytes


def _mounts(mounts: bytes, kind: bytes, controller: bytes | None) -> Iterator[_Mount]:
    for line in mounts.split(b"\n"):  # a mount point's name may have a carriage return
        place, _, system = line.partition(b" - ")
        places, systems = place.split(b" "), system.split(b" ")
        if len(places) < 5 or len(systems) < 3 or systems[0] != kind:
            continue
        if controller is None or controller in systems[2].split(b","):
            yield _Mount(_unescape(places[3]), _unescape(places[4]))


def _levels(path: bytes, mounts: Iterator[_Mount]) -> list[bytes]:
    """Return the folders of the cgroup at ``path`` and of its ancestors, the lowest first.

    Of several mounts the one that shows most of them is used. A root such as ``/..`` is above the
    namespace's root: the names on the way from there are unknown, so only that level is used.
    """
    best: list[bytes] = []
    for mount in mounts:
        below = _below(path, mount.root)
        if below is None:
            continue
        parts = below.split(b"/") if below else []
        folders = [b"/".join([mount.point, *parts[:end]]) for end in range(len(parts), -1, -1)]
        if len(folders) > len(best):
            best = folders
    return best


def _below(path: bytes, root: bytes) -> bytes | None:
    """Return the path from the cgroup ``root`` down to ``path``; None if it is not below."""
    above = _parts(root)
    parts = _parts(path)
    if parts[: len(above)] == above and b".." not in parts[len(above) :]:
        return b"/".join(parts[len(above) :])
    is_ancestor = above and set(above) == {b".."} and len(above) > parts.count(b"..")
    return b"" if is_ancestor else None


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part]


def _unescape(field: bytes) -> bytes:
    r"""Return a field of mountinfo without its escapes, such as ``\040`` for a blank."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def _statistics(folder: bytes) -> dict[bytes, int]:
    """Return the fields of a level's memory.stat; none if it has no such file."""
    fields: dict[bytes, int] = {}
    for line in (_read(folder, b"memory.stat") or b"").splitlines():
        name, _, value = line.partition(b" ")
        if value.isdigit():
            fields[name] = int(value)
    return fields


def _number(folder: bytes, name: bytes, missing: int = UNLIMITED) -> int:
    """Return the number in a file: UNLIMITED for "max", ``missing`` if there is no file."""
    text = _read(folder, name)
    if text is None:
        return missing
    text = text.strip()
    if text == b"max":
        return UNLIMITED
    return int(text) if text.isdigit() else missing


def _read(folder: bytes, name: bytes) -> bytes | None:
    try:
        descriptor = os.open(b"/".join((folder, name)), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return None
    try:
        return os.read(descriptor, 16384)
    except OSError:  # the cgroup was removed just now
        return None
    finally:
        os.close(descriptor)
