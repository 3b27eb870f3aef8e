"""The threat table: rows collected from the tests that attack, written into SECURITY.md.

A test, or one set of its parameters, carries a row as a mark::

    @threat("linger", who=Who.STRANGER, against="the daemon's thread",
            does="sends a TCP socket whose close takes eight seconds",
            promise="others are served meanwhile")
    def test_...

Several tests may carry the same row, word for word.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

import pytest

from tests.collecting import REPOSITORY, tests_that_import

SECURITY: Final = REPOSITORY / "SECURITY.md"
_BEGIN: Final = "<!-- Written by python -m tests.attacks -->\n"
_END: Final = "<!-- Up to here -->\n"


class Who(StrEnum):
    """Who attacks."""

    STRANGER = "A client without rights"  #: it may connect, and sees no export
    CLIENT = "A client with rights"  #: it sees some exports
    RIG = "A rig's root"
    BACKEND = "A backend that was broken into"
    FILE_OWNER = "The owner of an exported file"
    FOLDER_OWNER = "The owner of a parent folder"
    NEIGHBOUR = "Another local user"  #: that has no connection
    FALSE_DAEMON = "A hostile daemon"  #: for clients
    BOARD = "A machine on the network"  #: that reaches a gateway of the examples


class Row(NamedTuple):
    """A threat."""

    name: str
    who: Who
    against: str
    does: str
    promise: str
    tests: tuple[str, ...]  #: without their parameters


def threat(name: str, *, who: Who, against: str, does: str, promise: str) -> pytest.MarkDecorator:
    """Return the mark of one row."""
    return pytest.mark.threat(name=name, who=who, against=against, does=does, promise=promise)


def collect() -> list[Row]:
    """Collect the rows of all files under tests/ that have one, ordered by who attacks."""
    rows = rows_of(tests_that_import("tests.attacks.threats", "tests/attacks"))
    order = list(Who)
    return sorted(rows, key=lambda row: order.index(row.who))


def rows_of(items: Sequence[pytest.Item]) -> list[Row]:
    """Return the rows that the tests carry, in the order of their first tests.

    Raises:
        ValueError: one name with two meanings.

    """
    rows: dict[str, Row] = {}
    for item in items:
        for mark in item.iter_markers("threat"):
            here = Row(**mark.kwargs, tests=())
            row = rows.setdefault(here.name, here)
            if row._replace(tests=()) != here:
                raise ValueError(f"the threat {here.name} is described in two ways")
            tests = (*row.tests, item.nodeid.partition("[")[0])
            rows[here.name] = row._replace(tests=tuple(dict.fromkeys(tests)))
    return list(rows.values())


def with_table(page: str, rows: Sequence[Row]) -> str:
    """Return the page with the table in its place."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return "".join([before, _BEGIN, table(rows), _END, after])


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    head = "| who | does what | against | what is promised | shown by |\n|---|---|---|---|---|\n"
    return head + "".join(_line(row) for row in rows)


def _line(row: Row) -> str:
    tests = "<br>".join(
        f"[{test.rpartition('::')[2]}]({test.partition('::')[0]})" for test in row.tests
    )
    words = (row.who, row.does, row.against, row.promise)
    cells = (each[:1].upper() + each[1:] for each in words)
    return f"| {' | '.join(cells)} | {tests} |\n"
