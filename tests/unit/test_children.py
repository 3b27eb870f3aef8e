"""Orphans are reaped, but no process that this one started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.running import REPOSITORY
from vuserd.backend.children import Children

#: Forks a process that forks another, which outlives it: as the kernel tells, that one's number.
_ORPHAN = "import os, sys; pid = os.fork(); pid or os._exit(0); print(pid)"


async def orphan(children: Children) -> int:
    """Leave a process without its parent; it ends at once, or has ended."""
    with children.starting():
        made = await trio.run_process(
            [sys.executable, "-I", "-S", "-c", _ORPHAN], capture_stdout=True
        )
    return int(made.stdout)


def is_there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


async def gone(process: int) -> None:
    with trio.fail_after(10):
        while is_there(process):  # noqa: ASYNC110 - the kernel tells nobody but the reaper
            await trio.sleep(0.001)


async def test_orphans_are_reaped_and_ours_are_not() -> None:
    """The suite is a subreaper: see tests.running.adopt_orphans."""
    children = Children()
    with subprocess.Popen(["sh", "-c", "exit 7"]) as ours:  # noqa: ASYNC220
        children.add(ours.pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(children.reap_orphans)
            for _ in range(3):
                await gone(await orphan(children))
            assert is_there(ours.pid)
            nursery.cancel_scope.cancel()
        assert ours.wait() == 7


async def test_nothing_is_reaped_while_a_process_is_started() -> None:
    children = Children()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(children.reap_orphans)
        with children.starting(), children.starting():
            left = await orphan(children)
            await trio.sleep(0.05)
            assert is_there(left)
        await gone(left)
        nursery.cancel_scope.cancel()


async def test_what_nobody_waits_for_any_more_is_reaped() -> None:
    children = Children()
    process = os.posix_spawn("/bin/true", ["true"], {})  # noqa: ASYNC221
    children.add(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(children.reap_orphans)
        await trio.sleep(0.05)
        assert is_there(process)
        children.remove(process)
        await gone(process)
        nursery.cancel_scope.cancel()


def test_a_process_that_inherits_no_orphans_does_nothing() -> None:
    program = (
        "import trio; from vuserd.backend.children import CHILDREN;"
        " trio.run(CHILDREN.reap_orphans); print('done')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=REPOSITORY,
    )
    assert ended.stdout == "done\n"


async def test_without_proc_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> list[str]:
        raise PermissionError

    monkeypatch.setattr("vuserd.backend.children.os.listdir", refuse)
    children = Children()
    with trio.move_on_after(0.05) as patience:
        await children.reap_orphans()
    assert patience.cancelled_caught
