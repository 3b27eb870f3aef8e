"""The reasons are about the code as it is, and the page says what they say."""

from pathlib import Path
from typing import Final

import pytest

from tests.mutants.report import (
    Part,
    Reason,
    Score,
    Survivor,
    load_reasons,
    markdown,
    out_of_date,
    without_reason,
)

REPOSITORY: Final = Path(__file__).parents[2]

LIVES = Survivor("protocol/a.py", 7, "x = 1", "x = 2")
WHY = Reason("protocol/a.py", "Nobody reads it.", (("x = 1", "x = 2"),))


def test_each_reason_is_about_lines_that_its_module_has() -> None:
    for reason in load_reasons():
        lines = [
            " ".join(line.split()) for line in (REPOSITORY / reason.module).read_text().splitlines()
        ]
        for was, now in reason.mutants:
            assert was in lines
            assert was != now


def test_page_in_docs_has_no_mutant_without_a_reason_and_each_reason() -> None:
    page = (REPOSITORY / "docs/mutants.md").read_text()
    assert "Without a reason" not in page
    for reason in load_reasons():
        assert reason.why in page


def test_survivor_of_another_module_or_another_change_has_no_reason() -> None:
    others = [
        LIVES._replace(module="protocol/b.py"),
        LIVES._replace(was="x = 0"),
        LIVES._replace(now="x = 0"),
    ]
    assert without_reason([LIVES, *others], [WHY]) == others


def test_reason_of_a_mutant_that_is_killed_is_out_of_date() -> None:
    assert out_of_date([LIVES], [WHY], "protocol/a.py") == []
    assert out_of_date([], [WHY], "protocol/a.py") == ["x = 2"]
    assert out_of_date([], [WHY], "protocol/b.py") == []


def test_page_counts_and_groups() -> None:
    page = markdown(
        [Score("protocol/a.py", 40, 1, 3), Score("protocol/b.py", 60, 1, 4)],
        [LIVES, LIVES._replace(module="protocol/b.py")],
        [WHY],
    )
    assert "| `protocol/a.py` | 40 | 39 | 3 | 1 | 97.5 % |" in page
    assert "| all | 100 | 98 | 7 | 2 | 98.0 % |" in page
    first, second = page.split("## protocol/b.py")
    assert "Nobody reads it.\n\n```diff\n- x = 1\n+ x = 2\n```" in first
    assert "Without a reason yet" in second


def test_reasons_are_written_as_a_diff_is(tmp_path: Path) -> None:
    file = tmp_path / "reasons.toml"
    table = '[[reason]]\nmodule = "m.py"\nwhy = "So it\n  is."\nmutants = """\n{}"""\n'
    file.write_text(table.replace('"So it\n  is."', '"""So it\n  is."""').format("- a\n+ b\n+ c\n"))
    assert load_reasons(file) == [Reason("m.py", "So it is.", (("a", "b"), ("a", "c")))]
    file.write_text(table.replace("\n  is", "").format("a\n"))
    with pytest.raises(ValueError, match=r"reasons\.toml: neither .*'a'"):
        load_reasons(file)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Part.parse(text)


def test_a_part_has_a_number_among_others() -> None:
    assert Part.parse("2/5") == (2, 5)
