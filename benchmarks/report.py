"""The results as Markdown."""

from collections.abc import Sequence

from benchmarks.lines import Verdict
from benchmarks.measure import Group
from benchmarks.worker import Usage

_ABOUT = """\
- The clock stops when the client has touched every page of what it asked for. Bytes are compared
  with the host's after every round and hashed in the first and the last, outside the clock.
- All rows of a table take turns in the same rounds, in an order that moves on by one. The first
  round warms up and is not counted. p99 is the largest of fewer than a hundred samples.
- CPU is processor time for one round, memory the proportional set size at its end, each as client /
  server / backend: the server is vuserd, or what a peer has in its place; commands that a peer runs
  count as servers. Daemons are shared by the rows of a table; of memory that processes share, each
  has its part. In W4 to W6 a client's memory is without what the work was asked to bring (the
  entries, the room for the files' bytes), which its caller keeps.
- ring-only is the same virtqueue and FUSE code with neither daemon nor trio nor RPC in front of it;
  ring-4 lays the chain of each request anew.
- Peers without a daemon (read, scandir, cp, tar, sendfile) have the files themselves: they show
  what the isolation costs.
"""


def markdown(
    title: str,
    picture: str,
    machine: Sequence[tuple[str, str]],
    groups: Sequence[Group],
    verdicts: Sequence[Verdict],
) -> str:
    """Write the whole report."""
    reached = sum(verdict.reached for verdict in verdicts)
    parts = [
        f"# {title}\n",
        "Written by `make bench` (the full run) and `make bench-quick`.\n",
        f"![Medians of each workload]({picture})\n",
        "## The machine\n",
        _table(("", ""), machine),
        "## The lines\n",
        f"{reached} of {len(verdicts)} were reached in this run.\n",
        _table(
            ("workload", "virtiofsd", "what", "line to reach", "this run", "reached"),
            [_verdict(verdict) for verdict in verdicts],
        ),
        "## How it was measured\n",
        _ABOUT,
        "## All rows\n",
        *(part for group in groups for part in _group(group)),
    ]
    left_out = [
        (group.key, row.key, row.fault.reason)
        for group in groups
        for row in group.rows
        if row.fault
    ]
    if left_out:
        parts += ["## Left out\n", _table(("workload", "row", "reason"), left_out)]
    return "\n".join(parts)


def _verdict(verdict: Verdict) -> tuple[str, ...]:
    line, value = verdict.line, verdict.value
    sign = "≥" if line.at_least else "≤"
    return (
        verdict.group,
        verdict.backend,
        line.words,
        f"{sign} {_with_unit(verdict.limit, line.unit)}",
        "not measured" if value is None else _with_unit(value, line.unit, more=1),
        "yes" if verdict.reached else "**no**",
    )


def _with_unit(value: float, unit: str, more: int = 0) -> str:
    return f"{number(value, more)} {unit}".strip()


def _group(group: Group) -> list[str]:
    rows = [row for row in group.rows if row.samples and not row.fault]
    if not rows:
        return []
    show = number if group.plain else duration
    heads = ["row", "median", "min", "p99"]
    if group.size:
        heads.append(group.unit)
    if any(row.cpu for row in rows):
        heads += ["CPU, s", "memory, MiB"]
    lines = []
    for row in rows:
        cells = [row.key, show(row.median), show(row.least), show(row.p99)]
        if group.size:
            cells.append(f"{group.size / row.median:,.0f}")
        if any(row.cpu for row in rows):
            cells += [_usage(row.cpu, 1.0, 3), _usage(row.memory, 2**20, 0)]
        lines.append(cells)
    return [f"### {group.key}: {group.title}\n", _table(heads, lines)]


def _usage(usage: Usage | None, scale: float, digits: int) -> str:
    return " / ".join(f"{part / scale:,.{digits}f}" for part in usage) if usage else ""


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---"] + ["---:" if _is_number(lines, at) else "---" for at in range(1, len(heads))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, marks, *lines))


def _is_number(lines: Sequence[Sequence[str]], column: int) -> bool:
    return all(line[column][:1] in "0123456789≤≥" for line in lines)


def duration(seconds: float) -> str:
    """Write a duration with three digits that count."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{number(seconds / scale)} {unit}"
    return f"{number(seconds / 1e-6)} µs"


def number(value: float, more: int = 0) -> str:
    """Write a number with three digits that count, or with ``more``; or all before the point."""
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits + more if digits else 0}f}"
