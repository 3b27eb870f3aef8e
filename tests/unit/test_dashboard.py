"""The dashboard uses only what the daemon exports: each query, each metric, each label.

With a Prometheus on this machine every query is put to it, too, and has to give something.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.running import REPOSITORY, RunningDaemon
from vuserd.client import Client
from vuserd.client.errors import RemoteError

DASHBOARD: Final = REPOSITORY / "docs" / "grafana" / "vuserd.json"
#: Labels that Prometheus gives to all that it reads.
_ITS_OWN: Final = frozenset({"instance", "job"})
_GROWING: Final = ("_total", "_bucket", "_count", "_sum")
_OF_GROWING: Final = frozenset({"rate", "increase", "irate"})
_EXPRESSIONS: Final = {
    "$__rate_interval": "10s",
    "$__range": "1m",
    "$instance": ".*",
    "$export": ".*",
}


class Query(NamedTuple):
    """A query of the dashboard, with its variables replaced, and how its results are named."""

    title: str
    text: str
    legend: str

    def parsed(self) -> Any:
        return promql_parser.parse(self.text)


@cache
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def replaced(text: str) -> str:
    for variable, value in _EXPRESSIONS.items():
        text = text.replace(variable, value)
    assert "$" not in text
    return text


def queries() -> list[Query]:
    return [
        Query(panel["title"], replaced(target["expr"]), target["legendFormat"])
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]


def variables() -> list[tuple[str, str]]:
    """Return selector and label of each ``label_values`` that a variable is filled by."""
    found = []
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            matched = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert matched is not None
            found.append((replaced(matched[1]), matched[2]))
    return found


# --- what a query consists of ---------------------------------------------------------------------


class Use(NamedTuple):
    """A metric in a query: the function right around it, and what labels have to be or not."""

    metric: str
    function: str
    matchers: list[tuple[str, str, str]]


def uses(expression: Any, function: str = "") -> Iterator[Use]:
    """Yield the metrics of a query."""
    match type(expression).__name__:
        case "VectorSelector":
            matchers = [
                (matcher.name, str(matcher.op), matcher.value)
                for matcher in expression.matchers.matchers
            ]
            yield Use(expression.name, function, matchers)
        case "MatrixSelector":
            yield from uses(expression.vector_selector, function)
        case "Call":
            for argument in expression.args:
                yield from uses(argument, expression.func.name)
        case "AggregateExpr" | "ParenExpr" | "UnaryExpr":
            yield from uses(expression.expr)
        case "BinaryExpr":
            yield from uses(expression.lhs)
            yield from uses(expression.rhs)
        case "NumberLiteral" | "StringLiteral":
            pass
        case kind:
            pytest.fail(f"the test does not know {kind}")


def groupings(expression: Any) -> Iterator[tuple[set[str], list[Use]]]:
    """Yield what each aggregation groups by, and the metrics in it."""
    match type(expression).__name__:
        case "AggregateExpr":
            labels = set() if expression.modifier is None else set(expression.modifier.labels)
            yield labels, list(uses(expression.expr))
            yield from groupings(expression.expr)
        case "ParenExpr" | "UnaryExpr":
            yield from groupings(expression.expr)
        case "Call":
            for argument in expression.args:
                yield from groupings(argument)
        case "BinaryExpr":
            yield from groupings(expression.lhs)
            yield from groupings(expression.rhs)


# --- a daemon that did something ------------------------------------------------------------------


def busy(client: Client) -> None:
    """Make calls that succeed and calls that fail, with every way of delivery."""
    client.stat("files", "a/b")
    client.read("files", "a/b", 0, 100)
    client.fetch("files", "a/b").close()
    with client.attach(size=1 << 20) as memory:
        memory.load("files", "a/b", address=0)
    for path in ("none", "a/none"):
        with suppress(RemoteError):
            client.stat("files", path)


def kill_backend(client: Client) -> None:
    (export,) = client.exports()
    if export.backend is not None and export.backend.pid is not None:
        os.kill(export.backend.pid, signal.SIGKILL)
        client.stat("files", "a/b")


@pytest.fixture(scope="module")
def daemon(
    rust_virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "files" / "a").mkdir(parents=True)
    (folder / "files" / "a" / "b").write_bytes(bytes(200_000))
    with RunningDaemon({"files": folder / "files"}, folder / "s", rust_virtiofsd) as running:
        yield running


@pytest.fixture(scope="module")
def output(daemon: RunningDaemon) -> str:
    """Return the metrics of a daemon after calls, errors and the death of a backend."""
    with Client.connect(daemon.socket) as client:
        busy(client)
        kill_backend(client)
        busy(client)
        return client.metrics()


class Told(NamedTuple):
    """What is known of one metric: its type, its labels, and their values."""

    kind: str
    labels: dict[str, set[str]]


@pytest.fixture(scope="module")
def told(output: str) -> dict[str, Told]:
    """Return what there is, by the names of samples."""
    found: dict[str, Told] = {}
    for family in text_string_to_metric_families(output):
        for sample in family.samples:
            one = found.setdefault(sample.name, Told(family.type, defaultdict(set)))
            for label, value in sample.labels.items():
                one.labels[label].add(value)
    return found


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.title}: {query.legend}")
def test_a_query_asks_for_what_there_is(query: Query, told: dict[str, Told]) -> None:
    found = list(uses(query.parsed()))
    assert found
    for use in found:
        assert use.metric in told, f"there is no {use.metric}"
        there = told[use.metric]
        grows = there.kind in ("counter", "histogram")
        assert grows == use.metric.endswith(_GROWING)
        assert grows == (use.function in _OF_GROWING), f"{use.function or 'bare'} of {use.metric}"
        for label, operator, value in use.matchers:
            assert label in there.labels.keys() | _ITS_OWN, f"{use.metric} has no {label}"
            if value != ".*":
                assert "Equal" in operator
                assert value in there.labels[label] | {"trace"}, f"{label} is never {value}"
        assert any(label == "instance" for label, _, _ in use.matchers)


@pytest.mark.parametrize("query", queries(), ids=lambda query: f"{query.title}: {query.legend}")
def test_a_query_groups_by_labels_that_there_are(query: Query, told: dict[str, Told]) -> None:
    kept: set[str] | None = None
    for labels, found in groupings(query.parsed()):
        for use in found:
            assert labels <= told[use.metric].labels.keys() | _ITS_OWN
        kept = labels if kept is None else kept
    if kept is None:
        kept = {label for use in uses(query.parsed()) for label in told[use.metric].labels}
        kept |= _ITS_OWN
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= kept
    assert ("le" in kept) == (query.legend == "{{le}}" or "histogram_quantile" in query.text)


@pytest.mark.parametrize(("selector", "label"), variables(), ids=lambda one: str(one))
def test_a_variable_has_values(selector: str, label: str, told: dict[str, Told]) -> None:
    (use,) = uses(promql_parser.parse(selector))
    assert label in told[use.metric].labels.keys() | _ITS_OWN


def test_the_kill_is_in_the_output(told: dict[str, Told], output: str) -> None:
    assert 'vuserd_backend_restarts_total{cause="killed",export="files"} 1.0' in output
    assert {"OK", "ENOENT"} <= told["vuserd_requests_total"].labels["code"]


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    assert board["uid"] == "vuserd"
    assert "id" not in board  # Grafana gives it one
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 10
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert names == {"datasource", "instance", "export"}
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        for source in (panel["datasource"], *(one["datasource"] for one in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


# --- the real Prometheus --------------------------------------------------------------------------


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def test_promtool_has_no_complaint(output: str) -> None:
    done = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=output,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@contextmanager
def web_server(client: Client) -> Iterator[int]:
    """Serve the metrics over HTTP, as node_exporter would; give the port."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                body = client.metrics().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Prometheus:
    """A Prometheus that asks a port for metrics every half second."""

    def __init__(self, folder: Path, scraped: int) -> None:
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 500ms}\n"
            f"scrape_configs: [{{job_name: v, static_configs: [{{targets: ['127.0.0.1:{scraped}']"
            "}]}]\n"
        )
        port = free_port()
        self._address = f"http://127.0.0.1:{port}"
        command = [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with open(folder / "log", "wb") as log:
            self._process = subprocess.Popen(command, stderr=log, cwd=folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def ask(self, query: str) -> list[Any]:
        """Return the result of a query; nothing as long as it does not answer."""
        form = urllib.parse.urlencode({"query": query})
        with (
            suppress(ConnectionError, urllib.error.URLError),
            urllib.request.urlopen(f"{self._address}/api/v1/query?{form}", timeout=10) as reply,
        ):
            result: list[Any] = json.load(reply)["data"]["result"]
            return result
        return []


@pytest.mark.slow
def test_prometheus_has_a_result_for_every_query(daemon: RunningDaemon, tmp_path: Path) -> None:
    with (
        Client.connect(daemon.socket) as asked,
        Client.connect(daemon.socket) as client,
        web_server(asked) as port,
        Prometheus(tmp_path, port) as prometheus,
    ):
        deadline = time.monotonic() + 60
        unanswered = queries()
        for round_ in range(100_000):
            busy(client)
            if round_ % 5 == 0:
                kill_backend(client)
            unanswered = [query for query in unanswered if not prometheus.ask(query.text)]
            if not unanswered:
                break
            assert time.monotonic() < deadline, unanswered
            time.sleep(0.3)
        # By where things come from: these are what the variables offer.
        assert [one["metric"]["export"] for one in prometheus.ask("vuserd_export_up")] == ["files"]
