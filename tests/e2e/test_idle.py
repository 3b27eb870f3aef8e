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


def wakes(process: int) -> int:
    """Count how often the threads of a process, and of all that descend from it, went to sleep."""
    return sum(
        int(line.split()[1])
        for each in family(process)
        for status in Path(f"/proc/{each}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


@pytest.mark.slow
def test_nothing_wakes_an_idle_daemon(virtiofsd: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "Image").write_bytes(b"kernel")
    gone = tmp_path / "gone"
    gone.mkdir()
    exports = {"files": folder, "gone": gone}
    with RunningDaemon(exports, tmp_path / "s", virtiofsd) as daemon:
        with Client.connect(daemon.socket) as client:
            assert client.stat("gone", "").type == "dir"
            gone.rmdir()  # and nobody looks for it
            for _ in range(10):
                with client.fetch("files", "Image") as image:
                    assert bytes(image.buffer()) == b"kernel"
        deadline = time.monotonic() + _SETTLED
        while True:
            before = wakes(daemon.process.pid)
            time.sleep(_QUIET)
            woken = wakes(daemon.process.pid) - before
            if not woken:
                break
            assert time.monotonic() < deadline, f"woken {woken} times in {_QUIET:g} s"
        with Client.connect(daemon.socket) as client:
            assert client.read("files", "Image", 0, 16) == b"kernel"
