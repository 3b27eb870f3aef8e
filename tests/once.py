"""Folders that take long to make: made once for a checkout, by the first process that wants one."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CACHE: Final = Path(__file__).parent.parent / ".cache"


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder in ``.cache``, which ``make`` has made, now or in an earlier run.

    ``make`` is given a path where nothing is, and makes a folder there. Who only reads it may share
    it with all others; ``make clean`` removes it.
    """
    folder = _CACHE / name
    with one_at_a_time(name):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # of a run that was ended meanwhile
            make(part)
            part.rename(folder)
    return folder


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Be the only process in a block of this name, of all that run in this checkout."""
    _CACHE.mkdir(exist_ok=True)
    with open(_CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
