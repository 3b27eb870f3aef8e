"""A plugin beside pytest-cov: only some tests are traced, no others are slowed down.

A tracer makes a test take twice as long, and the hundredth set of parameters reaches what others
have reached before: of a test function that is marked as ``alike`` only some sets are traced, eight
of them, or as many as the mark says: none where what others reach is done again a thousand times.
What runs with each virtiofsd in turn is traced with the Rust one.
"""

import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import coverage
import pytest

_ENVIRONMENT: Final = "COVERAGE_PROCESS_CONFIG"
#: So many sets as a rule, by the checksums of their names: of all kinds, the same in each run.
_SETS: Final = 8


class Covering:
    """Trace only tests below some paths, few of those that are alike, and their subprocesses."""

    def __init__(self, config: pytest.Config, paths: str) -> None:
        self._paths = tuple(str(config.rootpath / path) for path in paths.split())
        if gone := [path for path in self._paths if not os.path.exists(path)]:
            raise pytest.UsageError(f"--covering: no such file or folder: {', '.join(gone)}")
        self._traces = True  # what is imported while tests are collected
        self._counting: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Choose the tests that count."""
        alike: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        for item in session.items:
            if not str(item.path).startswith(self._paths) or _has_c_virtiofsd(item):
                continue
            if (mark := item.get_closest_marker("alike")) is None:
                self._counting.add(item.nodeid)
            else:
                [sets] = mark.args or [_SETS]
                alike[item.nodeid.partition("[")[0], sets].append(item.nodeid)
        for (_, sets), names in alike.items():
            names.sort(key=lambda name: zlib.crc32(name.encode()))
            self._counting.update(names[:sets])

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Start or stop the tracer where the test before was of the other kind."""
        counts = item.nodeid in self._counting
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


def _has_c_virtiofsd(item: pytest.Item) -> bool:
    """Return whether the test has the C virtiofsd where another run of it has the Rust one."""
    return isinstance(item, pytest.Function) and (
        hasattr(item, "callspec") and item.callspec.params.get("virtiofsd") == "c"
    )
