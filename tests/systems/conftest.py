"""Real file systems for the session, and for each backend a daemon that exports them all."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests.e2e.ways import Served
from tests.running import RunningDaemon
from tests.systems.grounds import GROUNDS
from tests.systems.mounting import MountFailedError, shared_folder
from vuserd.client import Client


def without(reason: str) -> NoReturn:
    """Skip what this machine lacks; fail where $VUSERD_TEST_REQUIRE has ``systems``."""
    if "systems" in os.environ.get("VUSERD_TEST_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _root() -> Iterator[None]:
    """Take root, and unmount everything even where the run is terminated."""
    if os.geteuid() != 0:
        without("only root mounts file systems")

    us = os.getpid()

    def end(number: int, _frame: object) -> None:
        if os.getpid() != us:  # a child that was forked, and has nothing to unmount
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        pytest.exit("terminated")

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def base(_root: None) -> Iterator[Path]:
    """Yield a folder whose mounts reach the backends."""
    with shared_folder("test") as folder:
        yield folder


@pytest.fixture(scope="session")
def grounds(_root: None) -> Iterator[dict[str, Path | str]]:
    """Yield where each of GROUNDS is mounted, or why it is not."""
    with ExitStack() as stack, shared_folder("work") as work:
        base = stack.enter_context(shared_folder("grounds"))
        places: dict[str, Path | str] = {}
        for name, ground in GROUNDS.items():
            lacking = ground.lacking() or ground.not_installed()
            if lacking is not None:
                places[name] = lacking
                continue
            place, folder = base / name, work / name
            place.mkdir()
            folder.mkdir()
            try:
                stack.enter_context(ground.mount(folder, place))
            except MountFailedError as error:
                places[name] = str(error)
            else:
                places[name] = place
        yield places


class Everywhere:
    """For each backend a daemon with an export for each ground, by its name; started once."""

    def __init__(self, exports: dict[str, Path], folder: Path, stack: ExitStack) -> None:
        self._exports, self._folder, self._stack = exports, folder, stack
        self._served: dict[str, Served] = {}

    def served_by(self, virtiofsd: str) -> Served:
        if virtiofsd not in self._served:
            socket = str(self._folder / f"s{len(self._served)}")
            self._stack.enter_context(RunningDaemon(self._exports, Path(socket), virtiofsd))
            client = self._stack.enter_context(Client.connect(socket))
            self._served[virtiofsd] = Served(client, socket)
        return self._served[virtiofsd]


@pytest.fixture(scope="session")
def everywhere(
    grounds: dict[str, Path | str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Everywhere]:
    exports = {name: place for name, place in grounds.items() if isinstance(place, Path)}
    with ExitStack() as stack:
        yield Everywhere(exports, tmp_path_factory.mktemp("systems"), stack)


@pytest.fixture(scope="session", params=[name for name in GROUNDS if not GROUNDS[name].lacking()])
def ground(request: pytest.FixtureRequest, grounds: dict[str, Path | str]) -> Path:
    """Return where each ground is mounted, in turn; its name is that of the export, too."""
    name: str = request.param
    place = grounds[name]
    if isinstance(place, Path):
        return place
    without(f"{name}: {place}")


@pytest.fixture
def served(ground: Path, everywhere: Everywhere, virtiofsd: str) -> Served:
    return everywhere.served_by(virtiofsd)._replace(export=ground.name)
