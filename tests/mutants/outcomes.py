"""What earlier runs found, of which as much is kept as is still true.

While a module, what its tests import and the way of trying stay the same, so does what was found.
Tests that were added since cannot make a mutant live that others killed: then those that lived are
tried again, and no others.
"""

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.mutants.report import Score, Survivor
from tests.mutants.targets import TARGETS

#: What a trial depends on, beside the tests of its module.
_DEPENDS: Final = (
    *("protocol/*.py", "memory/*.py", "tests/fake/*.py", "tests/listings.py"),
    *(f"tests/mutants/{name}.py" for name in ("making", "operators", "trials")),
)


class Tree(NamedTuple):
    """What the outcome of a module depends on: a digest of the code, and each line of its tests."""

    code: str
    tests: tuple[str, ...]

    @classmethod
    def read(cls, module: str, root: Path = Path()) -> Self:
        """Read what is below ``root`` now."""
        digest = hashlib.sha256()
        for pattern in _DEPENDS:
            for file in sorted(root.glob(pattern)):
                digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
        tests = (line for test in TARGETS[module] for line in (root / test).read_text().split("\n"))
        return cls(digest.hexdigest(), tuple(tests))


class Holds(Enum):
    """How much of an outcome is true of the tree as it is."""

    ALL = "all"
    DEATHS = "deaths"  #: tests were added: they may kill some of those that lived
    NOTHING = "nothing"


class Outcome(NamedTuple):
    """What a run found out of all mutants of a module."""

    tree: Tree
    score: Score
    survivors: list[Survivor]

    def holds(self, now: Tree) -> Holds:
        """Return how much of this is true of a tree."""
        if self.tree == now:
            return Holds.ALL
        lines = iter(now.tests)
        only_added = all(line in lines for line in self.tree.tests)
        return Holds.DEATHS if self.tree.code == now.code and only_added else Holds.NOTHING


def load_outcomes(file: Path) -> dict[str, Outcome]:
    """Read the outcomes by module; none if there is no such file."""
    if not file.exists():
        return {}
    return {
        module: Outcome(
            Tree(code, tuple(tests)),
            Score(module, *counts),
            [Survivor(module, *survivor) for survivor in survivors],
        )
        for module, (code, tests, counts, survivors) in json.loads(file.read_text()).items()
    }


def save_outcomes(file: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write the outcomes by module."""
    plain = {
        module: (*each.tree, each.score[1:], [survivor[1:] for survivor in each.survivors])
        for module, each in outcomes.items()
    }
    file.write_text(json.dumps(plain))
