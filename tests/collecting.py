"""Tests that carry rows of a table in the documentation, collected without being run."""

from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parent.parent
#: Plugins that belong to a whole process, where a run of the tests may have them already.
_NOT_WANTED: Final = ("cacheprovider", "capture", "faulthandler", "xdist")


class _Collector:
    """A plugin for pytest that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep the tests."""
        self.items = session.items


def tests_that_import(module: str, folder: str) -> list[pytest.Item]:
    """Collect the tests of all files under tests/ that name a module; those of ``folder`` first.

    A run of the tests may do that in its own process: nothing is changed for what is run.
    """
    collector = _Collector()
    marked = [
        str(path)
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        if module in path.read_text()
    ]
    marked.sort(key=lambda path: not path.startswith(str(REPOSITORY / folder)))
    quiet = ["--collect-only", "-qqq", f"--rootdir={REPOSITORY}", "-o", "addopts="]
    quiet += [f"-pno:{plugin}" for plugin in _NOT_WANTED]
    status = pytest.main([*quiet, *marked], plugins=[collector])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests could not be collected: {status!r}")
    return collector.items
