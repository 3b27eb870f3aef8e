"""What tests of several folders share: the real backends, a daemon of their own, an order."""

import contextlib
import gc
import importlib
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import hypothesis
import pytest

from tests.covering import Covering
from tests.e2e.started_once import stop_shared
from tests.forking import stop_template
from tests.reports import tell_less
from tests.running import REPOSITORY, RunningDaemon, adopt_orphans, find_backend, leftovers

# How long an example takes tells of a machine that is busy, and of nothing else.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--covering", help="with --cov: folders and files of the tests that count")


def pytest_configure(config: pytest.Config) -> None:
    covering = config.getoption("--covering")
    works = hasattr(config, "workerinput")
    if works:
        tell_less(config)
    if covering and (works or not config.getoption("numprocesses", None)):
        config.pluginmanager.register(Covering(config, covering))


_folders: Final = itertools.count()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new folder, as pytest's own fixture does, but without a link to the newest one.

    For thousands of tests, to make and remove that link takes seconds.
    """
    name = re.sub(r"\W", "_", request.node.name)[:30]
    return tmp_path_factory.mktemp(f"{name}{next(_folders)}", numbered=False)


@pytest.fixture(scope="session", params=["rust", "c"])
def virtiofsd(request: pytest.FixtureRequest) -> str:
    """Each real virtiofsd in turn; skipped where this machine has none of its kind."""
    kind: str = request.param
    return _backend(kind)


@pytest.fixture(scope="session")
def rust_virtiofsd() -> str:
    return _backend("rust")


def _backend(kind: str) -> str:
    program = find_backend(kind)
    if program is not None:
        return program
    reason = f"no {kind} virtiofsd on this machine: make backends"
    if kind in os.environ.get("VUSERD_TEST_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def daemon(virtiofsd: str, tmp_path: Path) -> Iterator[RunningDaemon]:
    """Serve the folder ``files`` of ``tmp_path`` as the export ``files``."""
    files = tmp_path / "files"
    files.mkdir()
    with RunningDaemon({"files": files}, tmp_path / "vuserd.sock", virtiofsd) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Fail the run when it leaves a process or a descriptor behind."""
    adopt_orphans()
    before = leftovers()
    yield
    stop_template()
    stop_shared()
    gc.collect()  # a fake backend and its own methods keep each other
    assert leftovers() == before


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import test modules, in an order that begins elsewhere in each of several processes.

    In a fresh clone pytest rewrites all of them: so each is rewritten once, not by each process.
    Nothing of it is garbage, and to look for some again and again takes a sixth of the time.
    """
    gc.disable()
    worker = getattr(session.config, "workerinput", None)
    if worker is None:
        return
    wanted = [Path(argument.partition("::")[0]).absolute() for argument in session.config.args]
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        if (path.parent / "__init__.py").exists()  # else pytest calls it something else
        and any(path.is_relative_to(each) for each in wanted)
    ]
    begin = len(modules) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for module in modules[begin:] + modules[:begin]:
        # What fails, or skips itself, does so again when it is collected.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(module)


def pytest_collection_finish() -> None:
    """Keep the cycle collector from scanning thousands of tests again: they live to the end."""
    if not gc.get_freeze_count():  # a test may collect others in this process
        gc.collect()
        gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where files go to several processes, have the long ones go first: else one is left alone."""
    if hasattr(config, "workerinput"):
        seconds: defaultdict[Path, float] = defaultdict(float)
        for item in items:
            seconds[item.path] += 5 if item.get_closest_marker("slow") else 0.03
        items.sort(key=lambda item: -seconds[item.path])
