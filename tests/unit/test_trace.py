"""Traces: what is reported of each request, to which traces, and what a client gets."""

import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol import fuse
from protocol.fuse import NodeId, Opcode
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from tests.fake.bare_daemon import bare_methods
from tests.faults.harness import exported, read
from vuserd.client.errors import BadReply
from vuserd.client.trace import TraceEvent, TracePage
from vuserd.ctl import main, trace
from vuserd.ctl.output import printable
from vuserd.device.session import Session, SessionOptions
from vuserd.errors import BackendError, BackendTimeout, CallError, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.nodes import Node, NodeTable
from vuserd.rpc.results.maps import event_map
from vuserd.tracing import trace as traces
from vuserd.tracing.event import Event, arguments
from vuserd.tracing.tap import Tap, Tracing
from vuserd.tracing.trace import Trace, TraceTable
from vuserd.users.holdings import Holdings
from vuserd.wire.codec import Limits, MessageDecoder, Request, encode_request

CONTENT = bytes(range(256)) * 16
FOLDER = File(mode=0o040755)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"boot": FOLDER, b"Image": CONTENT, b"\xff": b"odd"})


class Traced:
    """A session with a file system, and a trace of it."""

    def __init__(self, session: Session, tracing: Tracing, tap: Tap) -> None:
        self.session = session
        self.tracing = tracing
        self.files = FileSystem(session, idle_nodes=10)
        tap.places = self.files.nodes
        self.trace = Trace()

    async def events(self) -> list[Event]:
        await wait_all_tasks_blocked()
        return (await self.trace.take(1000, 0.0))[0]


@asynccontextmanager
async def traced(
    backend: FakeBackend, *, at_once: bool = False, patience: float = 10.0
) -> AsyncIterator[Traced]:
    """Yield a session; with ``at_once`` it is traced from its first request on."""
    tracing = Tracing()
    trace = Trace()
    if at_once:
        tracing.begin(trace)
    with tracing.session() as tap:
        async with backend.session(SessionOptions(timeout=patience), tap.observer()) as session:
            tap.follow(session.lane)
            both = Traced(session, tracing, tap)
            both.trace = trace
            tracing.begin(trace)
            yield both
            both.files.close()


def told(event: Event) -> tuple[object, ...]:
    return event.opcode, event.node, event.path, event.arguments, event.outcome, event.length


async def test_a_read_is_told_in_order(backend: FakeBackend) -> None:
    async with traced(backend) as front:
        assert await read(front.files, b"boot/Image") == CONTENT
        handle = 101
        part = {"fh": handle, "offset": 0, "size": 4096}
        assert [told(event) for event in await front.events()] == [
            ("LOOKUP", 1, b"/", {"name": b"boot"}, "OK", 128),
            ("LOOKUP", 2, b"/boot", {"name": b"Image"}, "OK", 128),
            ("OPEN", 3, b"/boot/Image", {"flags": 0}, "OK", 16),
            ("READ", 3, b"/boot/Image", part | {"size": 1 << 20}, "OK", 4096),
            ("GETATTR", 3, b"/boot/Image", {"getattr_flags": 0, "fh": 0}, "OK", 104),
            ("RELEASE", 3, b"/boot/Image", {"fh": handle, "flags": 0}, "OK", 0),
        ]
        front.files.close()
        (last,) = await front.events()
        forgets = {"forgets": [(3, 1), (2, 1)]}
        assert told(last) == ("BATCH_FORGET", 0, None, forgets, "OK", 0)


async def test_an_event_has_its_numbers(backend: FakeBackend) -> None:
    async with traced(backend) as front:
        for _ in range(3):
            await front.files.statfs()
        events = await front.events()
    for event, request in zip(events, backend.named(Opcode.STATFS), strict=True):
        assert event.unique == request.unique
        assert event.size == 40
        assert event.took_ns > 0
    assert [event.monotonic_ns for event in events] == sorted(e.monotonic_ns for e in events)
    assert abs(events[1].sent_ns - events[0].sent_ns) < 60e9


async def test_an_errno_is_an_outcome(backend: FakeBackend) -> None:
    async with traced(backend) as front:
        with pytest.raises(FileError, match="no such file"):
            await front.files.stat(b"none", follow=True)
        backend.answer_to(Opcode.STATFS, Answer(error=4000))
        with pytest.raises(FileError, match="4000"):
            await front.files.statfs()
        assert [event.outcome for event in await front.events()] == ["ENOENT", "4000"]


async def test_a_session_that_is_traced_begins_with_init(backend: FakeBackend) -> None:
    async with traced(backend, at_once=True) as front:
        (init,) = await front.events()
    assert told(init)[:3] == ("INIT", 0, None)
    assert init.arguments["major"] == 7
    assert init.length == 64


async def test_nothing_is_told_to_nobody(backend: FakeBackend) -> None:
    async with traced(backend) as front:
        front.tracing.end(front.trace)
        assert front.session.lane.observer is None
        assert not front.tracing.is_on
        await front.files.statfs()
        assert await front.events() == []


async def test_several_are_told_the_same(backend: FakeBackend) -> None:
    async with traced(backend) as front:
        other = Trace()
        await front.files.statfs()
        front.tracing.begin(other)
        await front.files.stat(b"Image", follow=True)
        front.tracing.end(front.trace)
        await front.files.statfs()
        assert [event.opcode for event in await front.events()] == ["STATFS", "LOOKUP"]
        assert [event.opcode for event in (await other.take(9, 0))[0]] == ["LOOKUP", "STATFS"]


async def test_a_request_that_was_sent_before_is_not_told(backend: FakeBackend) -> None:
    withheld: list[FuseRequest] = []
    backend.answer_to(Opcode.STATFS, withheld.append)
    async with traced(backend) as front, trio.open_nursery() as nursery:
        front.tracing.end(front.trace)
        nursery.start_soon(front.files.statfs)
        await wait_all_tasks_blocked()
        front.tracing.begin(front.trace)
        honest = backend.serve_files(withheld[0])
        assert honest is not None
        backend.reply(withheld[0], honest)
        assert await front.events() == []


async def test_an_overdue_request_is_told_twice_when_it_is_answered_late(
    backend: FakeBackend,
    autojump_clock: MockClock,  # noqa: ARG001 - the deadline passes at once
) -> None:
    withheld: list[FuseRequest] = []
    backend.answer_to(Opcode.STATFS, withheld.append)
    async with traced(backend, patience=2.0) as front:
        with pytest.raises(BackendTimeout):
            await front.files.statfs()
        honest = backend.serve_files(withheld[0])
        assert honest is not None
        backend.reply(withheld[0], honest)
        events = await front.events()
        ends = [event.outcome for event in events if event.opcode == "STATFS"]
        assert ends == ["TIMEOUT", "OK"]
        assert "INTERRUPT" in [event.opcode for event in events]


async def test_what_a_lost_backend_had_is_lost(backend: FakeBackend) -> None:
    async def silent_statfs(files: FileSystem) -> None:
        with pytest.raises(BackendError):
            await files.statfs()

    backend.answer_to(Opcode.STATFS, None)
    async with traced(backend) as front:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(silent_statfs, front.files)
            await wait_all_tasks_blocked()
            backend.die()
        events = await front.events()
        assert [event.outcome for event in events] == ["LOST"] * 3


async def test_a_reply_that_is_not_to_be_believed_is_lost(backend: FakeBackend) -> None:
    backend.answer_to(Opcode.STATFS, Answer(unique=1))
    async with traced(backend) as front:
        with pytest.raises(BackendError):
            await front.files.statfs()
        assert [told(event)[-2:] for event in await front.events()] == [("LOST", 0)]


async def test_a_trace_follows_an_export_from_backend_to_backend(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with exported(backend, str(tmp_path / "backend.sock")) as export:
        trace = Trace()
        export.tracing.begin(trace)
        for session in (1, 2, 3):
            await export.call(lambda files: files.stat(b"Image", follow=True))
            assert backend.sessions == session
            backend.die()
            await wait_all_tasks_blocked()
        opcodes = [event.opcode for event in (await trace.take(100, 0))[0]]
        assert opcodes.count("INIT") >= 2
        assert opcodes[:3] == ["LOOKUP", "INIT", "LOOKUP"]
        export.tracing.end(trace)
    assert not export.tracing.is_on


# --- requests and places --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (fuse.lookup(NodeId(1), b"\xffa"), {"name": b"\xffa"}),
        (
            fuse.batch_forget([fuse.Forget(NodeId(5), 3), fuse.Forget(NodeId(6), 1)]),
            {"forgets": [(5, 3), (6, 1)]},
        ),
        (fuse.getattr(NodeId(5)), {"getattr_flags": 0, "fh": 0}),
        (fuse.getattr(NodeId(5), fuse.FileHandle(9)), {"getattr_flags": 1, "fh": 9}),
        (fuse.readlink(NodeId(5)), {}),
        (fuse.open(NodeId(5), 0x8000), {"flags": 0x8000}),
        (fuse.opendir(NodeId(5)), {"flags": 0}),
        (
            fuse.read(NodeId(5), fuse.FileHandle(9), 1 << 40, 4096),
            {"fh": 9, "offset": 1 << 40, "size": 4096},
        ),
        (
            fuse.readdir(NodeId(5), fuse.FileHandle(9), 7, 512),
            {"fh": 9, "offset": 7, "size": 512},
        ),
        (
            fuse.readdirplus(NodeId(5), fuse.FileHandle(9), 7, 512),
            {"fh": 9, "offset": 7, "size": 512},
        ),
        (fuse.release(NodeId(5), fuse.FileHandle(9)), {"fh": 9, "flags": 0}),
        (fuse.releasedir(NodeId(5), fuse.FileHandle(9)), {"fh": 9, "flags": 0}),
        (fuse.statfs(NodeId(1)), {}),
        (fuse.interrupt(44), {"unique": 44}),
    ],
)
def test_what_a_request_says(request_: fuse.Request, expected: object) -> None:
    assert arguments(request_) == expected


def test_init_says_what_we_can() -> None:
    said = arguments(fuse.init(fuse.InitFlag.MAX_PAGES, 1 << 20))
    flags = 1 << 22 | 1 << 30
    assert said == {
        "major": 7,
        "minor": 38,
        "max_readahead": 1 << 20,
        "flags": flags,
        "flags2": 0,
    }


def entry(node: int) -> fuse.Entry:
    attributes = fuse.Attributes._make([0] * len(fuse.Attributes._fields))
    return fuse.Entry(NodeId(node), attributes._replace(mode=0o040755))


def table(*places: tuple[int, int, bytes]) -> NodeTable:
    nodes = NodeTable(100, 5.0, lambda _: None, 64)
    for node, directory, name in places:
        nodes.add(entry(node), Node(entry(directory)), name)
    return nodes


@pytest.mark.parametrize(
    ("places", "node", "path"),
    [
        ([], 1, b"/"),
        ([], 5, None),
        ([(5, 1, b"a")], 5, b"/a"),
        ([(5, 1, b"a"), (6, 5, b"b"), (7, 6, b"c")], 7, b"/a/b/c"),
        ([(6, 5, b"b"), (7, 6, b"c")], 7, b"b/c"),
    ],
)
def test_the_path_of_a_node(
    places: list[tuple[int, int, bytes]], node: int, path: bytes | None
) -> None:
    assert table(*places).path(NodeId(node)) == path


def test_a_path_that_goes_in_a_circle_ends() -> None:
    path = table((5, 6, b"a"), (6, 5, b"b")).path(NodeId(5))
    assert path is not None
    assert path.startswith((b"a/b/", b"b/a/"))
    assert len(path) < 10_000


# --- what one client keeps ------------------------------------------------------------------------


def event(number: int, **fields: object) -> Event:
    given = {"name": b"a"} if "arguments" not in fields else fields.pop("arguments")
    made = Event(number, "LOOKUP", 1, b"/", given, 42, 10**18, 5, 1500, "OK", 128)  # type: ignore[arg-type]
    return made._replace(**fields)  # type: ignore[arg-type]


async def test_the_oldest_events_are_given_up() -> None:
    trace = Trace(capacity=3)
    for number in range(5):
        trace.add(event(number))
    taken, lost = await trace.take(2, 0.0)
    assert ([one.unique for one in taken], lost) == ([2, 3], 2)
    taken, lost = await trace.take(2, 0.0)
    assert ([one.unique for one in taken], lost) == ([4], 0)


async def test_who_waits_is_woken_by_an_event(autojump_clock: MockClock) -> None:
    trace = Trace()
    begun = autojump_clock.current_time()
    assert await trace.take(1, 3.0) == ([], 0)
    assert autojump_clock.current_time() - begun == 3.0
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            taken, _ = await trace.take(9, 3.0)
            assert [one.unique for one in taken] == [7]

        nursery.start_soon(take)
        await trio.sleep(1)
        trace.add(event(7))
    assert autojump_clock.current_time() - begun == 4.0


async def test_a_trace_that_nobody_takes_anything_of_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracing, trace = Tracing(), Trace()
    tracing.begin(trace)
    tracing.tell(event(1))
    was_on = [tracing.is_on]
    monkeypatch.setattr(traces, "_PATIENCE", -1.0)
    tracing.tell(event(2))
    was_on.append(tracing.is_on)
    table = TraceTable(1, Holdings(99, 1 << 20))  # who comes back goes on
    again = table.find("files", tracing)
    was_on.append(tracing.is_on)
    assert was_on == [True, False, True]
    table.end("files")
    assert await again.take(1, 0.0) == ([], 0)


async def test_a_client_has_one_trace_of_an_export() -> None:
    table, one, two, three = TraceTable(2, Holdings(99, 1 << 20)), Tracing(), Tracing(), Tracing()
    trace = table.find("one", one)
    assert table.find("one", one) is trace
    other = table.find("two", two)
    assert other is not trace
    with pytest.raises(CallError, match="2 exports at once") as refused:
        table.find("three", three)
    assert refused.value.code == "TOO_LARGE"
    table.end("two")
    table.end("two")
    assert not two.is_on
    table.find("three", three)
    table.close()
    assert not one.is_on
    assert not three.is_on


async def test_a_trace_goes_on_with_the_export_that_takes_the_name() -> None:
    table, before, after = TraceTable(2, Holdings(99, 1 << 20)), Tracing(), Tracing()
    trace = table.find("files", before)
    assert table.find("files", after) is trace
    assert not before.is_on
    after.tell(event(3))
    assert [one.unique for one in (await trace.take(9, 0))[0]] == [3]


async def test_nobody_waits_for_a_trace_when_the_daemon_is_about_to_end() -> None:
    table, tracing = TraceTable(2, Holdings(99, 1 << 20)), Tracing()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.find("files", tracing).take, 1, 1000.0)
            await wait_all_tasks_blocked()
            table.close()
        assert await table.find("files", tracing).take(1, 1000.0) == ([], 0)


async def test_the_parameters_are_checked() -> None:
    method = bare_methods(None).find("trace")
    assert method.manages
    assert method.bind(["files"]) == (["files"], {"limit": 1000, "wait": 1.0, "end": False})
    assert method.bind(["files", {"wait": 5}])[1]["wait"] == 5.0
    for wrong in ({"wait": -1}, {"wait": 11}, {"wait": True}, {"limit": 0}, {"limit": 10_001}):
        with pytest.raises(CallError, match=f"trace {next(iter(wrong))}: "):
            method.bind(["files", wrong])
    with pytest.raises(CallError, match="not in 0"):
        method.bind(["files", {"wait": float("nan")}])


# --- the client's side ----------------------------------------------------------------------------

EVENTS = (
    event(4),
    event(6, path=b"/\xff b", arguments={"name": b"\xc3\xa9\xfe\n"}, outcome="ENOENT", length=0),
    event(8, opcode="READ", path=b"c/d", arguments={"fh": 1, "offset": 0, "size": 4096}),
    event(10, opcode="OPEN", arguments={"flags": 0x8000}),
    event(12, opcode="BATCH_FORGET", node=0, path=None, arguments={"forgets": [(5, 1), (6, 2)]}),
    event(14, opcode="INTERRUPT", node=0, path=None, arguments={"unique": 8}),
)


def wire(events: tuple[Event, ...], lost: int = 0) -> object:
    """Return a page as it arrives: encoded and decoded once."""
    decoder = MessageDecoder(Limits(1 << 20, 16))
    page = {"events": [event_map(one) for one in events], "lost": lost}
    decoder.feed(encode_request(1, "page", [page]))
    (message,) = decoder
    assert isinstance(message, Request)
    return message.params[0]


def test_events_survive_the_wire() -> None:
    page = TracePage.from_wire(wire(EVENTS, lost=2))
    assert page.lost == 2
    assert [one.lost for one in page.events] == [2, 0, 0, 0, 0, 0]
    assert page.events[1].path == "/\udcff b"
    assert page.events[1].arguments == {"name": "é\udcfe\n"}
    assert page.events[4].arguments == {"forgets": [(5, 1), (6, 2)]}
    assert page.events[4].path is None


def test_events_survive_json() -> None:
    for one in TracePage.from_wire(wire(EVENTS, lost=2)).events:
        text = json.dumps(one.to_json())
        assert text.isascii()
        assert TraceEvent.from_json(json.loads(text)) == one


@pytest.mark.parametrize(
    "change",
    [
        {"unique": "4"},
        {"sent_ns": -1},
        {"sent_ns": 1 << 70},
        {"took_ns": -1},
        {"took_ns": 1 << 64},
        {"node": -1},
        {"lost": -1},
        {"length": 1 << 64},
        {"size": 1.5},
        {"path": 5},
        {"path": "\ud800"},
        {"arguments": []},
        {"arguments": {"forgets": [1]}},
        {"arguments": {"forgets": [[1, "2"]]}},
        {"arguments": {"name": None}},
        {"opcode": None},
        {"lost": "x"},
    ],
    ids=str,
)
def test_a_line_that_is_no_event(change: dict[str, object]) -> None:
    (one,) = TracePage.from_wire(wire(EVENTS[:1])).events
    with pytest.raises(BadReply):
        TraceEvent.from_json(one.to_json() | change)
    fields = one.to_json()
    del fields["took_ns"]
    with pytest.raises(BadReply, match="took_ns"):
        TraceEvent.from_json(fields)


def test_the_lines_of_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)
    lines = [trace.line(one) for one in TracePage.from_wire(wire(EVENTS)).events]
    columns = [(text[:15], text[15:39].split(), text[39:]) for text in lines]
    assert columns == [
        ("01:46:40.000000", [unique, "1.5"], rest)
        for unique, rest in (
            ("4", "LOOKUP             1  OK 128         / name=a"),
            ("6", r"LOOKUP             1  ENOENT         /\377\ b name=é\376\n"),
            ("8", "READ               1  OK 128         c/d fh=1 offset=0 size=4096"),
            ("10", "OPEN               1  OK 128         / flags=0x8000"),
            ("12", "BATCH_FORGET       0  OK 128         forgets=5:1,6:2"),
            ("14", "INTERRUPT          0  OK 128         unique=8"),
        )
    ]


def test_no_line_has_what_a_terminal_would_obey() -> None:
    (one,) = TracePage.from_wire(wire(EVENTS[:1])).events
    for strange in ("\x1b[31m", "a\rb", "\udcff\n"):
        text = trace.line(
            one._replace(
                opcode=strange, outcome=strange, path=strange, arguments={strange: strange}
            )
        )
        assert text.isprintable()
        assert text.count(printable(strange)) == 5


class Pages:
    """Stands for a client whose daemon has these pages."""

    def __init__(self, *pages: TracePage) -> None:
        self._pages = list(pages)

    def trace_page(self, export: str, *, wait: float = 1.0) -> TracePage:  # noqa: ARG002
        if not self._pages:
            raise KeyboardInterrupt
        return self._pages.pop(0)


Printed = Callable[[], str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return lambda: capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_a_capture_is_printed_as_its_requests_were(
    tmp_path: Path, printed: Printed, as_json: bool
) -> None:
    def pages() -> Pages:
        first = TracePage.from_wire(wire(EVENTS[:2]))
        return Pages(TracePage([], 0), first, TracePage.from_wire(wire(EVENTS[2:], lost=17)))

    with pytest.raises(KeyboardInterrupt):
        trace.trace(pages(), "files", count=None, write=None, as_json=as_json)  # type: ignore[arg-type]
    live = printed()
    assert "17" in live
    file = str(tmp_path / "capture")
    with pytest.raises(KeyboardInterrupt):
        trace.trace(pages(), "files", count=None, write=file, as_json=as_json)  # type: ignore[arg-type]
    assert printed() == ""
    trace.read(file, count=None, as_json=as_json)
    assert printed() == live
    trace.read(file, count=2, as_json=as_json)
    head = 0 if as_json else 1
    assert printed().splitlines() == live.splitlines()[: head + 2]


@pytest.mark.parametrize(("passed", "is_told"), [(59.0, False), (61.0, True)])
def test_a_pause_after_which_requests_lack_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    passed: float,
    is_told: bool,
) -> None:
    """The daemon has ended the trace meanwhile, and the next call has begun another."""
    monkeypatch.setattr(time, "monotonic", itertools.count(1000.0, passed).__next__)
    pages = Pages(TracePage.from_wire(wire(EVENTS[:1])), TracePage.from_wire(wire(EVENTS[1:])))
    trace.trace(pages, "files", count=2, write=None, as_json=False)  # type: ignore[arg-type]
    words = "vuserctl: files: nothing was read for 61 s: requests may lack here\n"
    assert capsys.readouterr().err == (words if is_told else "")


def test_a_count_ends_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = TracePage.from_wire(wire(EVENTS))
    file = tmp_path / "capture"
    trace.trace(Pages(page), "files", count=3, write=str(file), as_json=False)  # type: ignore[arg-type]
    assert len(file.read_text().splitlines()) == 4
    assert capsys.readouterr().err == f"vuserctl: 3 requests in {file}\n"


def test_a_capture_that_was_cut_off_is_read_as_far_as_it_goes(
    tmp_path: Path, printed: Printed
) -> None:
    file = tmp_path / "capture"
    page = TracePage.from_wire(wire(EVENTS))
    trace.trace(Pages(page), "files", count=3, write=str(file), as_json=False)  # type: ignore[arg-type]
    file.write_bytes(file.read_bytes()[:-20])
    trace.read(str(file), count=None, as_json=True)
    assert len(printed().splitlines()) == 2


def test_the_head_of_a_trace_is_plain(tmp_path: Path, printed: Printed) -> None:
    """It is printed whatever the terminal's encoding is."""
    file = str(tmp_path / "capture")
    trace.trace(Pages(TracePage([], 0)), "files", count=0, write=file, as_json=False)  # type: ignore[arg-type]
    trace.read(file, count=None, as_json=False)
    head = printed()
    assert head.startswith("TIME ")
    assert head.isascii()


@pytest.mark.parametrize(
    "field", ["unique", "node", "size", "sent_ns", "monotonic_ns", "took_ns", "length", "lost"]
)
def test_a_capture_with_a_number_out_of_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    file = tmp_path / "capture"
    page = TracePage.from_wire(wire(EVENTS[:1], lost=5))
    for number in (-1, 1 << 2000):
        trace.trace(Pages(page), "files", count=1, write=str(file), as_json=False)  # type: ignore[arg-type]
        header, one = file.read_text().splitlines()
        changed = json.dumps(json.loads(one) | {field: number})
        file.write_text(f"{header}\n{changed}\n")
        capsys.readouterr()
        assert main.run(["trace", "--read", str(file)]) == 1
        words = f"vuserctl: {file}:2: an event of a trace with {field} {number}\n"
        assert capsys.readouterr().err == words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "capture:1: not a line of JSON"),
        (b"\xff\n", "capture:1: not a line of JSON"),
        (b"[]\n", "not a capture of vuserctl trace"),
        (b'{"format": "pcap"}\n', "not a capture of vuserctl trace"),
        (b'{"format": "vuserd-trace", "version": 2}\n', "another version: 2"),
        (b'{"format": "vuserd-trace", "version": 1}\nno\n', "capture:2: not a line of JSON"),
        (b'{"format": "vuserd-trace", "version": 1}\n{}\n', "capture:2: an event of a trace"),
        (b'{"format": "vuserd-trace", "version": 1}\n5\n', "capture:2: the daemon sent int"),
    ],
)
def test_a_file_that_is_no_capture(
    tmp_path: Path, printed: Printed, content: bytes, words: str
) -> None:
    file = tmp_path / "capture"
    file.write_bytes(content)
    with pytest.raises(trace.BadCapture, match=words):
        trace.read(str(file), count=None, as_json=False)
    if ":2: " not in words:
        assert printed() == ""


def test_vuserctl_knows_how_long_a_trace_is_kept() -> None:
    assert trace._KEPT == traces._PATIENCE
