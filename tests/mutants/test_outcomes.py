"""What was found holds as long as all that it depends on, and no longer."""

from pathlib import Path
from typing import Final

import pytest

from tests.mutants.outcomes import Holds, Outcome, Tree, load_outcomes, save_outcomes
from tests.mutants.report import Score, Survivor

MODULE: Final = "protocol/virtio_ring.py"
TEST: Final = "tests/unit/test_virtio_ring.py"
FOUND: Final = Outcome(
    Tree("digest", ("def test_a", "    assert a", "", "def test_b", "    assert b")),
    Score(MODULE, 40, 1, 2),
    [Survivor(MODULE, 7, "x = 1", "x = 2")],
)


def test_all_of_it_holds_while_nothing_changes() -> None:
    assert FOUND.holds(FOUND.tree) is Holds.ALL


@pytest.mark.parametrize(
    "tests",
    [
        ("def test_a", "    assert a", "", "def test_b", "    assert b", "    assert c"),
        ("def test_a", "    assert a", "", "def test_c", "", "def test_b", "    assert b"),
    ],
)
def test_tests_that_were_added_bring_nothing_back_to_life(tests: tuple[str, ...]) -> None:
    assert FOUND.holds(Tree("digest", tests)) is Holds.DEATHS


@pytest.mark.parametrize(
    "now",
    [
        Tree("another", FOUND.tree.tests),
        Tree("digest", FOUND.tree.tests[:-1]),
        Tree("digest", ("def test_a", "    assert a or b", "", "def test_b", "    assert b")),
        Tree("digest", ("def test_b", "    assert b", "", "def test_a", "    assert a")),
    ],
    ids=["another code", "one assertion less", "another assertion", "another order"],
)
def test_nothing_holds_otherwise(now: Tree) -> None:
    assert FOUND.holds(now) is Holds.NOTHING


def test_tree_has_the_code_and_the_tests(tmp_path: Path) -> None:
    for file in (MODULE, "protocol/other.py", "tests/fake/device.py", TEST):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x = 1\n")
    before = Tree.read(MODULE, tmp_path)
    assert Tree.read(MODULE, tmp_path) == before
    (tmp_path / TEST).write_text("x = 1\ny = 1\n")
    assert Outcome(before, FOUND.score, []).holds(Tree.read(MODULE, tmp_path)) is Holds.DEATHS
    for file in (MODULE, "protocol/other.py", "tests/fake/device.py"):
        (tmp_path / file).write_text("x = 2\n")
        assert Tree.read(MODULE, tmp_path).code != before.code
        (tmp_path / file).write_text("x = 1\n")
        assert Tree.read(MODULE, tmp_path).code == before.code


def test_outcomes_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.json"
    assert load_outcomes(file) == {}
    save_outcomes(file, {MODULE: FOUND})
    assert load_outcomes(file) == {MODULE: FOUND}
