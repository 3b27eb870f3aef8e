"""Progress on a terminal: of one file, or of many."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from vuserd.ctl.output import printable

if TYPE_CHECKING:
    from tqdm import tqdm

#: Called with two numbers, again and again; None where standard error is no terminal.
Shown = Callable[[int, int], object] | None


def progress_of_file(name: str, *, quiet: bool = False) -> AbstractContextManager[Shown]:
    """Show one file: called with the bytes that are there, and with all that there will be."""
    return _bar(name, _show_bytes, quiet=quiet)


def progress_of_files(name: str, *, quiet: bool = False) -> AbstractContextManager[Shown]:
    """Show many files: called with how many are there, and with their bytes."""
    return _bar(name, _show_files, quiet=quiet)


def _show_bytes(bar: "tqdm[Any]", there: int, total: int) -> None:
    bar.total = total
    bar.update(there - bar.n)


def _show_files(bar: "tqdm[Any]", files: int, size: int) -> None:
    bar.set_postfix_str(f"{files} {'file' if files == 1 else 'files'}", refresh=False)
    bar.update(size - bar.n)


@contextmanager
def _bar(
    name: str, show: Callable[["tqdm[Any]", int, int], None], *, quiet: bool
) -> Iterator[Shown]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread
    bar: tqdm[Any]
    with tqdm(desc=printable(name), unit="B", unit_scale=True, unit_divisor=1024) as bar:
        yield lambda first, second: show(bar, first, second)
