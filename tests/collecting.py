"""Tests that carry rows of a table in the documentation, collected without being run."""

import os
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parent.parent


class _Collector:
    """A plugin for pytest that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep the tests."""
        self.items = session.items


def tests_that_import(module: str, folder: str) -> list[pytest.Item]:
    """Collect the tests of all files under tests/ that name a module; those of ``folder`` first."""
    collector = _Collector()
    marked = [
        str(path.relative_to(REPOSITORY))
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        if module in path.read_text()
    ]
    marked.sort(key=lambda path: not path.startswith(folder))
    os.chdir(REPOSITORY)
    quiet = ["--collect-only", "-qqq", "-p", "no:cacheprovider", "-o", "addopts="]
    status = pytest.main([*quiet, *marked], plugins=[collector])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests could not be collected: {status!r}")
    return collector.items
