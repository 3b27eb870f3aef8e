"""How files are fetched: what the options of ``vuserctl get`` ask for."""

import os
import stat as modes
from contextlib import suppress
from typing import Final, NamedTuple

from vuserd.client.records import Stat
from vuserd.ctl.output import emit, shown
from vuserd.ctl.target import Target

#: Types that are skipped with a message; any other unknown type is an error.
SKIPPED: Final = frozenset({"fifo", "socket", "char", "block"})
#: Nanoseconds of the finest times that file systems keep, from most of them to NTFS and SMB, some
#: in user space, exFAT, ext3 and FAT.
_GRAINS: Final = (1, 100, 1000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000)


class How(NamedTuple):
    """The options."""

    recursive: bool = False
    growing: bool = False  #: of a growing file the bytes that it had at the start are enough
    update: bool = False  #: skip what is there with the same size and time
    preserve: bool = False  #: permissions as they are, whatever the umask
    quiet: bool = False
    verbose: bool = False
    dry_run: bool = False

    @property
    def no_progress(self) -> bool:
        """Whether no progress is shown: lines of their own would be torn by it."""
        return self.quiet or self.verbose

    def tell(self, target: Target, local: str) -> None:
        """Print which file was fetched to where, if that is asked for."""
        if self.verbose or self.dry_run:
            emit(f"{shown(str(target))} -> {shown(local)}")

    def is_current(self, stat: Stat, path: str, directory: int | None = None) -> bool:
        """Return whether a file need not be fetched: one is there with its size and time.

        Only a regular file counts. A symlink is followed unless the path is relative to
        ``directory``. A local time may be what a file system with coarser times kept of it.
        """
        if not self.update:
            return False
        try:
            found = os.stat(path, dir_fd=directory, follow_symlinks=directory is None)
        except OSError:
            return False
        kept = [stat.mtime_ns // grain * grain for grain in _GRAINS]
        is_same = found.st_size == stat.size and found.st_mtime_ns in kept
        return modes.S_ISREG(found.st_mode) and is_same

    def set_permissions(self, fileno: int, stat: Stat) -> None:
        """Give a new file the permissions of the fetched one, if that is asked for and allowed."""
        if self.preserve:
            with suppress(PermissionError):  # another user's
                os.fchmod(fileno, stat.mode & 0o777)

    def set_permissions_of_directory(self, fileno: int, stat: Stat) -> None:
        """Give a new directory the permissions of the fetched one, less the umask if need be.

        It had all of its user's until now, and keeps the set-group-ID bit of the one that it is in,
        whose group is that of all below.
        """
        found = modes.S_IMODE(os.fstat(fileno).st_mode)
        os.umask(umask := os.umask(0o077))
        left = found & (0o077 | ~umask)  # it was made without the umask of its user's
        wanted = (stat.mode if self.preserve else stat.mode & left) & 0o777
        if found & 0o777 != wanted:
            os.fchmod(fileno, wanted | found & modes.S_ISGID)
