"""The states of an export: their table, the page that shows it, and a life for each transition."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from tests import states
from vuserd.backend.adopted import AdoptedBackend
from vuserd.backend.find import BackendKind, Program
from vuserd.config.model import Access, Account, ExportConfig
from vuserd.errors import BackendDown
from vuserd.exports import life
from vuserd.exports.directory import Sight, Standing
from vuserd.exports.export import Export
from vuserd.exports.life import Life
from vuserd.exports.serving import Serving
from vuserd.exports.starting import DirectoryGone
from vuserd.exports.states import CALLS_WAIT, TRANSITIONS, Event, ExportState, is_final, next_state
from vuserd.tracing.tap import Tracing

PROGRAM: Final = Program("/usr/libexec/virtiofsd", BackendKind.RUST, "1")
HERE: Final = Standing(1, 0, 1, 1)
OTHER: Final = Standing(1, 0, 1, 2)

Transition: TypeAlias = tuple[ExportState, Event]

# --- the table ------------------------------------------------------------------------------------


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert states.main(["--check"]) == 0, capsys.readouterr().out


def test_each_state_has_its_line() -> None:
    assert set(TRANSITIONS) == set(ExportState)


def test_each_state_is_reached() -> None:
    reached = {ExportState.STARTING}
    for _ in ExportState:
        reached |= {target for state in reached for target in TRANSITIONS[state].values()}
    assert reached == set(ExportState)


def test_each_event_leads_to_one_state_or_keeps_an_adopted_export_apart() -> None:
    for event in Event:
        targets = {ways[event] for ways in TRANSITIONS.values() if event in ways}
        kept_apart = {ExportState.ABSENT} if event is Event.RETRY else set()
        assert len(targets - kept_apart) == 1, event


def test_nothing_leads_out_of_the_last_state_and_all_others_can_be_stopped() -> None:
    final = {state for state in ExportState if is_final(state)}
    assert final == {ExportState.STOPPED}
    for state in set(ExportState) - final:
        assert next_state(state, Event.STOP) is ExportState.STOPPED
    assert not final & CALLS_WAIT


@pytest.mark.parametrize("state", ExportState)
def test_what_the_table_lacks_is_a_fault_of_the_daemon(state: ExportState) -> None:
    for event in set(Event) - set(TRANSITIONS[state]):
        with pytest.raises(RuntimeError, match=f"an export that is {state}: {event.value}"):
            next_state(state, event)


# --- calls that wait for a state ------------------------------------------------------------------


async def test_an_event_wakes_calls_and_is_told(autojump_clock: MockClock) -> None:  # noqa: ARG001
    told: list[ExportState] = []
    alive = Life("files", lambda: told.append(alive.state))
    assert not alive.settled.is_set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alive.wait_changed, trio.current_time() + 10)
        await trio.sleep(1)
        assert alive.waiting == 1
        alive.happen(Event.SERVING)
    assert told == [ExportState.UP]
    assert alive.settled.is_set()
    with pytest.raises(BackendDown, match=r"^export files is up$"):
        await alive.wait_changed(trio.current_time() + 10)


@pytest.mark.parametrize("event", [Event.RETRY, Event.GIVE_UP, Event.DIRECTORY_GONE, Event.STOP])
async def test_where_no_backend_comes_a_call_does_not_wait(event: Event) -> None:
    alive = Life("files", lambda: None)
    alive.happen(event, "no luck")
    with pytest.raises(BackendDown, match=f"^export files is {alive.state}: no luck$"):
        await alive.wait_changed(trio.current_time() + 1000)


# --- lives ----------------------------------------------------------------------------------------


class ScriptedServing(Serving):
    """A backend that serves, or does not, and is lost when it is told to."""

    def __init__(self, *, serves: bool) -> None:
        super().__init__(ExportConfig("files", socket="/s"), None, (), Tracing())
        self.backend = AdoptedBackend("/s")
        self.standing = HERE
        self.failure = "" if serves else "no luck"
        self._serves = serves
        self._lost = trio.Event()
        if not serves:
            self.over.set()

    def is_serving(self) -> bool:
        return self._serves

    async def lost(self) -> None:
        await self._lost.wait()

    def lose(self) -> None:
        self._serves, self.failure = False, "it died"
        self._lost.set()
        self.over.set()

    def retire(self) -> None:
        super().retire()
        self.over.set()


class ScriptedStarter:
    """Starts what the script says, word by word; after its end a start takes for ever."""

    def __init__(self, script: str) -> None:
        self._script = iter(script.split())
        self.servings: list[ScriptedServing] = []

    async def start(self, *_: object) -> Serving:
        match next(self._script, "waits"):
            case "waits":
                await trio.sleep_forever()
            case "gone":
                raise DirectoryGone("no such directory")
            case outcome:
                self.servings.append(ScriptedServing(serves=outcome == "serves"))
        return self.servings[-1]


class ScriptedLookout:
    """Looks at no time of its own: the script tells the export what is there."""

    is_due = False

    def __init__(self, *_: object) -> None:
        pass

    async def see(self) -> Sight:
        return Sight(HERE, "", "/files")

    def stop(self) -> None:
        pass


class Stage:
    """An export among scripted backends, and what happens to it."""

    def __init__(self, export: Export, starter: ScriptedStarter) -> None:
        self._export = export
        self._starter = starter

    async def do(self, step: str) -> None:
        """Make one thing happen, with all that follows from it."""
        match step:
            case "lost":
                self._starter.servings[-1].lose()
            case "replace":
                await self._export.replace(self._export.config, PROGRAM)
            case _:
                standing = {"gone": None, "back": HERE, "other": OTHER}[step]
                self._export._note_sight(Sight(standing, "it was removed", "/files"))
        await trio.sleep(100)  # the clock jumps


STARTING, ABSENT, UP, RESTARTING, GONE, FAILED, _ = ExportState

#: A name, what becomes of each start, what happens, the transitions, and starts that may fail.
LIVES: Final[dict[str, tuple[str, str, list[Transition], int]]] = {
    "it serves": ("serves", "", [(STARTING, Event.SERVING), (UP, Event.STOP)], 8),
    "its backend is lost and replaced": (
        "serves fails serves serves",
        "lost replace",
        [
            (STARTING, Event.SERVING),
            (UP, Event.LOST),
            (RESTARTING, Event.RETRY),  # it is known why
            (RESTARTING, Event.RETRY),  # the next one fails
            (RESTARTING, Event.SERVING),
            (UP, Event.SERVING),
            (UP, Event.STOP),
        ],
        8,
    ),
    "it never starts": ("waits", "", [(STARTING, Event.STOP)], 8),
    "its first starts fail, and it serves at last": (
        "fails fails serves",
        "",
        [
            (STARTING, Event.GIVE_UP),
            (FAILED, Event.GIVE_UP),
            (FAILED, Event.SERVING),
            (UP, Event.STOP),
        ],
        8,
    ),
    "its first start fails, and its directory goes": (
        "fails gone serves",
        "back",
        [
            (STARTING, Event.GIVE_UP),
            (FAILED, Event.DIRECTORY_GONE),
            (GONE, Event.DIRECTORY_BACK),
            (RESTARTING, Event.SERVING),
            (UP, Event.STOP),
        ],
        8,
    ),
    "its user comes later": (
        "serves",
        "",
        [
            (STARTING, Event.GIVE_UP),
            (FAILED, Event.MENDED),
            (STARTING, Event.SERVING),
            (UP, Event.STOP),
        ],
        8,
    ),
    "its next start takes long": (
        "serves waits",
        "other",
        [(STARTING, Event.SERVING), (UP, Event.DIRECTORY_REPLACED), (RESTARTING, Event.STOP)],
        8,
    ),
    "its starts fail in a row": (
        "serves fails fails",
        "other",
        [
            (STARTING, Event.SERVING),
            (UP, Event.DIRECTORY_REPLACED),
            (RESTARTING, Event.RETRY),
            (RESTARTING, Event.GIVE_UP),
            (FAILED, Event.STOP),
        ],
        1,
    ),
    "its directory is gone at first, comes, and goes again": (
        "gone gone",
        "gone back",
        [
            (STARTING, Event.DIRECTORY_GONE),
            (GONE, Event.DIRECTORY_GONE),  # for another reason
            (GONE, Event.DIRECTORY_BACK),
            (RESTARTING, Event.DIRECTORY_GONE),
            (GONE, Event.STOP),
        ],
        8,
    ),
    "its directory goes and is back before the next start": (
        "serves serves",
        "gone",
        [
            (STARTING, Event.SERVING),
            (UP, Event.DIRECTORY_GONE),
            (GONE, Event.SERVING),
            (UP, Event.STOP),
        ],
        8,
    ),
    "its directory is back and the next start fails": (
        "serves fails",
        "gone",
        [
            (STARTING, Event.SERVING),
            (UP, Event.DIRECTORY_GONE),
            (GONE, Event.RETRY),
            (RESTARTING, Event.STOP),
        ],
        8,
    ),
    "its directory is back and the only start that may fail does": (
        "serves fails",
        "gone",
        [
            (STARTING, Event.SERVING),
            (UP, Event.DIRECTORY_GONE),
            (GONE, Event.GIVE_UP),
            (FAILED, Event.STOP),
        ],
        0,
    ),
    "adopted, and there at last": (
        "fails fails serves",
        "",
        [
            (STARTING, Event.RETRY),
            (ABSENT, Event.RETRY),
            (ABSENT, Event.SERVING),
            (UP, Event.STOP),
        ],
        0,
    ),
    "adopted, and never there": (
        "fails waits",
        "",
        [(STARTING, Event.RETRY), (ABSENT, Event.STOP)],
        0,
    ),
}


async def at_once(function: Callable[[], Any], **_: object) -> Any:
    """Call a function as in a thread."""
    return function()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Transition]:
    """Record the transitions that exports take."""
    found: list[Transition] = []

    def record(state: ExportState, event: Event) -> ExportState:
        found.append((state, event))
        return next_state(state, event)

    monkeypatch.setattr(life, "next_state", record)
    return found


@pytest.mark.parametrize("name", LIVES)
async def test_a_life(
    name: str,
    taken: list[Transition],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,  # noqa: ARG001 - pauses pass at once
) -> None:
    starts, steps, transitions, restarts = LIVES[name]
    starter = ScriptedStarter(starts)
    monkeypatch.setattr("vuserd.exports.export.Starter", lambda *_: starter)
    monkeypatch.setattr("vuserd.exports.export.Lookout", ScriptedLookout)
    config = ExportConfig("files", directory="/files", restarts=restarts)
    if name.startswith("adopted"):
        config = replace(config, directory=None, socket="/s")
    if "user" in name:
        config = replace(config, access=Access(missing=frozenset({Account("user", "joe")})))
        numbers = iter([None, 61_001])
        monkeypatch.setattr("vuserd.config.accounts.number_of", lambda _: next(numbers))
        monkeypatch.setattr(trio.to_thread, "run_sync", at_once)  # the clock waits for no thread
    export = Export(config, PROGRAM)
    stage = Stage(export, starter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.run)
        await trio.sleep(100)
        for step in steps.split():
            await stage.do(step)
        export.stop()
    assert taken == transitions


async def test_accounts_are_looked_up_once_there_is_a_thread(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,  # noqa: ARG001 - pauses pass at once
) -> None:
    starter = ScriptedStarter("serves")
    monkeypatch.setattr("vuserd.exports.export.Starter", lambda *_: starter)
    monkeypatch.setattr("vuserd.exports.export.Lookout", ScriptedLookout)
    monkeypatch.setattr("vuserd.config.accounts.number_of", lambda _: 61_001)
    access = Access(missing=frozenset({Account("user", "joe")}))
    export = Export(ExportConfig("files", directory="/files", access=access), PROGRAM)
    has_thread = False

    async def run(function: Callable[[], Any], **_: object) -> Any:
        if not has_thread:
            raise RuntimeError("can't start new thread")
        return await at_once(function)

    monkeypatch.setattr(trio.to_thread, "run_sync", run)
    states = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.run)
        for has_thread in (False, True):  # noqa: B007 - it is looked at above
            await trio.sleep(100)
            states.append(export.state)
        export.stop()
    assert states == [ExportState.FAILED, ExportState.UP]


def test_there_is_a_life_for_each_transition() -> None:
    shown = {transition for _, _, transitions, _ in LIVES.values() for transition in transitions}
    assert shown == {(state, event) for state, ways in TRANSITIONS.items() for event in ways}
