"""The threat table of SECURITY.md is what the tests say, and nobody is left out of it."""

from tests.attacks.__main__ import main
from tests.attacks.threats import SECURITY, Who


def test_the_table_is_up_to_date() -> None:
    assert main(["--check"]) == 0


def test_nobody_is_left_out() -> None:
    page = SECURITY.read_text()
    assert [who for who in Who if f"\n| {who} | " not in page] == []
