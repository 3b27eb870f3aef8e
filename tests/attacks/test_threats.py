"""The threat table of SECURITY.md is what the tests say, and nobody is left out of it."""

import subprocess
import sys

from tests.attacks.threats import SECURITY, Who
from tests.collecting import REPOSITORY


def test_the_table_is_up_to_date() -> None:
    command = [sys.executable, "-m", "tests.attacks", "--check"]
    check = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


def test_nobody_is_left_out() -> None:
    page = SECURITY.read_text()
    assert [who for who in Who if f"\n| {who} | " not in page] == []
