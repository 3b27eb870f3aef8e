"""The metrics and traces of a real daemon show what it did, no more and no less."""

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from tests.running import REPOSITORY, RunningDaemon
from tests.unit.test_metrics import Samples, samples, value
from vuserd.client import Client, TrioClient
from vuserd.client.calls import Call
from vuserd.client.errors import RemoteError
from vuserd.client.trace import TraceEvent
from vuserd.wire.codec import encode_request

SIZE: Final = 300_001
_CALLS: Final = ("requests_total", "method", "code")
#: Seconds for what does not happen at once.
_SOON: Final = 20.0


@pytest.fixture
def daemon(virtiofsd: str, tmp_path: Path) -> Iterator[RunningDaemon]:
    below = tmp_path / "files" / "a"
    below.mkdir(parents=True)
    (below / "b").write_bytes(os.urandom(SIZE))
    time.sleep(0.1)  # files that have just changed would be looked at again
    with RunningDaemon({"files": tmp_path / "files"}, tmp_path / "s", virtiofsd) as running:
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with Client.connect(daemon.socket) as connected:
        yield connected


def counted(client: Client) -> Samples:
    return samples(client.metrics())


def grown(before: Samples, after: Samples, name: str, *labels: str) -> dict[Any, float]:
    """Return by how much the series of a metric have grown, by the values of these labels."""
    found: dict[Any, float] = {}
    for key, number in after.items():
        if key[0] == f"vuserd_{name}" and number != before.get(key, 0):
            of = dict(key[1])
            found[tuple(of[label] for label in labels)] = number - before.get(key, 0)
    return found


def refused(call: Callable[[], object], code: str) -> None:
    with pytest.raises(RemoteError) as error:
        call()
    assert error.value.code == code


def test_calls_are_counted_exactly(client: Client) -> None:
    before = counted(client)
    for _ in range(7):
        client.stat("files", "a/b")
    for _ in range(3):
        refused(lambda: client.stat("files", "nowhere"), "ENOENT")
    refused(lambda: client.stat("nothing", "a"), "UNKNOWN_EXPORT")
    refused(lambda: client.read("files", "a", 0, 10), "EISDIR")
    refused(lambda: client.call(Call("no such\nmethod", [], id)), "UNKNOWN_METHOD")
    refused(lambda: client.call(Call("stat", [5], id)), "BAD_REQUEST")
    assert len(client.read("files", "a/b", 1000, 5000)) == 5000
    assert len(client.read("files", "a/b", SIZE - 10, 5000)) == 10
    for _ in range(2):
        client.fetch("files", "a/b").close()
    with client.attach(size=1 << 20) as memory:
        assert memory.load("files", "a/b", address=0, offset=1, length=4000) == 4000
        assert memory.load("files", "a/b", address=4096) == SIZE
    after = counted(client)
    calls = {
        ("stat", "OK"): 7,
        ("stat", "ENOENT"): 3,
        ("stat", "UNKNOWN_EXPORT"): 1,
        ("stat", "BAD_REQUEST"): 1,
        ("none", "UNKNOWN_METHOD"): 1,
        ("read", "OK"): 2,
        ("read", "EISDIR"): 1,
        ("fetch", "OK"): 2,
        ("attach", "OK"): 1,
        ("load", "OK"): 2,
        ("detach", "OK"): 1,
        ("metrics", "OK"): 1,
    }
    assert grown(before, after, *_CALLS) == calls
    times = grown(before, after, "request_seconds_count", "method")
    for method in {method for method, _ in calls}:
        assert times[(method,)] == sum(n for (of, _), n in calls.items() if of == method)
    assert grown(before, after, "request_seconds_bucket", "method", "le")["stat", "+Inf"] == 12
    assert 0 < grown(before, after, "request_seconds_sum", "method")[("stat",)] < 60
    assert grown(before, after, "delivered_bytes_total", "way") == {
        ("inline",): 5010,
        ("image",): 2 * SIZE,
        ("attached",): 4000 + SIZE,
    }
    assert grown(before, after, "image_lookups_total", "result") == {("hit",): 1, ("miss",): 1}
    assert value(after, "images") == 1
    assert value(after, "image_bytes") == SIZE + -SIZE % mmap.PAGESIZE
    assert value(after, "clients") == 1
    assert value(after, "requests_in_flight") == 1
    assert value(after, "nodes", export="files") == 2
    assert value(after, "export_up", export="files") == 1


def kill(client: Client, number: int) -> None:
    """Send the backend a signal, and wait until another one serves."""
    (export,) = client.exports()
    assert export.backend is not None
    assert export.backend.pid is not None
    os.kill(export.backend.pid, number)
    deadline = time.monotonic() + _SOON
    while client.exports()[0].backend in (None, export.backend):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    client.stat("files", "a/b")


def test_a_kill_is_a_restart_with_its_cause(client: Client) -> None:
    client.stat("files", "a/b")
    before = counted(client)
    begun = time.time()
    for _ in range(2):
        kill(client, signal.SIGKILL)
    after = counted(client)
    assert grown(before, after, "backend_restarts_total", "export", "cause") == {
        ("files", "killed"): 2
    }
    assert grown(before, after, "backend_sessions_total", "export") == {("files",): 2}
    assert grown(before, after, "ring_faults_total", "export", "cause") == {}
    assert begun < value(after, "backend_last_loss_timestamp_seconds", export="files") < time.time()
    (export,) = client.status()["exports"]
    assert export["restarts"] == 2
    assert export["restarts_by_cause"] == {"killed": 2}
    assert export["last_loss"] is not None
    assert export["last_loss"]["cause"] == "killed"
    assert "SIGKILL" in export["last_loss"]["reason"]


def test_a_reload_is_no_loss(client: Client) -> None:
    before = counted(client)
    client.reload("files")
    after = counted(client)
    assert grown(before, after, "backend_restarts_total", "export", "cause") == {}
    [export] = client.exports()
    assert export.backend is not None
    anew = {} if export.backend.kind == "rust" else {("files",): 1}
    assert grown(before, after, "backend_sessions_total", "export") == anew


def test_a_call_whose_client_goes_away_is_counted(daemon: RunningDaemon, client: Client) -> None:
    before = counted(client)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(daemon.socket)
        other.send(encode_request(1, "api_info", []))
        other.send(encode_request(2, "trace", ["files", {"wait": 10.0}]))
        select.select([other], [], [], _SOON)
    # It left with a reply that it had not read: so it does not wait for the other one either.
    deadline = time.monotonic() + _SOON
    gone = {("trace", "GONE"): 1, ("api_info", "OK"): 1}
    while not gone.items() <= grown(before, counted(client), *_CALLS).items():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_metrics_are_kept_in_a_file(virtiofsd: str, tmp_path: Path) -> None:
    files, file = tmp_path / "files", tmp_path / "vuserd.prom"
    files.mkdir()
    config = tmp_path / "vuserd.toml"
    config.write_text(
        f'backend = "{virtiofsd}"\nmetrics_file = "{file}"\nmetrics_interval = 0.1\n'
        f'[[listen]]\nsocket = "{tmp_path}/s"\n[[export]]\nname = "files"\npath = "{files}"\n'
    )
    arguments = ("--config", str(config))
    with (
        RunningDaemon({}, tmp_path / "s", None, *arguments, configured=True) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        client.statfs("files")
        deadline = time.monotonic() + _SOON
        while 'method="statfs"' not in (file.read_text() if file.exists() else ""):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        there = samples(file.read_text())
        assert value(there, "requests_total", method="statfs", code="OK") == 1
        assert file.stat().st_mode & 0o777 == 0o644
        config.write_text(config.read_text().replace("vuserd.prom", "other.prom"))
        client.call(Call("reload", [None], list))
        while file.exists() or not (tmp_path / "other.prom").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not file.exists()
    assert not list(tmp_path.glob("*.prom*"))


# --- traces ---------------------------------------------------------------------------------------


def steps(events: list[TraceEvent]) -> list[tuple[str, str | None, object]]:
    return [(event.opcode, event.path, event.arguments.get("name")) for event in events]


def test_a_trace_shows_each_step(client: Client) -> None:
    assert client.trace_page("files", wait=0.0) == ([], 0)
    client.stat("files", "a/b")
    events, lost = client.trace_page("files")
    assert steps(events) == [("LOOKUP", "/", "a"), ("LOOKUP", "/a", "b")]
    assert lost == 0
    assert [event.outcome for event in events] == ["OK", "OK"]
    refused(lambda: client.stat("files", "a/none"), "ENOENT")
    events, _ = client.trace_page("files")
    assert steps(events) == [("LOOKUP", "/", "a"), ("LOOKUP", "/a", "none")]
    assert [event.outcome for event in events] == ["OK", "ENOENT"]
    assert len(client.read("files", "a/b", 10, 20)) == 20
    events, _ = client.trace_page("files")
    time.sleep(0.1)
    events += client.trace_page("files", wait=0.0).events
    assert [event.opcode for event in sorted(events)] == [
        "LOOKUP",
        "LOOKUP",
        "OPEN",
        "READ",
        "GETATTR",
        "RELEASE",
    ]
    (part,) = [event for event in events if event.opcode == "READ"]
    assert (part.path, part.length) == ("/a/b", 20)
    assert {key: part.arguments[key] for key in ("offset", "size")} == {"offset": 10, "size": 20}
    assert sorted(event.monotonic_ns for event in events) == [
        event.monotonic_ns for event in sorted(events)
    ]


def test_a_trace_goes_on_with_the_next_backend(client: Client) -> None:
    trace = client.trace("files")
    client.trace_page("files", wait=0.0)
    kill(client, signal.SIGKILL)
    seen = [next(trace) for _ in range(3)]
    assert steps(seen) == [("INIT", None, None), ("LOOKUP", "/", "a"), ("LOOKUP", "/a", "b")]
    assert seen[0].unique < seen[1].unique < seen[2].unique


def test_a_trace_can_be_ended(client: Client) -> None:
    client.trace_page("files", wait=0.0)
    client.stat("files", "a")
    assert len(client.trace_page("files", end=True).events) == 1
    client.stat("files", "a")
    assert client.trace_page("files", wait=0.0) == ([], 0)


def test_two_clients_trace_at_once(daemon: RunningDaemon, client: Client) -> None:
    client.trace_page("files", wait=0.0)

    async def other() -> list[TraceEvent]:
        async with TrioClient.connect(daemon.socket) as connected:
            await connected.trace_page("files", wait=0.0)
            await connected.stat("files", "a")
            seen = []
            async with contextlib.aclosing(connected.trace("files")) as trace:
                async for event in trace:
                    seen.append(event)
                    if len(seen) == 1:
                        break
            assert "vuserd_clients 2.0" in await connected.metrics()
            return seen

    assert trio.run(other) == client.trace_page("files").events


def vuserctl(daemon: RunningDaemon, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vuserd.ctl.main", "--socket", daemon.socket]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
    )


def printed(daemon: RunningDaemon, *arguments: str) -> str:
    with vuserctl(daemon, *arguments) as process:
        out, err = process.communicate(timeout=_SOON)
    assert process.returncode == 0, err
    return out


def test_a_capture_reads_like_what_was_printed(
    daemon: RunningDaemon, client: Client, tmp_path: Path
) -> None:
    odd = os.fsencode(tmp_path / "files") + b"/\xff\n odd"
    os.mkdir(odd)
    file = tmp_path / "capture"
    with (
        vuserctl(daemon, "trace", "files", "-n", "5") as live,
        vuserctl(daemon, "trace", "files", "-n", "5", "--write", str(file)) as writer,
    ):
        assert live.stdout is not None
        head = live.stdout.readline()
        assert head.split()[:2] == ["TIME", "UNIQUE"]
        deadline = time.monotonic() + _SOON
        while not file.exists() or not file.read_bytes().endswith(b"\n"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for path in (b"a/b", b"\xff\n odd", b"a/none"):
            with contextlib.suppress(RemoteError):
                client.stat("files", path)
        text = head + live.communicate(timeout=_SOON)[0]
        assert writer.communicate(timeout=_SOON) == ("", f"vuserctl: 5 requests in {file}\n")
    assert (live.returncode, writer.returncode) == (0, 0)
    assert len(text.splitlines()) == 6
    assert r"name=\377\n\ odd" in text
    assert printed(daemon, "trace", "--read", str(file)) == text
    as_json = printed(daemon, "--json", "trace", "--read", str(file))
    assert [json.loads(line)["opcode"] for line in as_json.splitlines()] == ["LOOKUP"] * 5
    assert as_json.splitlines() == file.read_text().splitlines()[1:]


def test_a_trace_does_not_keep_the_daemon(daemon: RunningDaemon) -> None:
    with Client.connect(daemon.socket) as client:
        client.trace_page("files", wait=0.0)
        waiting = client.begin(Call("trace", ["files", {"wait": 10.0}], lambda page: page))
        time.sleep(0.2)
        begun = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        assert client.finish(waiting) == {"events": [], "lost": 0}
        assert time.monotonic() - begun < 8  # sooner than the trace has waited
    # Told to end once more when it has cleaned up, and obeys no signals any more, it would die.
    assert daemon.process.wait(timeout=30) == 0


def test_the_metrics_are_printed(daemon: RunningDaemon) -> None:
    text = printed(daemon, "metrics")
    assert value(samples(text), "export_up", export="files") == 1
