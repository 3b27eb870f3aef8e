"""The fault catalogue: rows collected from the tests that show them, written as Markdown.

A test, or one set of its parameters, carries a row as a mark::

    @fault("id-out-of-ring", done="a used element names descriptor 1024 of 1024", must=BROKEN)
    async def test_...

    pytest.param(..., marks=fault("error-positive", done="...", must=BROKEN), id="error-positive")

Several tests may carry the same row, word for word: one on the fake backend and one on the real
ones. A row's section is the first line of the docstring of the module that comes first.
"""

import ast
import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.collecting import REPOSITORY, tests_that_import

CATALOGUE: Final = REPOSITORY / "docs" / "faults.md"

#: What has to become of most faults.
BROKEN: Final = (
    "The session is declared broken with this cause. The caller gets BACKEND_DOWN, and so does"
    " every later call on this session."
)
REFUSED: Final = "The session does not come up: BACKEND_DOWN, and the message names the cause."
DOWN: Final = "The caller gets BACKEND_DOWN at once, and so does every later call on this session."
TIMED_OUT: Final = (
    "The caller gets TIMEOUT when its deadline is over. What the backend holds stays in quarantine,"
    " is not used for anything else, and is given back when the late reply comes."
)
ERRNO: Final = "The caller gets the errno; the session goes on and owes nothing."
EIO: Final = (
    "The caller gets EIO, with a message that says why; the session goes on and owes nothing."
)
PASSED_ON: Final = (
    "It is up to the file system, and is passed on unchanged; the session goes on and owes nothing."
)
CHANGED: Final = (
    "The caller gets CHANGED after three attempts; the session goes on and owes nothing."
)
UNHARMED: Final = "The call is served as if nothing had happened."

_HEAD: Final = """# Faults

What a backend may do wrong, which of the daemon's own system calls may fail, how vuserd has to
react, and the test that shows it. Faults are grouped by what has to happen. The page is made from
the tests: `python -m tests.faults` writes it, and a test fails if it is out of date.

In all of these cases nothing crashes and nothing waits for ever. If the session has ended, no
descriptor is left; if it goes on, no slot, payload buffer, lookup count or open handle
is. **fake** is `tests/fake/backend.py`, a backend that misbehaves on demand; **rust** and **c** are
the two real virtiofsd; **codec** is the parser alone; **daemon** is vuserd itself, with
one of its system calls made to fail.
"""
_OWN_HEAD: Final = """
## Outcomes of their own
"""
_OPEN_HEAD: Final = """
## Not held yet

Their tests are expected to fail, and have to be freed of that mark once they do not.

"""


class Row(NamedTuple):
    """A named fault."""

    section: str
    name: str
    done: str
    must: str
    tests: tuple[str, ...]  #: without their parameters
    on: tuple[str, ...]
    open: str  #: why it does not hold yet; empty where it does


def fault(name: str, *, done: str, must: str, on: str = "fake") -> pytest.MarkDecorator:
    """Return the mark of one row; ``on`` matters where the real backends are not parameters."""
    return pytest.mark.fault(name=name, done=done, must=must, on=on)


def not_yet(reason: str) -> pytest.MarkDecorator:
    """Return the mark of a fault that does not hold: its test has to fail until it does."""
    return pytest.mark.xfail(strict=True, reason=reason)


def collect() -> list[Row]:
    """Collect the rows of all files under tests/ that have one: those of this folder first.

    Their words are the sections.
    """
    return rows_of(tests_that_import("tests.faults.catalogue", "tests/faults"))


def rows_of(items: Sequence[pytest.Item]) -> list[Row]:
    """Return the rows that the tests carry, in the order of their first tests.

    Raises:
        ValueError: one name with two meanings.

    """
    rows: dict[str, Row] = {}
    for item in items:
        for mark in item.iter_markers("fault"):
            here = _row(item, mark)
            row = rows.setdefault(here.name, here)
            if (row.done, row.must) != (here.done, here.must):
                raise ValueError(f"the fault {row.name} is described in two ways")
            rows[row.name] = row._replace(
                tests=tuple(dict.fromkeys([*row.tests, *here.tests])),
                on=tuple(dict.fromkeys([*row.on, *here.on])),
                open=row.open or here.open,
            )
    return list(rows.values())


def _row(item: pytest.Item, mark: pytest.Mark) -> Row:
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec is not None else {}
    expected = item.get_closest_marker("xfail")
    return Row(
        section=_section(item.path),
        name=mark.kwargs["name"],
        done=mark.kwargs["done"],
        must=mark.kwargs["must"],
        tests=(item.nodeid.partition("[")[0],),
        on=(str(params["virtiofsd"]) if "virtiofsd" in params else mark.kwargs["on"],),
        open=expected.kwargs["reason"] if expected is not None else "",
    )


@functools.cache
def _section(path: Path) -> str:
    words = ast.get_docstring(ast.parse(path.read_text())) or path.stem
    return words.partition("\n")[0].rstrip(".").partition(":")[0]


def markdown(rows: Sequence[Row]) -> str:
    """Return the page: the outcomes that several faults share, then the others by section."""
    outcomes = Counter(row.must for row in rows)
    parts = [_HEAD, f"\n{len(rows)} faults.\n"]
    for outcome, count in outcomes.most_common():
        if count > 1:
            parts.append(f"\n## {_sentence(outcome)}\n\n")
            parts.append("| fault | what is done | shown by | on |\n|---|---|---|---|\n")
            parts += [_line(row) for row in rows if row.must == outcome]
    parts.append(_OWN_HEAD)
    own = [row for row in rows if outcomes[row.must] == 1]
    for section, group in itertools.groupby(own, key=lambda row: row.section):
        parts.append(f"\n### {section}\n\n")
        parts.append("| fault | what is done | what must happen | shown by | on |\n")
        parts.append("|---|---|---|---|---|\n")
        parts += [_line(row, row.must) for row in group]
    if unsolved := [row for row in rows if row.open]:
        parts.append(_OPEN_HEAD)
        parts += [f"- `{row.name}`: {row.open}\n" for row in unsolved]
    return "".join(parts)


def _line(row: Row, *outcome: str) -> str:
    tests = "<br>".join(
        f"[{test.rpartition('::')[2]}](../{test.partition('::')[0]})" for test in row.tests
    )
    words = [_sentence(text) for text in (row.done, *outcome)]
    return f"| {' | '.join([f'`{row.name}`', *words, tests, ', '.join(row.on)])} |\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
