"""What pytest loads: options, a marker, and fixtures. It imports vuserd only for who uses them."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import os

    from vuserd.client import Client
    from vuserd.integrations.pytest.daemon import Serve, Served, SessionDaemon


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    text = "the virtiofsd for tests: rust, c, or the path of a program (default: the first found)"
    parser.getgroup("vuserd").addoption("--vuserd-backend", metavar="BACKEND", help=text)
    parser.addini("vuserd_backend", text)
    parser.addini(
        "vuserd_missing",
        "what tests do for which this machine has no virtiofsd: fail (default) or skip",
        default="fail",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "vuserd(backend): serve what the test serves by this virtiofsd: rust, c, or a path",
    )


@pytest.fixture(scope="session")
def vuserd(pytestconfig: pytest.Config) -> "Iterator[SessionDaemon]":
    """Run a daemon for the session: ``with vuserd.serve(DIR) as served: ...``, ``vuserd.socket``.

    There is one for each process that runs tests.
    """
    from vuserd.integrations.pytest.daemon import SessionDaemon

    backend = pytestconfig.getoption("vuserd_backend") or pytestconfig.getini("vuserd_backend")
    skips = pytestconfig.getini("vuserd_missing") == "skip"
    without = pytest.skip.Exception if skips else partial(pytest.fail.Exception, pytrace=False)
    with SessionDaemon(backend or None, without) as daemon:
        pytestconfig.pluginmanager.register(_LogInReports(daemon))
        yield daemon


@pytest.fixture
def vuserd_client(vuserd: "SessionDaemon") -> "Iterator[Client]":
    """Return a client of the session's daemon."""
    with vuserd.connect() as client:
        yield client


@pytest.fixture
def vuserd_serve(request: pytest.FixtureRequest, vuserd: "SessionDaemon") -> "Iterator[Serve]":
    """Serve directories until the end of the test: ``served = vuserd_serve(DIR, "kernels")``.

    ``served`` has ``export``, its name, ``socket`` and ``client``. Each call is one more export.
    """
    marker = request.node.get_closest_marker("vuserd")
    marked = _marked(*marker.args, **marker.kwargs) if marker else None
    with ExitStack() as all_served:

        def serve(
            directory: "str | os.PathLike[str]",
            export: str | None = None,
            *,
            backend: str | None = None,
        ) -> "Served":
            served = vuserd.serve(directory, export, backend=backend or marked)
            return all_served.enter_context(served)

        yield serve


def _marked(backend: str) -> str:
    """Return the argument of a marker."""
    return backend


class _LogInReports:
    """A plug-in that is there once the daemon runs: it shows its log where a test fails."""

    def __init__(self, daemon: "SessionDaemon") -> None:
        self._daemon = daemon
        self._shown = 0

    def pytest_runtest_logstart(self) -> None:
        """Remember where the log of this test begins."""
        self._shown = self._daemon.log_size

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self,
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add what was logged since the test began."""
        report = yield
        if report.failed and (log := self._daemon.log(self._shown)):
            report.sections.append(("vuserd log", log))
        return report
