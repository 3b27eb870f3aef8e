"""docs/faults.md is what the tests say, and there are as many as were asked for."""

import subprocess
import sys

from tests.collecting import REPOSITORY
from tests.faults.catalogue import CATALOGUE


def test_the_catalogue_is_up_to_date() -> None:
    command = [sys.executable, "-m", "tests.faults", "--check"]
    check = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


def test_there_are_enough_faults() -> None:
    rows = [line for line in CATALOGUE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) >= 60
