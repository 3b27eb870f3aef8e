"""Network namespaces that a test makes, and visitors in them: see tests/e2e/visitor.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

from pyroute2 import netns

from tests.running import REPOSITORY


class User(NamedTuple):
    """Who a visitor is."""

    uid: int
    gid: int
    groups: Sequence[int] = ()


ROOT = User(0, 0)


class Visitor:
    """A process that calls the daemon as another user, perhaps in another network namespace."""

    def __init__(self, user: User, address: str = "", namespace: str = "") -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
        for name in ("VUSERD_SOCKET", "XDG_RUNTIME_DIR"):
            environment.pop(name, None)
        path = f"/run/netns/{namespace}" if namespace else ""
        groups = ",".join(map(str, user.groups))
        who = [path, str(user.uid), str(user.gid), groups, address]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.visitor", *who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | {"PYTHONPATH": str(REPOSITORY)},
            text=True,
        )

    def ask(self, method: str, *arguments: Any) -> tuple[str, Any]:
        """Call a method; return ``("ok", result)`` or ``("error", code)``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        kind, value = json.loads(self._process.stdout.readline())
        return kind, value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=20)


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """Make a network namespace for the block's time, with a name of this process's own."""
    own = f"vuserd-test-{os.getpid()}-{name}"
    netns.create(own)
    try:
        yield own
    finally:
        if own in netns.listnetns():
            netns.remove(own)
