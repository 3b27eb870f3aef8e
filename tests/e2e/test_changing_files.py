"""Files that change while they are fetched: each way delivers one version, or says CHANGED.

A reader knows which states the file goes through in a round, and has to get one of them exactly.
The next round begins after the last of these changes: so no state of a round before will do.

Where timestamps are coarse, no delivery of a file that has just changed is quicker than they are:
many files change there at a time.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.attacks.threats import Who, threat
from tests.e2e.changer import Change, Changers, changers
from tests.e2e.judging import FINE, judged_rounds
from tests.e2e.lane import Lane, run_lanes
from tests.e2e.rounds import LONG, repeated, rounds
from tests.e2e.ways import (
    Served,
    by_asyncio_download,
    by_asyncio_stream,
    by_download,
    by_fetch,
    by_get_r,
    by_load,
    by_read,
    by_stream,
    by_trio_download,
    by_trio_stream,
    by_vuserctl_get,
)
from tests.running import RunningDaemon
from tests.systems.conftest import without
from tests.systems.grounds import GROUNDS
from tests.systems.mounting import make_image, mounted, mounted_image, shared_folder
from tests.systems.oddtree import backed_directory, odd_file_system
from vuserd.client import Client

_WAYS: Final = (
    by_read,
    by_stream,
    by_download,
    by_fetch,
    by_load,
    by_vuserctl_get,
    by_get_r,
    by_asyncio_download,
    by_asyncio_stream,
    by_trio_download,
    by_trio_stream,
)
#: With more there would be more processes than work.
_LANES: Final = 3 if LONG else 1


class Files:
    """A folder that is exported as ``files``, and where it is changed: not always the same."""

    def __init__(self, exported: Path, changed: Path) -> None:
        self.exported, self._changed = exported, changed

    def new(self, name: str) -> tuple[str, str]:
        """Return paths for a file in a directory of its own: on the export, and on the host."""
        (self._changed / name).mkdir()
        return f"{name}/changing", str(self._changed / name / "changing")


@pytest.fixture(scope="module", params=["disk", "tmpfs"])
def fine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Files]:
    """Yield a folder with timestamps of the kernel's own clock."""
    if request.param == "disk":
        folder = tmp_path_factory.mktemp("changing")
        yield Files(folder, folder)
        return
    if os.geteuid() != 0:
        without("only root mounts file systems")
    with shared_folder("changing") as base, mounted("-t", "tmpfs", "tmpfs", base):
        yield Files(base, base)


@pytest.fixture(scope="module", params=["ext4-128", "fuse"])
def coarse(request: pytest.FixtureRequest) -> Iterator[Files]:
    """Yield a folder with timestamps of whole seconds, or of two."""
    if os.geteuid() != 0:
        without("only root mounts file systems")
    ground = GROUNDS[request.param]
    if ground.lacking():
        pytest.skip(str(ground.lacking()))
    if ground.not_installed():
        without(str(ground.not_installed()))
    with shared_folder("changing") as base, ExitStack() as stack:
        exported, changed = base / "exported", base / "changed"
        exported.mkdir()
        if request.param == "fuse":
            changed.mkdir()
            shown = backed_directory(changed, 2 * 10**9)
            stack.enter_context(odd_file_system(exported, shown))
            yield Files(exported, changed)
        else:
            image = make_image(base / "image", 1024, "mkfs.ext4", "-q", "-I", "128")
            stack.enter_context(mounted_image(image, exported))
            yield Files(exported, exported)


def serving(stack: ExitStack, files: Files, virtiofsd: str, socket: str) -> Served:
    stack.enter_context(RunningDaemon({"files": files.exported}, Path(socket), virtiofsd))
    return Served(stack.enter_context(Client.connect(socket)), socket)


@pytest.fixture(scope="module")
def served(
    fine: Files, virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with ExitStack() as stack:
        socket = str(tmp_path_factory.mktemp("changing-daemon") / "s")
        yield serving(stack, fine, virtiofsd, socket)


@pytest.fixture(scope="module")
def started() -> Iterator[Changers]:
    with changers() as started:
        yield started


@threat(
    "changing-files",
    who=Who.FILE_OWNER,
    against="who reads the file",
    does="rewrites, cuts, appends to and replaces it while it is read",
    promise="what comes is one version of it, or CHANGED",
)
@repeated
@pytest.mark.parametrize("change", Change)
@pytest.mark.parametrize("way", _WAYS, ids=lambda way: way.__name__)
def test_what_comes_is_one_version_of_it(
    served: Served,
    fine: Files,
    way: Callable[[Served, str], bytes],
    change: Change,
    started: Changers,
    request: pytest.FixtureRequest,
) -> None:
    path, on_host = fine.new(f"{abs(hash(request.node.name))}")
    came = judged_rounds(served, way, path, on_host, change, rounds(4), FINE, started)
    assert came["not judged"] <= sum(came.values()) // 2
    print(way.__name__, change, dict(came))


@pytest.mark.timeout(300 + 4 * rounds(0))
def test_so_where_timestamps_are_coarse(coarse: Files, virtiofsd: str, tmp_path: Path) -> None:
    """In every way, $VUSERD_TEST_ROUNDS rounds for each."""
    share = -(-rounds(4) // (len(Change) * _LANES))
    with ExitStack() as stack:
        served = serving(stack, coarse, virtiofsd, str(tmp_path / "s"))
        names = [
            (way.__name__, change, f"{Path(virtiofsd).parent.name}-{way.__name__}-{change}-{lane}")
            for way in _WAYS
            for change in Change
            for lane in range(_LANES)
        ]
        found = run_lanes(
            [
                Lane(served.socket, way, change, *coarse.new(name), share)
                for way, change, name in names
            ]
        )
    for way, (came, faults) in found.items():
        print(way, dict(came), faults)
    assert [faults for _, faults in found.values() if faults] == []
    for came, _ in found.values():
        assert came["before"] + came["after"]
        assert came["not judged"] <= sum(came.values()) // 2
