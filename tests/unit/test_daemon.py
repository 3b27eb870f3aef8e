"""The daemon: what it tells the service manager, and how its configuration changes."""

import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from vuserd.config.model import ClientLimits, DaemonConfig, ListenConfig
from vuserd.daemon import Daemon
from vuserd.errors import CallError, ConfigurationError
from vuserd.exports.states import ExportState
from vuserd.service.systemd import Notifier


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
    await trio.sleep(0.5)
    assert manager.words == ["alive"] * 5
    nursery.cancel_scope.cancel()


class SomeExports(dict[str, SomeExport]):
    """Exports that say when one of them has changed."""

    def __init__(self, *names: str) -> None:
        super().__init__((name, SomeExport()) for name in names)
        self.watchers = trio.lowlevel.ParkingLot()

    async def changed(self) -> None:
        await self.watchers.park()


async def test_states_are_told_as_they_change(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    manager = Heard()
    daemon = Daemon(lambda: DaemonConfig((), ()), notifier=manager)
    exports: Any = SomeExports("one", "two")
    daemon._exports = exports
    daemon._said = daemon._summary()
    nursery.start_soon(daemon._tell_states)
    await trio.testing.wait_all_tasks_blocked()
    exports["two"].state = ExportState.RESTARTING
    mock_clock.jump(3600)
    await trio.testing.wait_all_tasks_blocked()
    assert manager.words == []  # it is not looked for
    for _ in range(2):
        exports.watchers.unpark_all()
        await trio.testing.wait_all_tasks_blocked()
        assert manager.words == ["1 of 2 exports up; two restarting"]
    nursery.cancel_scope.cancel()


async def test_nobody_is_pinged_who_does_not_watch(mock_clock: trio.testing.MockClock) -> None:
    del mock_clock
    daemon = Daemon(lambda: DaemonConfig((), ()))
    with trio.fail_after(1):
        await daemon._ping()


class SlowExports(dict[str, SomeExport]):
    """Exports that take their time to become others."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = trio.Event()
        self.may_go_on = trio.Event()
        self.may_go_on.set()

    async def apply(self, _: object) -> list[str]:
        self.asked.set()
        await self.may_go_on.wait()
        return ["changed"]

    async def replace(self, name: str) -> list[str]:
        return [name]

    async def changed(self) -> None:
        await trio.sleep_forever()

    def stop(self) -> None:
        pass


class Serving:
    """A daemon whose configuration can be changed, and whose exports take their time."""

    def __init__(self, address: str) -> None:
        self.config = DaemonConfig((ListenConfig(address),), (), drain=0.1)
        self.daemon = Daemon(lambda: self.config)
        self.exports = SlowExports()

    def slow_down(self) -> None:
        exports: Any = self.exports
        self.daemon._exports = exports
        self.exports.may_go_on = trio.Event()


@pytest.fixture
async def serving(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Serving]:
    made = Serving(str(tmp_path / "s"))
    await nursery.start(made.daemon.run)
    yield made
    made.exports.may_go_on.set()
    made.daemon.stop()


async def test_a_change_is_made_whole_though_who_asked_for_it_is_gone(serving: Serving) -> None:
    serving.slow_down()
    serving.config = replace(serving.config, limits=ClientLimits(requests=7), drain=1.5)
    async with trio.open_nursery() as asking:
        asking.start_soon(serving.daemon.reload)
        await serving.exports.asked.wait()
        asking.cancel_scope.cancel()
        serving.exports.may_go_on.set()
    assert serving.daemon._server.limits.requests == 7
    with trio.fail_after(5):
        assert await serving.daemon.reload() == ["changed"]  # and nothing else is left to do


async def test_a_reload_without_a_thread_is_refused(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(trio.to_thread, "run_sync", fail)
        with pytest.raises(ConfigurationError, match=r"not read: can't start new thread"):
            await serving.daemon.reload()
    assert await serving.daemon.reload() == []


async def test_at_the_end_nothing_is_changed_any_more(serving: Serving) -> None:
    serving.slow_down()
    with trio.fail_after(5):
        serving.exports.may_go_on.set()
        serving.daemon.stop()
        for change in (serving.daemon.reload(), serving.daemon.reload_export("one")):
            with pytest.raises(CallError, match="about to end") as refused:
                await change
            assert refused.value.code == "SHUTTING_DOWN"
    assert not serving.exports.asked.is_set()


async def test_a_change_that_takes_for_ever_does_not_keep_the_daemon(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """It waits for a backend that does not answer, say; nobody is left to want what it brings."""
    serving = Serving(str(tmp_path / "s"))
    with trio.fail_after(5):
        async with trio.open_nursery() as running:
            await running.start(serving.daemon.run)
            serving.slow_down()
            nursery.start_soon(refused_at_the_end, serving)
            await serving.exports.asked.wait()
            serving.daemon.stop()


async def test_a_configuration_that_cannot_be_read_does_not_keep_the_daemon(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """Its file system does not answer."""
    answers = threading.Event()
    serving = Serving(str(tmp_path / "s"))
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as running:
                await running.start(serving.daemon.run)
                reading = trio.Event()
                token = trio.lowlevel.current_trio_token()

                def read() -> DaemonConfig:
                    token.run_sync_soon(reading.set)
                    answers.wait()
                    return serving.config

                serving.daemon._read = read
                nursery.start_soon(refused_at_the_end, serving)
                await reading.wait()
                serving.daemon.stop()
    finally:
        answers.set()


async def refused_at_the_end(serving: Serving) -> None:
    with pytest.raises(CallError, match="about to end"):
        await serving.daemon.reload()
