"""An idle daemon does nothing: it is not even woken."""

import time
from pathlib import Path

import pytest

from tests.e2e.processes import family
from tests.running import RunningDaemon
from vuserd.client import Client

#: Seconds for what the last call left behind, such as a thread that waits for more work.
_SETTLED = 20.0
#: Seconds without any wake-up: more than all periods that a daemon might have by habit.
_QUIET = 4.0


def time_run(process: int) -> int:
    """Return for how many nanoseconds the threads of a process, and of its descendants, have run.

    One that is woken has run, and so has one that never sleeps.
    """
    return sum(
        int(schedule.read_text().split()[0])
        for each in family(process)
        for schedule in Path(f"/proc/{each}/task").glob("*/schedstat")
    )


@pytest.mark.slow
def test_nothing_wakes_an_idle_daemon(virtiofsd: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "Image").write_bytes(b"kernel")
    (folder / "large").write_bytes(bytes(5 << 20))
    for number in range(500):
        (folder / f"{number}").touch()
    gone = tmp_path / "gone"
    gone.mkdir()
    exports = {"files": folder, "gone": gone}
    with RunningDaemon(exports, tmp_path / "s", virtiofsd, "--timeout", "2") as daemon:
        with Client.connect(daemon.socket) as client:
            assert client.stat("gone", "").type == "dir"
            gone.rmdir()  # and nobody looks for it
            for _ in range(10):
                with client.fetch("files", "Image") as image:
                    assert bytes(image.buffer()) == b"kernel"
            assert len(list(client.tree("files", ""))) == 502
            assert len(list(client.iterdir("files", "", attrs=True))) == 502
            assert len(client.read("files", "large", 0, 5 << 20)) == 5 << 20  # at once
        deadline = time.monotonic() + _SETTLED
        while True:
            before = time_run(daemon.process.pid)
            time.sleep(_QUIET)
            run = time_run(daemon.process.pid) - before
            if not run:
                break
            assert time.monotonic() < deadline, f"run for {run} ns in {_QUIET:g} s"
        with Client.connect(daemon.socket) as client:
            assert client.read("files", "Image", 0, 16) == b"kernel"
