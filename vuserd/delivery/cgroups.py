"""The memory limits of this process's cgroups, version 1 and 2, from its own up to the root.

What is said here of files is in the kernel's ``admin-guide/cgroup-v2.rst`` and
``admin-guide/cgroup-v1/memory.rst``; of ``/proc``, in cgroups(7) and proc_pid_mountinfo(5).

A hierarchy's ancestors limit what is below them, so every level counts that can be seen. A process
in a cgroup namespace, as containers have one, sees none above its root: version 1 tells the least
limit of those in ``hierarchical_memory_limit``, version 2 tells nothing of them.
"""

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

#: As many bytes are no limit: version 1 writes the largest multiple of a page for that.
UNLIMITED: Final = 1 << 60


class _Files(NamedTuple):
    """What a version of cgroups calls its files."""

    #: Pairs of a limit and the usage that it limits.
    limits: tuple[tuple[bytes, bytes], ...]
    #: What the fields of memory.stat begin with that count descendants, too.
    prefix: bytes
    dirty: tuple[bytes, ...]
    #: Whether no limit is below the first, so that none is set where that one is not.
    rising: bool


# memory.high does not kill, but whoever is above it is slowed down until it hardly moves.
_V2: Final = _Files(
    ((b"memory.max", b"memory.current"), (b"memory.high", b"memory.current")),
    prefix=b"",
    dirty=(b"file_dirty", b"file_writeback"),
    rising=False,
)
# The limit of memory and swap together is the lower one where swap is used up.
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
    """What a limit leaves: ``free`` bytes of the ``total`` that it allows."""

    free: int
    total: int


class Cgroup:
    """One level of a hierarchy, by the folder that shows it."""

    def __init__(self, folder: bytes, files: _Files, inherited: int = UNLIMITED) -> None:
        self.folder = folder
        self._files = files
        #: The least limit of this level and of those above that cannot be seen.
        self._inherited = inherited

    def rooms(self, enough: int) -> Iterator[Room]:
        """Yield what each limit of this level leaves.

        What the kernel could take back is not counted where ``enough`` is free without that: the
        statistics cost more than all the rest. A file that is not there limits nothing: the root
        has none of them, nor has a level whose parent does not control memory.
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
        """Return the bytes that the kernel takes back before it kills.

        These are the clean pages of files, active ones as well: who reads an image twice has made
        them active. Shared memory is not among them. Of slab half counts, as in MemAvailable.
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
    """Return the levels that count what is below them; the top one has the limits above it, too."""
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
    """Where a part of a hierarchy is seen: ``root`` is the cgroup that is at ``point``."""

    root: bytes
    point: bytes


def _mounts(mounts: bytes, kind: bytes, controller: bytes | None) -> Iterator[_Mount]:
    for line in mounts.splitlines():
        place, _, system = line.partition(b" - ")
        places, systems = place.split(b" "), system.split(b" ")
        if len(places) < 5 or len(systems) < 3 or systems[0] != kind:
            continue
        if controller is None or controller in systems[2].split(b","):
            yield _Mount(_unescape(places[3]), _unescape(places[4]))


def _levels(path: bytes, mounts: Iterator[_Mount]) -> list[bytes]:
    """Return the folders of the cgroup at ``path`` and its ancestors, the lowest first.

    Of several mounts the one that shows most of them is taken. A root such as ``/..`` is above the
    namespace's: the way from there has names that cannot be known, so only that level is taken.
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
    """Return the way from the cgroup ``root`` to the one at ``path``; None if there is none."""
    above = _parts(root)
    parts = _parts(path)
    if parts[: len(above)] == above and b".." not in parts[len(above) :]:
        return b"/".join(parts[len(above) :])
    is_ancestor = above and set(above) == {b".."} and len(above) > parts.count(b"..")
    return b"" if is_ancestor else None


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part]


def _unescape(field: bytes) -> bytes:
    r"""Return a field of mountinfo as it is: a blank is ``\040`` there."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def _statistics(folder: bytes) -> dict[bytes, int]:
    """Return the fields of a level's memory.stat; none where it has no such file."""
    fields: dict[bytes, int] = {}
    for line in (_read(folder, b"memory.stat") or b"").splitlines():
        name, _, value = line.partition(b" ")
        if value.isdigit():
            fields[name] = int(value)
    return fields


def _number(folder: bytes, name: bytes, missing: int = UNLIMITED) -> int:
    """Return the number in a file: UNLIMITED for "max", ``missing`` where there is none."""
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
    except OSError:
        return None
    try:
        return os.read(descriptor, 16384)
    except OSError:  # the cgroup was removed just now
        return None
    finally:
        os.close(descriptor)
