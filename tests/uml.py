"""User-mode Linux for tests: the kernel, its modules, and what a program in it sees of a tree."""

import functools
import itertools
import os
import re
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.once import one_at_a_time
from tests.running import REPOSITORY

#: Writes down a tree: the names, each with a NUL; then, in the same order, what stat(1) has of
#: each, the sums of files, and the targets of symlinks.
SCRIPT: Final = """\
cd {where} || exit 1
echo NAMES; find . -mindepth 1 -print0; echo
echo STATS; find . -mindepth 1 -exec stat -c '%f %s %h %u %g %Y %t %T' {{}} +
echo FILES; find . -type f -print0; echo
echo SUMS; find . -type f -exec sha256sum {{}} +
echo LINKS; find . -type l -print0; echo
echo TARGETS; find . -type l -exec stat -c %N {{}} +
echo END
"""
_SECTIONS: Final = ("NAMES", "STATS", "FILES", "SUMS", "LINKS", "TARGETS", "END")


#: The status of tools/find-rig where nothing that could be installed would help.
_WRONG_PROCESSOR: Final = 3


@functools.cache
def _find_rig() -> tuple[int, str]:
    """Return the status of tools/find-rig, and the folder or the reason."""
    with one_at_a_time("find-rig"):
        done = subprocess.run(
            [REPOSITORY / "tools/find-rig"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    told = done.stderr if done.returncode else done.stdout
    return done.returncode, told.strip().rpartition("\n")[2]


def rig_folder() -> Path:
    """Return what tools/find-rig prints; skip the test where it cannot be had."""
    status, told = _find_rig()
    if not status:
        return Path(told)
    is_required = "uml" in os.environ.get("VUSERD_TEST_REQUIRE", "").split(",")
    if is_required and status != _WRONG_PROCESSOR:
        pytest.fail(told)
    pytest.skip(f"no rig on this machine: {told}")


class Seen(NamedTuple):
    """A file as a program in the rig sees it; times are in seconds."""

    mode: int
    size: int
    nlink: int
    uid: int
    gid: int
    mtime: int
    rdev: int
    sha256: str = ""  #: of a file
    target: bytes = b""  #: of a symlink


def what_was_seen(console: bytes) -> dict[bytes, Seen]:
    """Read what SCRIPT has written on a rig's console."""
    text = console.replace(b"\r\n", b"\n")  # as the terminal has it
    marks = [re.search(rb"^%s$" % name.encode(), text, re.MULTILINE) for name in _SECTIONS]
    assert None not in marks, text[-2000:].decode(errors="replace")
    ends = [mark.span() for mark in marks if mark is not None]
    names, stats, files, sums, links, targets = (
        text[before[1] + 1 : after[0]] for before, after in itertools.pairwise(ends)
    )
    found: dict[bytes, Seen] = {}
    lines = stats.splitlines()
    for name, line in zip(_split(names), lines, strict=True):
        mode, size, nlink, uid, gid, mtime, major, minor = line.split()
        found[name[2:]] = Seen(
            int(mode, 16),
            int(size),
            int(nlink),
            int(uid),
            int(gid),
            int(mtime),
            os.makedev(int(major, 16), int(minor, 16)),
        )
    for name in _split(files):
        sum_, sums = sums[:64], sums[64 + len(b"  ") + len(name) + 1 :]
        found[name[2:]] = found[name[2:]]._replace(sha256=sum_.decode())
    assert not sums
    for name in _split(links):
        begin = b"'%s' -> '" % name
        assert targets.startswith(begin)
        target, _, targets = targets[len(begin) :].partition(b"'\n")
        found[name[2:]] = found[name[2:]]._replace(target=target)
    assert not targets
    return found


def _split(names: bytes) -> list[bytes]:
    return names.removesuffix(b"\n").split(b"\0")[:-1]
