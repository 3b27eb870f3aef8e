"""docs/faults.md is what the tests say, and there are as many as were asked for."""

from tests.faults.__main__ import main
from tests.faults.catalogue import CATALOGUE


def test_the_catalogue_is_up_to_date() -> None:
    assert main(["--check"]) == 0


def test_there_are_enough_faults() -> None:
    rows = [line for line in CATALOGUE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) >= 60
