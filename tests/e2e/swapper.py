"""A process that keeps exchanging names for each other, and does nothing else.

Each argument is one exchange: ``A:B``, by renameat2(2) with RENAME_EXCHANGE, at one stroke, so that
at no moment one of the two is missing.  It prints a line when it has begun, goes on until its
standard input ends, and then prints how many exchanges there were.
"""

import ctypes
import itertools
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import REPOSITORY

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class Swapper:
    """The process, from the side that started it; ``swaps`` is known after the block."""

    swaps = 0


@contextmanager
def swapping(pairs: list[tuple[Path, Path]]) -> Iterator[Swapper]:
    """Exchange the two names of each pair in turn, for the block's time."""
    arguments = [f"{one}:{other}" for one, other in pairs]
    command = [sys.executable, "-m", "tests.e2e.swapper", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        swapper = Swapper()
        try:
            assert process.stdout.readline() == "begun\n"
            yield swapper
        finally:
            process.stdin.close()
            told = process.stdout.readline()
            status = process.wait(timeout=20)
        assert status == 0
        swapper.swaps = int(told)


def exchange(one: str, other: str) -> None:
    """Exchange two names for each other."""
    failed = _LIBC.renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one, None, other)


def main() -> None:
    """Exchange names until standard input ends; each pair an even number of times."""
    pairs = [argument.split(":") for argument in sys.argv[1:]]
    ended = select.poll()
    ended.register(sys.stdin, select.POLLIN | select.POLLHUP)
    print("begun", flush=True)
    for count in itertools.count(1):
        for one, other in pairs:
            exchange(one, other)
        if count % 64 == 0 and ended.poll(0):
            print(count * len(pairs), flush=True)
            return


if __name__ == "__main__":
    main()
