"""``vuserctl du``: how much space directories take, as coreutils' du counts it."""

from typing import Any

from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.looking.walking import Turn, walk
from vuserd.ctl.operands import for_each
from vuserd.ctl.output import complain, emit, emit_json, rounded_size, shown
from vuserd.ctl.target import Target


def du(
    client: Client, targets: list[Target], *, depth: int | None, human: bool, as_json: bool
) -> int:
    """Print the space that directories take with all below; return the exit code.

    Numbers are KiB, rounded up, or with ``human`` such as 4.0K and 12M, and bytes as JSON.
    Directories more than ``depth`` levels down are counted and not printed.
    """
    usage = _Usage(client, depth)
    maps: list[dict[str, Any]] = []

    def show(target: Target, size: int) -> None:
        if as_json:
            maps.append({"path": str(target), "bytes": size})
        else:
            amount = rounded_size(size) if human else str(-(-size // 1024))
            emit(f"{amount}\t{shown(str(target))}")

    def count(target: Target) -> None:
        for each, size in usage.of(target):
            show(each, size)

    code = for_each(client, targets, count)
    if as_json:
        emit_json(maps)
    return code or usage.code


class _Usage:
    """Counts each file once below each operand, however many names it has there."""

    def __init__(self, client: Client, depth: int | None) -> None:
        self._client = client
        self._depth = depth
        self._counted: set[tuple[int, int]] = set()
        self._file_systems = 0
        self.code = 0

    def of(self, root: Target) -> list[tuple[Target, int]]:
        """Return directories and their bytes, each behind what is below it."""
        stat = self._client.stat(*root, follow=False)
        self._file_systems += 1
        mounts = [self._file_systems]
        sizes = [self._size(stat, mounts[-1])]
        found: list[tuple[Target, int]] = []
        steps = walk(self._client, root, attrs=True) if stat.type == "dir" else ()
        for turn, target, entry, _, _, error in steps:
            if error is not None:
                self.code = complain(f"{target}: {error.words}")
            if turn is Turn.LEAVE:
                mounts.pop()
                size = sizes.pop()
                sizes[-1] += size
                if self._depth is None or len(sizes) <= self._depth:
                    found.append((target, size))
                continue
            if turn is Turn.ENTER:
                if entry.stat is not None and entry.stat.submount:
                    self._file_systems += 1
                    mounts.append(self._file_systems)
                else:
                    mounts.append(mounts[-1])
                sizes.append(0)
            sizes[-1] += self._size(entry.stat, mounts[-1])
        return [*found, (root, sizes[0])]

    def _size(self, stat: Stat | None, mount: int) -> int:
        """Return the bytes of a file that was not counted before on its file system."""
        if stat is None:
            return 0
        if stat.nlink > 1 and stat.type != "dir":
            if (mount, stat.ino) in self._counted:
                return 0
            self._counted.add((mount, stat.ino))
        return stat.blocks * 512
