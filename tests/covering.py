"""A plugin beside pytest-cov: only tests of some files are traced, no others are slowed down."""

import os
from collections.abc import Iterator
from typing import Any, Final

import coverage
import pytest

_ENVIRONMENT: Final = "COVERAGE_PROCESS_CONFIG"


class Covering:
    """Trace only tests below some paths, and their subprocesses."""

    def __init__(self, config: pytest.Config, paths: str) -> None:
        self._paths = tuple(str(config.rootpath / path) for path in paths.split())
        self._traces = True  # what is imported while tests are collected

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Start or stop the tracer where the test before was of the other kind."""
        counts = any(str(item.path).startswith(path) for path in self._paths)
        if counts != self._traces:
            self._traces = counts
            controller: Any = item.config.pluginmanager.getplugin("_cov").cov_controller
            if counts:
                controller.resume()
            else:
                controller.pause()
                # Below it another one waits that has begun with the process.
                while (below := coverage.Coverage.current()) is not None:
                    below.stop()
                os.environ.pop(_ENVIRONMENT, None)  # resume() sets it again
        yield
