"""The results as one picture: a panel for each workload, a bar for each row's median."""

from collections.abc import Sequence
from html import escape
from typing import Final

from benchmarks.measure import Group, Row
from benchmarks.report import duration, number
from benchmarks.workloads import RING_ONLY

_NAMESPACE: Final = "http://www.w3.org/2000/svg"
_COLUMNS: Final = 2
_PANEL: Final = 560  #: width in pixels
_NAMES: Final = 250  #: of that, for the rows' names
_BARS: Final = 210  #: and for the longest bar; the rest is for the medians
_ROW: Final = 19  #: height
_TITLE: Final = 48
_GAP: Final = 16
_OURS: Final = "#2f6fd0"
_RING: Final = "#7fa6de"
_PEER: Final = "#9aa0a6"
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#202124}.t{font-weight:600;font-size:13px}"
    ".m{fill:#5f6368}"
)


def svg(title: str, groups: Sequence[Group]) -> str:
    """Draw the groups; of a workload of several sizes only the largest belongs into the picture."""
    panels = [(group, _rows(group)) for group in groups]
    panels = [(group, rows) for group, rows in panels if rows]
    parts: list[str] = []
    top = _TITLE + _GAP
    for begin in range(0, len(panels), _COLUMNS):
        line = panels[begin : begin + _COLUMNS]
        for column, (group, rows) in enumerate(line):
            parts += _panel(_GAP + column * (_PANEL + _GAP), top, group, rows)
        top += _TITLE + max(len(rows) for _, rows in line) * _ROW + _GAP
    width = _COLUMNS * (_PANEL + _GAP) + _GAP
    legend = ((_OURS, "vuserd"), (_RING, "ring-only, no daemon"), (_PEER, "peers"))
    head = [_text(_GAP, 26, title, "t")]
    for index, (colour, words) in enumerate(legend):
        left = _GAP + 180 * index
        head += [_bar(left, 38, 12, colour), _text(left + 18, 48, words)]
    head.append(
        _text(
            _GAP + 180 * len(legend), 48, "median time, shorter is better; whisker: min to p99", "m"
        )
    )
    return "\n".join(
        [
            f'<svg xmlns="{_NAMESPACE}" viewBox="0 0 {width} {top}" width="{width}">',
            f"<style>{_STYLE}</style>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *head,
            *parts,
            "</svg>\n",
        ]
    )


def _rows(group: Group) -> list[Row]:
    return [row for row in group.rows if row.samples and not row.fault]


def _panel(left: int, top: int, group: Group, rows: list[Row]) -> list[str]:
    parts = [_text(left, top + 18, f"{group.key}: {group.title}"[:80], "t")]
    longest = max(row.median for row in rows)
    show = number if group.plain else duration
    bars = left + _NAMES
    for index, row in enumerate(sorted(rows, key=lambda row: row.median)):
        y = top + 30 + index * _ROW
        length = row.median / longest * _BARS if longest else 0.0
        colour = _colour(row)
        parts += [
            _text(left, y + 11, row.key[:42]),
            _bar(bars, y, max(1.0, length), colour),
            _whisker(bars, y + 6, row.least / longest, min(1.0, row.p99 / longest)),
            _text(bars + _BARS + 8, y + 11, show(row.median), "m"),
        ]
    return parts


def _colour(row: Row) -> str:
    if not row.backend:
        return _PEER
    return _RING if row.name == RING_ONLY else _OURS


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{style}>{escape(words)}</text>'


def _bar(x: float, y: float, length: float, colour: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{length:.1f}" height="12" rx="2" fill="{colour}"/>'


def _whisker(x: float, y: float, begin: float, end: float) -> str:
    first, last = x + begin * _BARS, x + end * _BARS
    return f'<path d="M{first:.1f} {y:g}H{last:.1f}" stroke="#202124" stroke-width="1"/>'
