"""Count the memory that each user has in images, from before one is made until it is gone.

The kernel reports when an image is gone: a watch of inotify(7) ends with its file, and a memfd ends
when no descriptor (not even with O_PATH), mapping or message refers to it. The alternative, a
lease, overlooks O_PATH. A watch takes no descriptor, and no task waits for its end: the ends are
read when the next image is made.

If the system grants the daemon's user no more watches, because other programs of that user have
them all, images are still made, but not counted.
"""

import ctypes
import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from vuserd.delivery.cgroups import UNLIMITED
from vuserd.delivery.headroom import HEADROOM
from vuserd.errors import CallError, ErrorCode
from vuserd.users.asker import ASKER, Asker

_LOG = logging.getLogger(__name__)

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
#: The event to watch for: a watch needs one, and a file without a name is never moved.
_IN_MOVE_SELF: Final = 0x800
_IN_Q_OVERFLOW: Final = 0x4000
_IN_IGNORED: Final = 0x8000
#: struct inotify_event without a name: wd, mask, cookie, len.
_EVENT: Final = struct.Struct("=iIII")
_EVENTS: Final = 4096 * _EVENT.size
_MOST_WATCHES: Final = "/proc/sys/fs/inotify/max_user_watches"
#: The most images of one user, and the part of the daemon's watches that they may take.
_MOST: Final = 4096
_PART: Final = 8


class _Account:
    """The images of one user and their bytes."""

    def __init__(self) -> None:
        self.images = 0
        self.bytes = 0


class Holding:
    """What one image takes of its user's share."""

    def __init__(self, census: "Census", user: Asker | None, most: int) -> None:
        self.user = user
        self.most = most
        self.bytes = 0
        #: Whether the kernel will report its end.
        self.is_watched = False
        self._census = census

    def grow(self, size: int) -> None:
        """Count at least ``size`` bytes.

        Raises:
            CallError: BUSY: the user would have too many.

        """
        if size > self.bytes:
            self._census.require(self.user, size - self.bytes, self.most)
            self.settle(size)

    def settle(self, size: int) -> None:
        """Count exactly ``size`` bytes from now on."""
        if self.is_watched:
            self._census.count(self.user, size - self.bytes)
        self.bytes = size


class Census:
    """Counts the existing images of each user, whichever process holds them."""

    def __init__(self) -> None:
        #: The bytes that one user may have; half of the daemon's memory if that is less.
        self.limit = UNLIMITED
        #: Drops a user's images that are kept for later fetches, one at each step.
        self.let_go: Callable[[Asker | None], Iterator[None]] = lambda _: iter(())
        self._most_images = _most_images()
        self._accounts: dict[Asker | None, _Account] = {}
        self._watched: dict[int, Holding] = {}
        self._inotify = -1
        #: Whether it was logged that images are not counted.
        self._is_told = False

    def bytes_of(self, user: Asker | None) -> int:
        """Return the bytes of a user's images, perhaps with some that are gone by now."""
        account = self._accounts.get(user)
        return account.bytes if account else 0

    def create(self, name: str, size: int) -> tuple[int, Holding]:
        """Return a new memfd that may be sealed, and the holding that ends with it.

        Args:
            name: what /proc shows.
            size: the bytes that it is expected to take, counted from now on. A size beyond the
                user's limit is not believed, since some files are smaller than their size says.

        Raises:
            CallError: BUSY: the user has as many images, or bytes, as allowed.
            OSError: no memfd can be made.

        """
        user = ASKER.get()
        holding = Holding(self, user, min(self.limit, HEADROOM.total() // 2))
        expected = size if size <= holding.most else 0
        self._sweep()
        self.require(user, expected, holding.most, images=1)
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        watch = self._watch(descriptor)
        if watch is not None:
            holding.is_watched = True
            self._watched[watch] = holding
            self._accounts.setdefault(user, _Account()).images += 1
        holding.settle(expected)
        return descriptor, holding

    def require(self, user: Asker | None, size: int, most: int, images: int = 0) -> None:
        """Check that a user may have ``size`` bytes more; drop images kept for later, if needed.

        Raises:
            CallError: BUSY.

        """
        if self._fits(user, size, most, images):
            return
        self._sweep()
        for _ in self.let_go(user):
            self._sweep()
            if self._fits(user, size, most, images):
                return
        if self._fits(user, size, most, images):
            return
        account = self._accounts.get(user, _Account())
        raise CallError(
            ErrorCode.BUSY,
            f"{user or 'the daemon'} has {account.images} images of {account.bytes} bytes, and"
            f" {size} more are too many: close some",
            limit=most if account.bytes + size > most else self._most_images,
        )

    def count(self, user: Asker | None, size: int) -> None:
        """Count bytes of a user that has an image; a negative number is for bytes that are gone."""
        self._accounts[user].bytes += size

    def _fits(self, user: Asker | None, size: int, most: int, images: int) -> bool:
        account = self._accounts.get(user)
        if account is None:
            return size <= most
        return account.bytes + size <= most and account.images + images <= self._most_images

    def _watch(self, descriptor: int) -> int | None:
        """Return the watch of a memfd; None if the system allows the daemon's user no more."""
        if self._inotify < 0:
            self._inotify = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._inotify < 0:
                self._tell_of("max_user_instances")
                return None
        path = b"/proc/self/fd/%d" % descriptor
        watch: int = _LIBC.inotify_add_watch(self._inotify, path, _IN_MOVE_SELF)
        if watch < 0:
            self._tell_of("max_user_watches")
            return None
        return watch

    def _tell_of(self, setting: str) -> None:
        if not self._is_told:
            why = os.strerror(ctypes.get_errno())
            _LOG.warning("images are not counted: %s (fs.inotify.%s)", why, setting)
        self._is_told = True

    def _sweep(self) -> None:
        """Read from the kernel which images are gone."""
        while self._watched:
            try:
                events = os.read(self._inotify, _EVENTS)
            except BlockingIOError:
                return
            for watch, mask, _, _ in _EVENT.iter_unpack(events):
                if mask & _IN_IGNORED:
                    self._end(watch)
                elif mask & _IN_Q_OVERFLOW:
                    self._look_through()

    def _look_through(self) -> None:
        """Find ended images by the watches that are left, after the kernel has dropped events."""
        text = Path(f"/proc/self/fdinfo/{self._inotify}").read_text()
        lines = (line.partition("inotify wd:")[2] for line in text.splitlines())
        watched = {int(line.split(None, 1)[0], 16) for line in lines if line}
        for watch in self._watched.keys() - watched:
            self._end(watch)

    def _end(self, watch: int) -> None:
        holding = self._watched.pop(watch, None)
        if holding is not None:
            account = self._accounts[holding.user]
            account.bytes -= holding.bytes
            account.images -= 1
            if not account.images:
                del self._accounts[holding.user]


def _most_images() -> int:
    """Return how many images one user may have, leaving watches for others."""
    try:
        watches = int(Path(_MOST_WATCHES).read_text())
    except (OSError, ValueError):  # a container without it
        return _MOST
    return max(min(_MOST, watches // _PART), 1)


#: The one of this process.
CENSUS: Final = Census()
