"""Metrics: what counts as what, their text for Prometheus, and the file of that."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol import Check
from protocol.fuse import Opcode
from protocol.vhost_user import Request
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest, Reply
from tests.fake.bare_daemon import bare_methods
from tests.faults.harness import CONTENT, exported, names, read, stat
from tests.running import REPOSITORY
from vuserd.config.model import ExportConfig
from vuserd.delivery.images import ImageStore
from vuserd.errors import (
    BackendBroken,
    BackendDown,
    BackendTimeout,
    ConfigurationError,
    ErrorCode,
    LossCause,
)
from vuserd.exports.export import Export
from vuserd.exports.losses import cause_of
from vuserd.exports.states import ExportState
from vuserd.metrics import exporter as exporter_module
from vuserd.metrics.exporter import Exporter
from vuserd.metrics.sources import Sources
from vuserd.rpc.counters import SECONDS, Counters
from vuserd.rpc.peer_log import PeerLog

SOCKETS = (
    {"socket": "/run/s", "state": "listening"},
    {"socket": "/srv/s", "state": "failed"},
    {"socket": "@vuserd", "state": "listening", "netns": "rig-7"},
    {"socket": os.fsdecode(b"/srv/\xff"), "state": "listening"},
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Return the values by name and labels; each may be there once."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"vuserd_{name}", frozenset(labels.items())]


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - there is nothing to wait on
            await trio.sleep(0.01)


@asynccontextmanager
async def exporting(**exports: Export) -> AsyncIterator[tuple[Exporter, Counters]]:
    async with trio.open_nursery() as nursery:
        counters = Counters()
        images = ImageStore(1 << 20, 10, nursery)
        refusals = PeerLog(logging.WARNING, "refused to %s: %s%s")
        sources = Sources(counters, exports, images, refusals, lambda: 3, lambda: SOCKETS)
        yield Exporter(sources), counters
        images.close()


# --- counting -------------------------------------------------------------------------------------


def test_a_call_is_counted_by_its_end_and_its_time() -> None:
    counters = Counters()
    for seconds in (0.0, SECONDS[0], SECONDS[0] * 1.01, 3.0, 11.0):
        counters.count("stat", "OK", seconds)
    counters.count("stat", "ENOENT", 0.0)
    counters.count("read", "BACKEND_DOWN", 0.0)
    counts = counters.methods["stat"]
    assert counts.ends == {"OK": 5, "ENOENT": 1}
    assert counts.by_second == [3, 1, *[0] * 12, 1, 1]
    assert counts.seconds == pytest.approx(14.0002, abs=1e-4)
    assert counters.methods["read"].ends == {"OK": 0, "BACKEND_DOWN": 1}


def test_errnos_without_a_name_are_counted_together() -> None:
    counters = Counters()
    for number in range(3):
        counters.count("stat", f"ERRNO_{4000 + number}", 0.0)
    assert counters.methods["stat"].ends == {"OK": 0, "OTHER": 3}


async def test_the_text_has_what_was_counted() -> None:
    async with exporting() as (exporter, counters):
        for seconds in (0.00005, 0.0002, 0.3, 20.0):
            counters.count("stat", "OK", seconds)
        counters.count("stat", ErrorCode.TIMEOUT, 10.0)
        counters.bytes_read, counters.bytes_of_images, counters.bytes_loaded = 5, 6, 7
        text = await exporter.text()
    found = samples(text)
    assert value(found, "requests_total", method="stat", code="OK") == 4
    assert value(found, "requests_total", method="stat", code="TIMEOUT") == 1
    buckets = {
        float(dict(labels)["le"]): count
        for (name, labels), count in found.items()
        if name == "vuserd_request_seconds_bucket"
    }
    assert sorted(buckets) == [*SECONDS, float("inf")]
    assert [buckets[end] for end in sorted(buckets)] == [1, *[2] * 10, 3, 3, 3, 4, 5]
    assert value(found, "request_seconds_count", method="stat") == 5
    assert value(found, "request_seconds_sum", method="stat") == pytest.approx(30.30025)
    assert value(found, "delivered_bytes_total", way="inline") == 5
    assert value(found, "delivered_bytes_total", way="image") == 6
    assert value(found, "delivered_bytes_total", way="attached") == 7
    assert value(found, "clients") == 3
    assert value(found, "process_open_fds") > 0
    assert not [name for name, _ in found if not name.startswith("vuserd_")]


async def test_the_text_tells_which_sockets_are_there() -> None:
    async with exporting() as (exporter, _):
        found = samples(await exporter.text())
    assert [
        value(found, "listening", socket=socket, rig=rig)
        for socket, rig in (
            ("/run/s", ""),
            ("/srv/s", ""),
            ("@vuserd", "rig-7"),
            ("/srv/\\udcff", ""),
        )
    ] == [1, 0, 1, 1]


def test_they_are_for_those_who_manage_the_daemon() -> None:
    method = bare_methods(None).find("metrics")
    assert method.manages
    assert method.bind([]) == ([], {})


async def test_the_names_keep_to_the_conventions() -> None:
    async with exporting() as (exporter, _):
        text = await exporter.text()
    families = list(text_string_to_metric_families(text))
    for family in families:
        assert not family.name.endswith(("_count", "_bucket", "_milliseconds", "_kilobytes"))
        names = {sample.name for sample in family.samples}
        assert (family.type == "counter") == any(name.endswith("_total") for name in names) or (
            not names
        )
    assert len({family.name for family in families}) == len(families)


# --- losses and faults ----------------------------------------------------------------------------


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"Image": CONTENT, b"folder": File(mode=0o040755)})


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "backend.sock")


def once(backend: FakeBackend, opcode: Opcode, lie: Callable[[Answer], Answer | None]) -> None:
    """Spoil the answers to one kind of request in the first session."""

    def answer(request: FuseRequest) -> Answer | None:
        honest = backend.serve_files(request)
        if request.opcode is not opcode or backend.sessions > 1 or honest is None:
            return honest
        return lie(honest)

    backend.answer = answer


def uses(backend: FakeBackend, trick: Callable[[FuseRequest], None]) -> None:
    """Play a trick with the used ring in place of the first LOOKUP's reply."""

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is not Opcode.LOOKUP or backend.sessions > 1:
            return backend.serve_files(request)
        trick(request)
        return None

    backend.answer = answer


def breaks_used_index(backend: FakeBackend) -> None:
    def trick(request: FuseRequest) -> None:
        ring = backend.rings[request.queue]
        ring.set_used_index((ring._next_used + 7) % 0x10000)
        backend.call(request.queue)

    uses(backend, trick)


def breaks_used_id(backend: FakeBackend) -> None:
    uses(backend, lambda request: backend.use_anything(request.queue, (1000, 16)))


def breaks_used_length(backend: FakeBackend) -> None:
    uses(
        backend,
        lambda request: backend.use_anything(request.queue, (request.chain.head, 1 << 20)),
    )


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (breaks_used_index, Check.USED_INDEX),
        (breaks_used_id, Check.USED_ID),
        (breaks_used_length, Check.USED_LENGTH),
        (
            lambda backend: once(backend, Opcode.LOOKUP, lambda a: a._replace(unique=1)),
            Check.REPLY_UNIQUE,
        ),
        (
            lambda backend: once(backend, Opcode.LOOKUP, lambda a: a._replace(length=40)),
            Check.REPLY_LENGTH,
        ),
        (
            lambda backend: once(backend, Opcode.LOOKUP, lambda _: Answer(error=5000)),
            Check.REPLY_ERROR,
        ),
        (
            lambda backend: once(backend, Opcode.LOOKUP, lambda _: Answer(b"short")),
            Check.REPLY_BODY,
        ),
        (
            lambda backend: once(backend, Opcode.READDIR, lambda _: Answer(b"short")),
            Check.DIRECTORY,
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Check) else "",
)
async def test_a_broken_protocol_is_counted_by_the_check(
    backend: FakeBackend, socket: str, spoil: Callable[[FakeBackend], None], check: Check
) -> None:
    spoil(backend)
    async with exported(backend, socket) as export:
        with trio.fail_after(10):
            assert await export.call(names if check is Check.DIRECTORY else read)
        assert {name: count for name, count in export.losses.faults.items() if count} == {check: 1}
        assert {cause: count for cause, count in export.losses.restarts.items() if count} == {
            LossCause.PROTOCOL: 1
        }
        async with exporting(files=export) as (exporter, _):
            found = samples(await exporter.text())
    assert value(found, "ring_faults_total", export="files", cause=check) == 1
    assert value(found, "backend_restarts_total", export="files", cause="protocol") == 1


async def test_a_fault_of_the_vhost_user_socket(backend: FakeBackend, socket: str) -> None:
    async with exported(backend, socket) as export:
        backend.say(b"nobody asked for this")
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await export.call(stat)
        assert export.losses.faults["vhost_user"] == 1
        assert export.losses.last is not None
        assert export.losses.last.cause is LossCause.PROTOCOL


async def test_a_first_reply_that_is_malformed(backend: FakeBackend, socket: str) -> None:
    def lie(reply: Reply) -> Reply:
        return reply._replace(payload=b"short") if backend.sessions == 1 else reply

    backend.altered[Request.GET_FEATURES] = lie
    async with exported(backend, socket) as export:
        await eventually(lambda: export.state is ExportState.UP)
        await export.call(stat)
        assert export.losses.faults["vhost_user"] == 1
        assert sum(export.losses.restarts.values()) == 0  # nothing served before


async def test_a_socket_that_is_closed(backend: FakeBackend, socket: str) -> None:
    async with exported(backend, socket) as export:
        assert export.describe_fully()["restarts"] == 0
        assert export.describe_fully()["last_loss"] is None
        backend.die()
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await export.call(stat)
        described = export.describe_fully()
        assert described["restarts"] == 1
        assert described["restarts_by_cause"] == {"closed": 1}
        assert described["last_loss"]["cause"] == "closed"
        assert described["last_loss"]["reason"] == "the backend closed its socket"
        assert described["last_loss"]["when"] > 1.7e9


async def test_a_backend_that_is_silent(
    backend: FakeBackend,
    socket: str,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    def connected() -> None:
        backend.stuck = set()

    async with exported(backend, socket) as export:
        backend.stuck = {1}
        backend.on_connect = connected
        with pytest.raises(BackendTimeout):
            await export.call(stat)
        await trio.sleep(30)  # what hung it is held back for so long
        with trio.fail_after(30):
            await export.call(stat)
        assert export.losses.restarts[LossCause.SILENT] == 1


async def test_a_socket_where_nobody_listens_is_no_loss(socket: str) -> None:
    export = Export(ExportConfig("files", socket=socket), ConfigurationError("not asked for"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(export.run)
        await export.settled.wait()
        await trio.sleep(0.3)
        export.stop()
    assert sum(export.losses.restarts.values()) == 0
    assert export.losses.last is None


@pytest.mark.parametrize(
    ("end", "error", "cause"),
    [
        (-signal.SIGKILL, BackendDown("closed"), "killed"),
        (-signal.SIGTERM, BackendDown("closed"), "killed"),
        (-signal.SIGSEGV, BackendDown("closed"), "crashed"),
        (-signal.SIGSYS, BackendDown("ended", LossCause.EXITED), "crashed"),
        (1, BackendDown("closed"), "exited"),
        (None, BackendDown("closed"), "closed"),
        (None, BackendDown("ended", LossCause.EXITED), "exited"),
        (-signal.SIGKILL, BackendBroken("lies"), "protocol"),
        (-signal.SIGKILL, BackendDown("nothing", LossCause.SILENT), "silent"),
        (None, BackendTimeout("SET_OWNER"), "silent"),
    ],
)
def test_the_cause_of_a_loss(end: int | None, error: BackendDown, cause: str) -> None:
    assert cause_of(error, end) == cause


def test_an_error_that_is_shared_keeps_its_cause() -> None:
    error = BackendDown("nothing", LossCause.SILENT)
    assert error.again().cause is LossCause.SILENT
    broken = BackendBroken("lies", check="used_id")
    assert (broken.again().cause, broken.again().check) == (LossCause.PROTOCOL, "used_id")
    assert BackendDown("closed").cause is LossCause.CLOSED


# --- the file -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "textfile"
    made.mkdir()
    return made


@asynccontextmanager
async def keeping(path: Path, interval: float = 15.0) -> AsyncIterator[tuple[Exporter, Counters]]:
    async with exporting() as (exporter, counters), trio.open_nursery() as nursery:
        exporter.configure(str(path), interval)
        nursery.start_soon(exporter.run)
        yield exporter, counters
        nursery.cancel_scope.cancel()


def content(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def there(path: Path, words: str = "vuserd_build_info") -> str:
    """Wait until a file says something; return all that it says."""
    await eventually(lambda: words in content(path))
    return content(path)


async def test_the_file_is_kept_up_to_date_and_removed(folder: Path) -> None:
    path = folder / "vuserd.prom"
    umask = os.umask(0o077)
    try:
        async with keeping(path, 0.05) as (_, counters):
            first = await there(path)
            assert path.stat().st_mode & 0o7777 == 0o644
            assert "method" not in first
            inode = path.stat().st_ino
            counters.count("stat", "OK", 0.1)
            assert samples(await there(path, 'method="stat"'))
            assert path.stat().st_ino != inode  # another file in its place, never a part of one
    finally:
        os.umask(umask)
    assert files(folder) == []


async def test_another_file_takes_the_place_of_the_one(folder: Path) -> None:
    one, two = folder / "one.prom", folder / "two.prom"
    async with keeping(one) as (exporter, _):
        await there(one)
        exporter.configure(str(two), 15.0)
        await there(two)
        assert not one.exists()
        exporter.configure(None, 15.0)
        await eventually(lambda: not two.exists())
        exporter.configure(str(two), 15.0)
        await there(two)
    assert files(folder) == []


async def test_a_file_that_cannot_be_written_is_complained_of_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "missing" / "vuserd.prom"
    caplog.set_level(logging.INFO, "vuserd.metrics.exporter")
    async with keeping(path, 0.01):
        with trio.fail_after(60):
            while not caplog.records:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.01)
        await trio.sleep(0.1)
        path.parent.mkdir()
        await there(path)
        await trio.sleep(0.1)
    assert [record.getMessage() for record in caplog.records] == [
        f"metrics cannot be written: {path}: no such file or directory",
        f"metrics are written to {path} again",
    ]


async def test_a_file_is_written_once_there_is_a_thread(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "vuserd.prom"
    run_sync = trio.to_thread.run_sync

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    async with keeping(path, 0.01):
        await trio.sleep(0.1)
        monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
        await there(path)
        monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    assert [record.getMessage() for record in caplog.records][:1] == [
        f"metrics cannot be written: {path}: can't start new thread"
    ]


async def test_an_end_right_after_a_change_leaves_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the file is written it is to be written at other times, and then the daemon ends."""
    path, begun, answers = folder / "vuserd.prom", threading.Event(), threading.Event()
    replace = exporter_module._replace

    def slow(*arguments: str) -> None:
        begun.set()
        answers.wait(1)
        replace(*arguments)

    monkeypatch.setattr(exporter_module, "_replace", slow)
    async with keeping(path) as (exporter, _):
        await eventually(begun.is_set)
        exporter.configure(str(path), 5.0)
    assert files(folder) == []


async def test_a_full_disk_leaves_no_half_of_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fchmod", fail)
    async with keeping(folder / "vuserd.prom"):
        await eventually(lambda: bool(caplog.records))
    assert files(folder) == []


async def test_a_folder_whose_file_system_does_not_answer(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up neither what else is to be done nor the end; one thread or two wait for it."""
    path, answers, asked = folder / "vuserd.prom", threading.Event(), []

    def ask(*arguments: str) -> None:
        asked.append(arguments)
        answers.wait(10)

    for function in ("_replace", "_remove"):
        monkeypatch.setattr(exporter_module, function, ask)
    monkeypatch.setattr(exporter_module, "_PATIENCE", 0.05)
    try:
        with trio.fail_after(20):
            async with keeping(path, 0.01):
                await trio.sleep(0.5)
    finally:
        answers.set()
    assert len(asked) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"metrics cannot be written: {path}: connection timed out"
    ]


@pytest.mark.parametrize("kind", ["link", "pipe"])
async def test_what_is_in_the_way_is_not_written_to(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    path, precious = folder / "vuserd.prom", tmp_path / "precious"
    precious.write_text("precious")
    temporary = folder / "vuserd.prom.tmp"
    if kind == "link":
        temporary.symlink_to(precious)
    else:
        os.mkfifo(temporary)
    async with keeping(path, 0.01):
        with trio.fail_after(20):
            while not path.exists():  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.01)
        assert path.is_file()
    assert precious.read_text() == "precious"


def test_what_it_takes_is_not_loaded_before_it_is_wanted() -> None:
    code = "import sys, vuserd.cli; sys.exit('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=60)
    assert done.returncode == 0
