"""Replaced backends: one that is lost, or no longer wanted, while the next one comes up."""

import errno
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.backend import DEVICE_STATE, FakeBackend, Reply
from tests.fake.files import Answer, FuseRequest
from tests.faults.catalogue import fault
from tests.faults.harness import CONTENT, FOR_EVER, read, stat, statfs
from vuserd.backend.adopted import AdoptedBackend
from vuserd.backend.find import BackendKind, Program
from vuserd.backend.process import BackendOptions
from vuserd.config.model import ExportConfig
from vuserd.device.payloads import given_back
from vuserd.device.session import SessionOptions
from vuserd.errors import BackendDown, FileError, LossCause
from vuserd.exports import directory
from vuserd.exports.directory import Lookout, Sight, Standing
from vuserd.exports.export import Export
from vuserd.exports.states import ExportState
from vuserd.exports.table import Exports
from vuserd.fs.filesystem import FileSystem

PROGRAM: Final = Program("/usr/libexec/virtiofsd", BackendKind.RUST, "1")
FIRST: Final = ExportConfig("files", directory="/first")
OTHER: Final = ExportConfig(
    "files", directory="/first", options=BackendOptions(thread_pool=2, sandbox="none")
)
#: Its pauses are short.
HASTY: Final = replace(FIRST, restart_delays=(0.001, 0.005))

#: Seconds in which nothing happens, before a test goes on: a busy machine is late to wake anybody.
QUIET: Final = 0.02


class Backends:
    """The backends that an export starts, by their order, each of which waits until it may."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.may_start: defaultdict[int, trio.Event] = defaultdict(trio.Event)
        self.backends: list[FakeBackend] = []
        #: Whether they can take over from each other.
        self.move = False
        #: Whether a start goes on to its end, as that of a process does, whatever is cancelled.
        self.start_surely = False
        #: Of each backend what it was to export, and how.
        self.asked: list[tuple[str, str, int]] = []
        #: What each of them is made to do before its session begins.
        self.prepare: Callable[[FakeBackend], object] = lambda _: None
        self.running: set[int] = set()
        #: What stands at the export's path.
        self.standing: Standing | None = Standing(1, 0, 1, 1)

    def start_at_once(self) -> None:
        """Start each backend when it is asked for."""
        for number in range(1000):
            self.may_start[number].set()

    @asynccontextmanager
    async def start(
        self, _: Program, directory: str, sandbox: str, options: BackendOptions, __: str
    ) -> AsyncIterator[AdoptedBackend]:
        """Replace start_backend()."""
        number = len(self.backends)
        backend = FakeBackend({b"Image": CONTENT})
        backend.protocol_features |= DEVICE_STATE if self.move else 0
        self.backends.append(backend)
        self.prepare(backend)
        self.asked.append((directory, sandbox, options.thread_pool))
        self.running.add(number)
        try:
            path = str(self._folder / f"{number}.sock")
            async with backend.listening(path):
                with trio.CancelScope(shield=self.start_surely):
                    await self.may_start[number].wait()
                yield AdoptedBackend(path)
        finally:
            self.running.remove(number)


@pytest.fixture
def backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backends:
    made = Backends(tmp_path)
    made.may_start[0].set()
    monkeypatch.setattr("vuserd.exports.serving.start_backend", made.start)

    monkeypatch.setattr(
        "vuserd.exports.directory.look_at", lambda path: Sight(made.standing, "", path)
    )

    async def look(lookout: Lookout) -> Sight:
        # Not in a thread: so nothing goes on any more once all tasks are blocked.
        return directory.look_at(lookout._path)

    monkeypatch.setattr(Lookout, "_in_thread", look)
    return made


@asynccontextmanager
async def exported(config: ExportConfig = FIRST) -> AsyncIterator[Export]:
    """Run an export whose first backend is up; see that it ends when it is told to."""
    export = Export(config, PROGRAM)
    with trio.fail_after(FOR_EVER):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.run)
            await export.settled.wait()
            yield export
            export.stop()
    assert export.state is ExportState.STOPPED


async def serves(export: Export) -> None:
    with trio.fail_after(FOR_EVER):
        assert await export.call(read) == CONTENT


def answer_read(backend: FakeBackend) -> None:
    """Answer the one READ that has waited for it."""
    [request] = backend.named(Opcode.READ)
    answer = backend.serve_files(request)
    assert answer is not None
    backend.reply(request, answer)


@fault(
    "dies-while-replaced",
    done="the backend ends while the one that is to replace it comes up",
    must="The export has one backend in the end, and that is the replacement. Until it serves, what"
    " is new about it is used for no other.",
)
@pytest.mark.parametrize("restarted_first", [False, True])
async def test_death_while_replaced(backends: Backends, *, restarted_first: bool) -> None:
    async with exported() as export, trio.open_nursery() as nursery:
        nursery.start_soon(export.replace, OTHER, PROGRAM)
        await wait_all_tasks_blocked(QUIET)
        backends.backends[0].die()
        await wait_all_tasks_blocked(QUIET)
        assert backends.asked == [
            ("/first", "namespace", 0),
            ("/first", "none", 2),
            ("/first", "namespace", 0),
        ]
        assert export.config == FIRST
        for number in (2, 1) if restarted_first else (1, 2):
            backends.may_start[number].set()
            await wait_all_tasks_blocked(QUIET)
        assert export.config == OTHER
        assert export.generation == (3 if restarted_first else 2)  # no other is waited for then
        assert backends.running == {1}
        await serves(export)
        backends.may_start[3].set()
        backends.backends[1].die()
        await serves(export)
        assert backends.asked[3] == ("/first", "none", 2)
    assert backends.running == set()


@fault(
    "replacement-given-up",
    done="the client that asked for another backend is gone before that serves",
    must="The other one ends, and all is as it was: the old one serves, and a next one is like it.",
)
@pytest.mark.parametrize("connected", [False, True])
async def test_a_replacement_that_is_given_up(backends: Backends, *, connected: bool) -> None:
    async with exported() as export:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.replace, OTHER, PROGRAM)
            await wait_all_tasks_blocked(QUIET)
            if connected:
                backends.backends[1].ignored = {Request.GET_QUEUE_NUM}
                backends.may_start[1].set()
                await wait_all_tasks_blocked(QUIET)
                assert Request.GET_QUEUE_NUM in backends.backends[1].messages
            assert backends.running == {0, 1}
            nursery.cancel_scope.cancel()
        assert (export.config, backends.running) == (FIRST, {0})
        await serves(export)
        backends.may_start[2].set()
        backends.backends[0].die()
        await serves(export)
        assert export.generation == 2
        assert backends.asked[2] == backends.asked[0]
    assert backends.running == set()


@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("late", [False, True])
async def test_a_replacement_that_is_given_up_as_it_starts(
    backends: Backends, *, move: bool, late: bool
) -> None:
    backends.move, backends.start_surely = move, True
    async with exported() as export:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.replace, OTHER, PROGRAM)
            await wait_all_tasks_blocked(QUIET)
            backends.may_start[1].set()
            if late:
                await trio.lowlevel.cancel_shielded_checkpoint()
            nursery.cancel_scope.cancel()
        assert (export.config, backends.running) == (FIRST, {0})
        await serves(export)
    assert backends.running == set()


async def test_an_export_that_ends_as_its_backend_starts(backends: Backends) -> None:
    backends.may_start[0] = trio.Event()
    backends.start_surely = True
    export = Export(FIRST, PROGRAM)
    with trio.fail_after(FOR_EVER):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.run)
            await wait_all_tasks_blocked(QUIET)
            export.stop()
            backends.may_start[0].set()
    assert export.state is ExportState.STOPPED
    assert backends.running == set()


async def test_a_replacement_that_serves_is_not_given_up(backends: Backends) -> None:
    async with exported() as export:
        backends.backends[0].answer_to(Opcode.READ, None)
        backends.may_start[1].set()
        async with trio.open_nursery() as calls:
            calls.start_soon(export.call, read)
            await wait_all_tasks_blocked(QUIET)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(export.replace, OTHER, PROGRAM)
                await wait_all_tasks_blocked(QUIET)
                nursery.cancel_scope.cancel()  # it waits for the call on the old one
            assert (export.config, export.generation) == (OTHER, 2)
            assert backends.running == {0, 1}
            await serves(export)
            answer_read(backends.backends[0])
        await wait_all_tasks_blocked(QUIET)
        assert backends.running == {1}
    assert backends.running == set()


@fault(
    "refused-as-replacement",
    done="the backend that is to replace another closes its socket at once",
    must="The reload fails with BACKEND_DOWN; the old backend serves, and a next one is like it.",
)
async def test_a_replacement_that_fails(backends: Backends) -> None:
    async with exported() as export:
        async with trio.open_nursery() as nursery:

            async def replace() -> None:
                with pytest.raises(BackendDown, match="the other backend: "):
                    await export.replace(OTHER, PROGRAM)

            nursery.start_soon(replace)
            await wait_all_tasks_blocked(QUIET)
            backends.backends[1].dies_at = {Request.GET_FEATURES}
            backends.may_start[1].set()
        assert (export.config, export.generation, backends.running) == (FIRST, 1, {0})
        await serves(export)


@pytest.fixture
def moving(backends: Backends) -> Backends:
    backends.move = True
    return backends


async def test_calls_go_on_with_what_they_have_open(moving: Backends) -> None:
    may_read = trio.Event()

    async def read_late(files: FileSystem) -> int:
        async with files.opened(b"Image") as file:
            await may_read.wait()
            with given_back(await file.session.payloads.take(1)) as buffers:
                return await file.read_into(buffers[0], 0, 1 << 16)

    async def call(export: Export) -> None:
        assert await export.call(read_late) == len(CONTENT)

    async with exported() as export:
        moving.may_start[1].set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, export)
            await wait_all_tasks_blocked(QUIET)
            await export.replace(OTHER, PROGRAM)
            assert (export.config, export.generation) == (OTHER, 1)
            assert moving.running == {1}
            may_read.set()
        before, after = moving.backends
        assert [len(each.named(Opcode.OPEN)) for each in moving.backends] == [1, 0]
        assert [len(each.named(Opcode.READ)) for each in moving.backends] == [0, 1]
        assert before.regions == 0
        moving.may_start[2].set()
        after.die()
        await serves(export)
        assert (moving.asked[2], export.generation) == (("/first", "none", 2), 2)
    assert moving.running == set()


@fault(
    "state-that-cannot-be-moved",
    done="a reload finds that the backend's state cannot be moved",
    must="The calls that it has end on it, and all others go to a backend that begins anew.",
)
async def test_state_that_cannot_be_moved(moving: Backends) -> None:
    async with exported() as export:
        moving.backends[0].altered[Request.SET_DEVICE_STATE_FD] = lambda reply: Reply(
            reply.number, struct.pack("=Q", 0x101)
        )
        moving.may_start[1].set()
        moving.may_start[2].set()
        await export.replace(OTHER, PROGRAM)
        assert (export.config, export.generation) == (OTHER, 2)
        assert moving.running == {2}
        await serves(export)
        assert moving.backends[0].requests
        assert not moving.backends[1].requests
    assert moving.running == set()


@fault(
    "dies-while-it-moves",
    done="the backend ends while its state is moved to the one that is to replace it",
    must="The export goes on with a backend that begins anew; no call fails.",
)
@pytest.mark.parametrize("at", [Request.GET_VRING_BASE, Request.CHECK_DEVICE_STATE])
async def test_death_while_it_moves(moving: Backends, at: Request) -> None:
    async with exported() as export:
        moving.backends[0].dies_at.add(at)
        for number in range(1, 4):
            moving.may_start[number].set()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(serves, export)
            await export.replace(OTHER, PROGRAM)
        await serves(export)
        assert export.config == OTHER
        await wait_all_tasks_blocked(QUIET)
        assert len(moving.running) == 1
    assert moving.running == set()


async def test_a_move_that_is_given_up(moving: Backends) -> None:
    async with exported() as export:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.replace, OTHER, PROGRAM)
            await wait_all_tasks_blocked(QUIET)
            moving.backends[1].ignored = {Request.GET_QUEUE_NUM}
            moving.may_start[1].set()
            await wait_all_tasks_blocked(QUIET)
            assert Request.GET_QUEUE_NUM in moving.backends[1].messages
            moving.backends[1].die()  # the reply to what was asked is waited for
            nursery.cancel_scope.cancel()
        assert (export.config, export.generation, moving.running) == (FIRST, 1, {0})
        await serves(export)
    assert moving.running == set()


async def test_what_a_session_is_like_is_not_moved(moving: Backends) -> None:
    async with exported() as export:
        moving.may_start[1].set()
        patient = replace(FIRST, session=SessionOptions(timeout=5))
        await export.replace(patient, PROGRAM)
        assert (export.config, export.generation) == (patient, 2)
        assert len(moving.backends) == 2
        await serves(export)
    assert moving.running == set()


async def test_an_export_that_is_about_to_end_takes_no_other_backend(
    backends: Backends,
) -> None:
    async with exported() as export:
        backends.backends[0].answer_to(Opcode.READ, None)
        async with trio.open_nursery() as calls:
            calls.start_soon(export.call, read)
            await wait_all_tasks_blocked(QUIET)
            export.stop()  # which waits for the call
            backends.may_start[1].set()
            with pytest.raises(BackendDown, match="has ended or is about to"):
                await export.replace(OTHER, PROGRAM)
            await wait_all_tasks_blocked(QUIET)
            assert (export.config, backends.running) == (FIRST, {0})
            answer_read(backends.backends[0])
    assert backends.running == set()


async def test_an_export_of_another_directory_serves_all_the_time(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trio.Event()

    async def find(*_: object) -> Program:
        await found.wait()
        return PROGRAM

    elsewhere = ExportConfig("files", directory="/elsewhere")
    with trio.fail_after(FOR_EVER):
        async with trio.open_nursery() as nursery:
            exports = Exports(nursery)
            monkeypatch.setattr("vuserd.exports.table.find_program", find)
            found.set()
            await exports.apply([FIRST])
            first, found = exports["files"], trio.Event()
            nursery.start_soon(exports.apply, [elsewhere])
            await wait_all_tasks_blocked(QUIET)
            await serves(exports["files"])  # while a program is looked for
            found.set()
            await wait_all_tasks_blocked(QUIET)
            assert backends.asked[1][0] == "/elsewhere"
            assert first.state is ExportState.STOPPED
            nursery.start_soon(serves, exports["files"])  # and waits for the first backend
            await wait_all_tasks_blocked(QUIET)
            backends.may_start[1].set()
            await serves(exports["files"])
            assert backends.running == {1}
            exports.stop()
    assert backends.running == set()


async def test_a_changed_configuration_goes_before_the_next_try(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with the backends that do not come up may be just what was changed."""

    async def find(*_: object) -> Program:
        return PROGRAM

    monkeypatch.setattr("vuserd.exports.table.find_program", find)
    with trio.fail_after(FOR_EVER):
        async with trio.open_nursery() as nursery:
            exports = Exports(nursery)
            await exports.apply([FIRST])
            backends.backends[0].die()
            await wait_all_tasks_blocked(QUIET)
            assert exports["files"].state is ExportState.RESTARTING
            backends.may_start[2].set()
            assert await exports.apply([OTHER]) == ["export files: started anew, up"]
            assert backends.asked[2] == ("/first", "none", 2)
            await serves(exports["files"])
            backends.may_start[1].set()
            exports.stop()
    assert backends.running == set()


async def test_answers_that_are_errors_are_answers(backends: Backends) -> None:
    """Who looks for a file that is not there is served, however often the backend is lost."""
    async with exported() as export:
        for number in range(2 * FIRST.restarts):
            backends.may_start[number + 1].set()
            with pytest.raises(FileError, match="no such file"), trio.fail_after(FOR_EVER):
                await export.call(lambda files: files.stat(b"missing", follow=True))
            backends.backends[number].die()
            with trio.fail_after(FOR_EVER):
                while export.generation < number + 2:
                    await trio.lowlevel.checkpoint()
        await serves(export)
        assert sum(export.losses.restarts.values()) == 2 * FIRST.restarts


def dies_of_statfs(backend: FakeBackend) -> None:
    backend.answer_to(Opcode.STATFS, lambda _: backend.die())


@fault(
    "killed-by-a-call",
    done="each backend dies of one call, and so does the next that it is put to",
    must="The call ends with BACKEND_DOWN after two backends, with a message that says so; the"
    " export goes on for all others.",
)
async def test_a_call_that_kills_every_backend(backends: Backends) -> None:
    async with exported() as export:

        async def poison(files: FileSystem) -> None:
            backends.backends[-1].die()
            await files.stat(b"Image", follow=True)

        for number in range(1, 10):
            backends.may_start[number].set()
        with pytest.raises(BackendDown, match="the call lost 2 backends"):
            with trio.fail_after(FOR_EVER):
                await export.call(poison)
        await serves(export)
        assert export.generation == 3


@fault(
    "killed-by-a-call-among-others",
    done="each backend dies of one kind of call, of which two come at once with twenty others",
    must="The two get BACKEND_DOWN; all others are answered, however often they lost a backend"
    " that was not theirs to lose.",
)
async def test_a_call_that_kills_does_not_take_others_with_it(backends: Backends) -> None:
    backends.prepare = dies_of_statfs
    for number in range(1, 10):
        backends.may_start[number].set()
    outcomes: list[str] = []

    async def kill() -> None:
        with pytest.raises(BackendDown, match="is put to no other"):
            await export.call(statfs)
        outcomes.append("down")

    async def use() -> None:
        assert await export.call(read) == CONTENT
        outcomes.append("served")

    async with exported() as export:
        dies_of_statfs(backends.backends[0])  # the first one was there before
        with trio.fail_after(FOR_EVER):
            async with trio.open_nursery() as nursery:
                for number in range(22):
                    nursery.start_soon(kill if number in (5, 15) else use)
        assert sorted(outcomes) == ["down"] * 2 + ["served"] * 20
        assert export.generation <= 5
        await serves(export)


@fault(
    "killed-all-the-time",
    done="a client makes calls that kill backends, one after the other, all the time",
    must="The export never fails: other clients are served meanwhile, and when the backends that"
    " were lost in a row are three times what `restarts` permits of failed starts.",
)
@pytest.mark.alike(0)
async def test_no_call_brings_an_export_to_failed(backends: Backends) -> None:
    backends.prepare = dies_of_statfs
    backends.start_at_once()
    async with exported(HASTY) as export:
        dies_of_statfs(backends.backends[0])
        for _ in range(3 * FIRST.restarts // 2):
            with pytest.raises(BackendDown, match="the call lost 2 backends"):
                await export.call(statfs)
        await serves(export)

        async def kill_on() -> None:
            while True:
                with pytest.raises(BackendDown):
                    await export.call(statfs)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_on)
            nursery.start_soon(kill_on)
            for _ in range(20):
                await serves(export)
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        await serves(export)
        assert export.state is ExportState.UP
    assert not export._calls.trials.are_on


@fault(
    "starts-fail-in-a-row",
    done="a backend serves and is lost, and all that come after it do not start",
    must="The export fails after as many starts as `restarts` says, and calls get BACKEND_DOWN. It"
    " is up again soon after backends start.",
)
async def test_starts_that_fail_bring_an_export_to_failed(backends: Backends) -> None:
    backends.start_at_once()
    async with trio.open_nursery() as nursery:
        export = Export(HASTY, PROGRAM)
        nursery.start_soon(export.run)
        await export.settled.wait()
        await serves(export)
        backends.prepare = lambda backend: setattr(backend, "dies_at", {Request.GET_FEATURES})
        backends.backends[0].die()
        with pytest.raises(BackendDown, match="export files is failed: the backend closed"):
            await export.call(stat)
        assert export.state is ExportState.FAILED
        assert len(backends.asked) == 1 + 1 + FIRST.restarts
        backends.prepare = lambda _: None
        with trio.fail_after(FOR_EVER):
            while export.usage() is None:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.1)
        await serves(export)
        export.stop()


@fault(
    "directory-changes-as-it-starts",
    done="another directory takes the place of the one that a backend is started on, meanwhile",
    must="The backend serves no call: another one is started on what stands there now.",
)
async def test_a_directory_that_changes_while_its_backend_starts(backends: Backends) -> None:
    def change(_: FakeBackend) -> None:
        if len(backends.backends) < 3:
            backends.standing = Standing(1, 0, 1, 10 + len(backends.backends))

    backends.prepare = change
    backends.start_at_once()
    async with exported() as export:
        assert len(backends.asked) == 3
        assert export.generation == 1
        await serves(export)
        assert [len(backend.named(Opcode.READ)) for backend in backends.backends] == [0, 0, 1]
        await wait_all_tasks_blocked(QUIET)
        assert backends.running == {2}


@fault(
    "directory-replaced-in-a-call",
    done="another directory takes the place of the exported one while a call is in progress",
    must="The call ends on the directory that it began on, later ones are for the other one.",
)
async def test_a_call_in_progress_when_the_directory_is_replaced(backends: Backends) -> None:
    backends.start_at_once()
    async with exported() as export, trio.open_nursery() as nursery:
        backends.backends[0].answer_to(Opcode.READ, None)
        nursery.start_soon(serves, export)
        await wait_all_tasks_blocked(QUIET)
        backends.standing = Standing(2, 0, 1, 1)
        await trio.sleep(0.6)  # then a call waits for its look
        await serves(export)
        assert len(backends.backends[1].named(Opcode.READ)) == 1
        answer_read(backends.backends[0])
    assert export.losses.restarts == dict.fromkeys(LossCause, 0)


@fault(
    "directory-gone",
    done="the exported directory is removed, and made again later",
    must="Calls get BACKEND_DOWN with a message that says so, no backend is left, nothing is done"
    " until a call comes; then the export comes up again.",
)
async def test_a_directory_that_is_gone_and_comes_again(backends: Backends) -> None:
    backends.start_at_once()
    async with exported() as export:
        await serves(export)
        there, backends.standing = backends.standing, None
        await trio.sleep(0.6)  # then a call waits for its look
        with pytest.raises(BackendDown, match="export files is gone"):
            await export.call(stat)
        assert export.state is ExportState.GONE
        with pytest.raises(BackendDown, match="export files is gone"):
            await export.replace(OTHER, PROGRAM)
        await wait_all_tasks_blocked(QUIET)
        assert backends.running == set()
        backends.standing = there
        await trio.sleep(0.11)  # a look is good for a tenth of a second
        await serves(export)
        assert (export.state, export.generation) == (ExportState.UP, 2)


@fault(
    "directory-gone-as-it-is-replaced",
    done="the exported directory is removed, and then the backend is to be replaced",
    must="BACKEND_DOWN, with a message that says so.",
)
async def test_a_directory_that_is_gone_when_its_backend_is_replaced(backends: Backends) -> None:
    backends.start_at_once()
    backends.move = True
    async with exported() as export:
        backends.standing = None
        with pytest.raises(BackendDown, match="the directory of export files is gone"):
            await export.replace(OTHER, PROGRAM)
        assert len(backends.asked) == 1


@fault(
    "directory-cannot-be-looked-at",
    done="the file system cannot tell what stands at the export's path, before a backend starts or"
    " after that",
    must="The export is gone, and says so; no call is put to that backend. It comes up when there"
    " is an answer.",
)
@pytest.mark.parametrize("looks", [0, 1])
async def test_a_directory_that_cannot_be_looked_at(
    backends: Backends, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    backends.start_at_once()
    look_at, left = directory.look_at, [True] * looks
    broken = True

    def look(path: str) -> Sight:
        if broken and not (left and left.pop()):
            raise OSError(errno.EIO, "Input/output error")
        return look_at(path)

    monkeypatch.setattr("vuserd.exports.directory.look_at", look)
    async with exported() as export:
        assert export.state is ExportState.GONE
        assert "does not answer" in export.reason
        assert len(backends.asked) == looks
        with pytest.raises(BackendDown, match="does not answer"):
            await export.call(read)
        broken = False
        await trio.sleep(0.11)
        await serves(export)


@fault(
    "another-directory-opened",
    done="the path leads elsewhere for the moment in which the backend opens it, each time",
    must="No call is put to such a backend, and its nodes are not moved to it. The export is gone,"
    " or goes on with the backend that it has.",
)
async def test_a_backend_that_has_opened_another_directory(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[int, int, str]] = []
    honest = True

    async def has_opened(_: object, *what: object) -> bool:
        opened.append(what[:3])  # type: ignore[arg-type]
        return honest

    monkeypatch.setattr("vuserd.backend.adopted.AdoptedBackend.has_opened", has_opened)
    backends.start_at_once()
    backends.move = True
    async with exported() as export:
        honest = False
        before = len(backends.asked)
        with pytest.raises(BackendDown, match="to another directory all the time"):
            await export.replace(OTHER, PROGRAM)
        assert len(backends.asked) == before + 6  # one to move to, and five starts
        assert opened[0] == (1, 1, "namespace")
        await serves(export)
        assert export.generation == 1
        backends.backends[0].die()
        with pytest.raises(BackendDown, match="all the time"):
            await export.call(read)
        assert export.state is ExportState.GONE


@pytest.mark.parametrize("_time", range(4))  # what is known first is a matter of chance
async def test_why_one_is_lost_that_dies_as_it_comes_up(backends: Backends, _time: int) -> None:
    async with exported() as export:
        backends.backends[0].die()
        with trio.fail_after(FOR_EVER):
            while len(backends.backends) < 2:
                await trio.lowlevel.checkpoint()
        doomed = backends.backends[1]

        def answer(request: FuseRequest) -> Answer | None:
            honest = doomed.serve_files(request)
            if request.opcode is Opcode.INIT and honest is not None:
                doomed.reply(request, honest)
                doomed.die()
                return None
            return honest

        doomed.answer = answer
        backends.may_start[1].set()
        backends.may_start[2].set()
        with trio.fail_after(FOR_EVER):
            while len(backends.backends) < 3:
                await trio.lowlevel.checkpoint()
        assert export.losses.last is not None
        assert export.losses.last.reason != ""
        await serves(export)
