"""The lines that a run has to reach, and whether it did.

A line is drawn for each virtiofsd. Those that are ratios compare medians of the same table; the
others are times, counts and bytes of their own, and mean most on the machine they were drawn on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from benchmarks import workloads as rows
from benchmarks.crowd import RATE, SHARE, SMALL, STAT
from benchmarks.measure import Group, Row
from benchmarks.readiness import READY, RESIDENT, WAKE_UPS

#: Takes what a line is about from a group, for one virtiofsd; None where that was not measured.
Value: TypeAlias = Callable[[Group, str], float | None]

_MS: Final = 1e3
_US: Final = 1e6
_MIB: Final = 1 << 20
#: MiB that a daemon and a client may take, whatever they deliver: a client without that.
_MOST_MEMORY: Final = 60


class Line(NamedTuple):
    """One line of the table of lines.

    Attributes:
        workload: the key of a group, or what it begins with where that comes in several sizes.
        words: what is compared with what.
        limit: the least or the most, with the C virtiofsd and with the Rust one.
        at_least: which of the two.
        unit: of limit and value.
        value: takes it from a group, for one virtiofsd.

    """

    workload: str
    words: str
    limit: tuple[float, float]
    at_least: bool
    unit: str
    value: Value


class Verdict(NamedTuple):
    """A line, and what it came to; ``value`` is None where a row is missing."""

    line: Line
    group: str
    backend: str
    value: float | None

    @property
    def limit(self) -> float:
        """The line's limit with this virtiofsd."""
        return self.line.limit[self.backend == "rust"]

    @property
    def reached(self) -> bool:
        """Whether the line was reached; False if that is unknown."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.line.at_least else self.value <= self.limit


def _median(name: str, scale: float = 1.0) -> Value:
    return _single(name, lambda row: row.median * scale)


def _p99(name: str, scale: float = 1.0) -> Value:
    return _single(name, lambda row: row.p99 * scale)


def _single(name: str, take: Callable[[Row], float]) -> Value:
    def value(group: Group, backend: str) -> float | None:
        row = group.row(name, backend)
        return None if row is None else take(row)

    return value


def _memory(party: str, *names: str) -> Value:
    """MiB of the daemon ("server") or the client, in that row of the named that has most."""

    def value(group: Group, backend: str) -> float | None:
        found = [group.row(name, backend) for name in names]
        sizes = [getattr(row.memory, party) for row in found if row is not None and row.memory]
        return max(sizes) / _MIB if len(sizes) == len(names) else None

    return value


def _longer_than(ours: str, other: str, *, same_backend: bool = False) -> Value:
    """Our time over theirs."""

    def value(group: Group, backend: str) -> float | None:
        mine = group.row(ours, backend)
        theirs = group.row(other, backend if same_backend else "")
        return None if mine is None or theirs is None else mine.median / theirs.median

    return value


def _as_fast_as(ours: str, other: str, *, same_backend: bool = False) -> Value:
    """Our rate over theirs."""
    longer = _longer_than(ours, other, same_backend=same_backend)

    def value(group: Group, backend: str) -> float | None:
        times = longer(group, backend)
        return None if times is None else 1 / times

    return value


def _of_100_000(name: str) -> Value:
    """Milliseconds for so many entries: the quick run lists fewer."""

    def value(group: Group, backend: str) -> float | None:
        row = group.row(name, backend)
        return None if row is None else row.median / group.size * 100_000 * _MS

    return value


def _at_least(
    workload: str, words: str, limit: float, unit: str, value: Value, rust: float | None = None
) -> Line:
    limits = limit, limit if rust is None else rust
    return Line(workload, words, limits, at_least=True, unit=unit, value=value)


def _at_most(
    workload: str, words: str, limit: float, unit: str, value: Value, rust: float | None = None
) -> Line:
    limits = limit, limit if rust is None else rust
    return Line(workload, words, limits, at_least=False, unit=unit, value=value)


LINES: Final = (
    _at_least(
        "W1", "rate beside ring-only", 0.65, "x",
        _as_fast_as(rows.LOAD, rows.RING_ONLY, same_backend=True),
    ),
    _at_least("W1", "rate beside nginx", 1.7, "x", _as_fast_as(rows.LOAD, rows.NGINX)),
    _at_most(
        "W1b", "time beside sendfile into a fresh memfd", 1.3, "x",
        _longer_than(rows.FETCH, rows.SENDFILE_MEMFD),
    ),
    _at_least(
        "W1c", "rate beside a bare trio server", 0.8, "x",
        _as_fast_as(rows.READ, rows.BARE_TRIO),
    ),
    _at_least("W1c", "rate beside nginx", 1.0, "x", _as_fast_as(rows.READ, rows.NGINX)),
    _at_most("W1d", "until it is mapped, p50", 300, "µs", _median(rows.FETCH_MAPPED, _US)),
    _at_most(
        "W2", "time of load beside a cold read()", 1.15, "x",
        _longer_than(rows.LOAD, rows.COLD_READ),
    ),
    _at_most(
        "W2", "time of read beside a cold read()", 1.15, "x",
        _longer_than(rows.READ, rows.COLD_READ),
    ),
    _at_most(
        "W3", "p50 beside ring-4", 1.5, "x",
        _longer_than(rows.READ, rows.RING_4, same_backend=True), rust=1.6,
    ),
    _at_most("W3", "p50", 250, "µs", _median(rows.READ, _US)),
    _at_most("W3", "p99", 1000, "µs", _p99(rows.READ, _US)),
    _at_most("W4", "time beside a tar pipe", 2.5, "x", _longer_than(rows.READ, rows.TAR_PIPE)),
    _at_most(
        "W4", "time of tree beside tar and cat", 1.7, "x",
        _longer_than(rows.TREE, rows.TAR_CAT), rust=1.8,
    ),
    _at_most(
        "W4", "time of get -r beside tar and tar", 1.7, "x",
        _longer_than(rows.GET_TREE, rows.TAR_TAR),
    ),
    _at_most(
        "W4", "time of an archive beside tar and cat", 1.7, "x",
        _longer_than(rows.ARCHIVE, rows.TAR_CAT),
    ),
    _at_least(
        "W4", "rate beside OpenSSH's sftp", 9, "x", _as_fast_as(rows.READ, rows.SFTP_COPIED)
    ),
    _at_least(
        "W4", "rate beside a pipelined sftp client of ours", 9, "x",
        _as_fast_as(rows.READ, rows.SFTP_PIPELINED),
    ),
    _at_most(
        "W5, names", "time beside scandir", 3.0, "x", _longer_than(rows.READDIR, rows.SCANDIR)
    ),
    _at_most(
        "W5, attributes", "time beside scandir and stat", 1.9, "x",
        _longer_than(rows.READDIR, rows.SCANDIR_STAT), rust=2.3,
    ),
    *(
        line
        for workload, limit in (("W5, names", 150), ("W5, attributes", 900))
        for line in (
            _at_most(workload, "time of 100,000 entries", limit, "ms", _of_100_000(rows.READDIR)),
            _at_least(
                workload, "rate beside OpenSSH's sftp", 6, "x",
                _as_fast_as(rows.READDIR, rows.SFTP),
            ),
            _at_least(
                workload, "rate beside a pipelined sftp client of ours", 6, "x",
                _as_fast_as(rows.READDIR, rows.SFTP_PIPELINED),
            ),
        )
    ),
    _at_most(
        "W6", "time beside ring-only", 1.6, "x",
        _longer_than(rows.WALK, rows.RING_ONLY, same_backend=True),
    ),
    _at_most(
        "W6", "time beside scandir and stat", 2.5, "x",
        _longer_than(rows.WALK, rows.SCANDIR_STAT), rust=2.6,
    ),
    *(
        line
        for workload, least, rust in (
            ("W7, storm", 40_000, 40_000),
            ("W7, deep storm", 16_000, 15_000),
        )
        for line in (
            _at_least(workload, "answers a second", least, "/s", _median(RATE), rust),
            _at_most(workload, "most over least served", 2.0, "x", _median(SHARE)),
        )
    ),
    *(
        _at_most(workload, f"memory of the {words}", _MOST_MEMORY, "MiB", _memory(party, *names))
        for workload, names in (
            ("W4", (rows.READ, rows.TREE, rows.ARCHIVE)),
            ("W6", (rows.WALK,)),
        )
        for words, party in (
            ("daemon", "server"),
            ("client, without what it brought", "client"),
        )
    ),
    *(
        _at_most(workload, "memory of the daemon", _MOST_MEMORY, "MiB", _memory("server", RATE))
        for workload in ("W7, storm", "W7, deep storm")
    ),
    _at_most("W7, mixed", "small reads, p99", 3.0, "ms", _p99(SMALL, _MS)),
    _at_most("W7, jobs", "stat beside the jobs, p99", 3.0, "ms", _p99(STAT, _MS)),
    _at_most("W8, start", "start to ready, p50", 300, "ms", _median(READY, _MS)),
    _at_most("W8, idle", "wake-ups of the daemon", 0, "", _median(WAKE_UPS)),
    _at_most("W8, idle", "resident memory", 60, "MiB", _median(RESIDENT)),
)  # fmt: skip


def judge(groups: Mapping[str, Group], backends: Sequence[str]) -> Iterator[Verdict]:
    """Hold each line against each group that it is about, for each virtiofsd."""
    for line in LINES:
        for key, group in groups.items():
            if key == line.workload or (key.startswith(f"{line.workload}, ") and "MiB" in key):
                for backend in backends:
                    yield Verdict(line, key, backend, line.value(group, backend))
