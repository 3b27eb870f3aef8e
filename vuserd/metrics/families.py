"""The metric families: the daemon's counts with their names, labels and meanings in Prometheus.

Names follow https://prometheus.io/docs/practices/naming/: base units, and ``_total`` for counts
that only grow. All numbers are read at the time of each request.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from vuserd import __version__
from vuserd.errors import printable
from vuserd.exports.export import Export
from vuserd.exports.states import ExportState
from vuserd.metrics.sources import Sources
from vuserd.rpc.counters import SECONDS, MethodCounts

_BOUNDS = [*map(floatToGoString, SECONDS), "+Inf"]


class Metrics:
    """All metrics of one daemon.

    Those about its process have the prefix ``vuserd_process_``, since node_exporter, which may show
    them, has metrics of its own process.
    """

    def __init__(self, sources: Sources) -> None:
        self._counts = DaemonCollector(sources)

    def read(self) -> Callable[[], str]:
        """Read all counters; return a function that renders them as text, in any thread."""
        families = list(self._counts.collect())
        return lambda: _text(families)


class _AsRead(Collector):
    """Collects families that were read before."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _text(families: Iterable[Metric]) -> str:
    registry = CollectorRegistry()
    registry.register(_AsRead(families))
    ProcessCollector(namespace="vuserd", registry=registry)
    return generate_latest(registry).decode()


class DaemonCollector(Collector):
    """Reads the counters of the daemon."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Yield every family of metrics with its present numbers."""
        yield _gauge("build_info", "The daemon's version.", ["version"], [([__version__], 1)])
        yield from self._calls()
        yield from self._clients()
        yield from self._sockets()
        yield from self._images()
        yield from self._exports(list(self._sources.exports.items()))

    def _calls(self) -> Iterator[Metric]:
        counters = self._sources.counters
        ends = _counter(
            "requests",
            "Calls that have ended, by outcome: OK, GONE if the client went away first, or the"
            " error's code.",
            ["method", "code"],
        )
        times = HistogramMetricFamily(
            "vuserd_request_seconds",
            "Seconds from when a call began to its reply or its error.",
            labels=["method"],
        )
        for method, counts in counters.methods.items():
            for end, count in counts.ends.items():
                ends.add_metric([method, end], count)
            times.add_metric([method], _buckets(counts), counts.seconds)
        yield ends
        yield times
        yield _gauge(
            "requests_in_flight",
            "Calls that were read and whose reply has not left yet.",
            [],
            [([], counters.in_flight)],
        )
        yield _counter(
            "delivered_bytes",
            "Bytes of files by how they were delivered: in replies (inline), as memfds (image),"
            " into memory of clients (attached).",
            ["way"],
            [
                (["inline"], counters.bytes_read),
                (["image"], counters.bytes_of_images),
                (["attached"], counters.bytes_loaded),
            ],
        )

    def _clients(self) -> Iterator[Metric]:
        sources = self._sources
        yield _gauge("clients", "Clients that are connected.", [], [([], sources.clients())])
        yield _counter(
            "connections",
            "Connections that were accepted.",
            [],
            [([], sources.counters.connections)],
        )
        yield _counter(
            "refusals",
            "Connections and exports that were refused to clients.",
            [],
            [([], sources.refusals.count)],
        )

    def _sockets(self) -> Iterator[Metric]:
        yield _gauge(
            "listening",
            "Whether the daemon listens on a socket that is configured.",
            ["socket", "rig"],
            [
                # A label is text in UTF-8, and a path may be anything.
                ([printable(each["socket"]), each.get("netns", "")], each["state"] == "listening")
                for each in self._sources.sockets()
            ],
        )

    def _images(self) -> Iterator[Metric]:
        images = self._sources.images
        yield _gauge("images", "Images of files that are kept.", [], [([], len(images))])
        yield _gauge("image_bytes", "Bytes of images that are kept.", [], [([], images.bytes)])
        yield _counter(
            "image_lookups",
            "Images that clients asked for: kept already (hit), or made anew (miss).",
            ["result"],
            [(["hit"], images.hits), (["miss"], images.misses)],
        )

    def _exports(self, exports: list[tuple[str, Export]]) -> Iterator[Metric]:
        yield _gauge(
            "export_up",
            "Whether an export has a backend that serves.",
            ["export"],
            [([name], export.state is ExportState.UP) for name, export in exports],
        )
        yield _gauge(
            "export_state",
            "1 for the state that an export is in.",
            ["export", "state"],
            [
                ([name, state], export.state is state)
                for name, export in exports
                for state in ExportState
            ],
        )
        yield _counter(
            "backend_sessions",
            "Sessions that an export has had: one more for each backend that began anew.",
            ["export"],
            [([name], export.generation) for name, export in exports],
        )
        yield _counter(
            "backend_restarts",
            "Backends that were lost and had to be replaced, by cause.",
            ["export", "cause"],
            [
                ([name, cause], count)
                for name, export in exports
                for cause, count in export.losses.restarts.items()
            ],
        )
        yield _gauge(
            "backend_last_loss_timestamp_seconds",
            "When an export last lost a backend.",
            ["export"],
            [
                ([name], export.losses.last.when)
                for name, export in exports
                if export.losses.last is not None
            ],
        )
        yield _counter(
            "ring_faults",
            "Sessions that ended because a backend broke the protocol, by what was wrong.",
            ["export", "cause"],
            [
                ([name, check], count)
                for name, export in exports
                for check, count in export.losses.faults.items()
            ],
        )
        yield from self._sessions(exports)

    def _sessions(self, exports: list[tuple[str, Export]]) -> Iterator[Metric]:
        families: tuple[CounterMetricFamily | GaugeMetricFamily, ...] = (
            _counter("fuse_requests", "FUSE requests sent to the present backend.", ["export"]),
            _gauge("fuse_requests_in_flight", "FUSE requests that have no reply.", ["export"]),
            _gauge("nodes", "Nodes of the backend that the daemon knows.", ["export"]),
            _gauge(
                "node_lookups",
                "Lookup counts that the daemon has yet to give back to the backend.",
                ["export"],
            ),
            _gauge("payload_buffers", "Payload buffers that are in use.", ["export"]),
        )
        for name, export in exports:
            usage = export.usage()
            if usage is not None:
                for family, value in zip(families, usage, strict=True):
                    family.add_metric([name], value)
        yield from families


def _buckets(counts: MethodCounts) -> list[tuple[str, float]]:
    return [*zip(_BOUNDS, accumulate(counts.by_second), strict=True)]


def _gauge(
    name: str, text: str, labels: list[str], values: Iterable[tuple[list[str], float]] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"vuserd_{name}", text, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


def _counter(
    name: str, text: str, labels: list[str], values: Iterable[tuple[list[str], float]] = ()
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"vuserd_{name}", text, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family
