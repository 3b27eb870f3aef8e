"""What the daemon tells the service manager while it serves."""

from typing import Any

import trio
import trio.testing

from vuserd.config.model import DaemonConfig
from vuserd.daemon import Daemon
from vuserd.fs.export import ExportState
from vuserd.systemd import Notifier


class Heard(Notifier):
    """A service manager that writes down what it is told."""

    def __init__(self) -> None:
        super().__init__(None, watchdog_interval=0.5)
        self.words: list[str] = []

    def watchdog(self) -> None:
        self.words.append("alive")

    def status(self, text: str) -> None:
        self.words.append(text)


class SomeExport:
    """An export as far as the daemon looks at it."""

    def __init__(self) -> None:
        self.state = ExportState.UP
        self.progress = True

    def makes_progress(self) -> bool:
        return self.progress


async def test_the_watchdog_hears_of_progress_alone(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    manager = Heard()
    daemon = Daemon(lambda: DaemonConfig((), ()), notifier=manager)
    exports: dict[str, Any] = {"one": SomeExport(), "two": SomeExport()}
    daemon._exports = exports  # type: ignore[assignment]
    nursery.start_soon(daemon._ping)
    await trio.sleep(2.1)
    assert manager.words == ["alive"] * 4
    exports["two"].progress = False  # its tasks do not run: no timer of the backend's can help
    await trio.sleep(5)
    assert manager.words == ["alive"] * 4
    exports["two"].progress = True
    exports["two"].state = ExportState.RESTARTING
    await trio.sleep(0.5)
    assert manager.words[4:] == ["alive", "1 of 2 exports up; two restarting"]
    nursery.cancel_scope.cancel()
