"""How often repeating tests repeat: $VUSERD_TEST_ROUNDS times, else few enough for every run."""

import os
from typing import Final

import pytest

_ASKED: Final = os.environ.get("VUSERD_TEST_ROUNDS")

#: Whether more rounds are requested than suit every run of the suite.
LONG: Final = _ASKED is not None

#: For tests that repeat themselves: their time grows with the rounds.
repeated: Final = pytest.mark.timeout(120 + 2 * int(_ASKED or 0))


def rounds(default: int) -> int:
    """Return how many rounds to do."""
    return default if _ASKED is None else int(_ASKED)
