"""The drawing of the rooms in docs/architecture.md, and what makes it."""

import re
from collections import Counter

import pytest

from tests import rooms
from tests.running import REPOSITORY


def graph(**rooms_and_uses: str) -> rooms.Graph:
    return {room: frozenset(uses.split()) for room, uses in rooms_and_uses.items()}


def test_the_drawing_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert rooms.main(["--check"]) == 0, capsys.readouterr().out


def test_what_a_longer_way_shows_is_not_drawn() -> None:
    drawn = rooms.without_shortcuts(graph(a="b c d", b="c", c="d", d=""))
    assert drawn == graph(a="b", b="c", c="d", d="")


def test_a_circle_is_no_drawing() -> None:
    with pytest.raises(ValueError, match="a -> b -> a"):
        rooms.without_shortcuts(graph(a="b", b="a"))


def test_every_folder_is_a_room_with_a_sentence() -> None:
    found = rooms.rooms()
    folders = {path.parent.name for path in (REPOSITORY / "vuserd").glob("*/__init__.py")}
    assert {f"vuserd.{name}" for name in folders} <= set(found)
    for room in found:
        assert rooms.described(room), room


def test_the_files_that_the_document_names_are_there() -> None:
    named = set(
        re.findall(
            r"`((?:vuserd|memory|protocol|tests|tools)/[\w/.]*)`", rooms.DOCUMENT.read_text()
        )
    )
    assert len(named) > 30
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


#: What is a list of records as they are on the wire may be long.
WIRE_RECORDS = {"vuserd/client/records.py", "protocol/fuse.py"}


@pytest.mark.parametrize("package", ["vuserd", "memory", "protocol"])
def test_no_room_is_crowded_and_no_module_long(package: str) -> None:
    modules = sorted((REPOSITORY / package).rglob("*.py"))
    crowded = {
        folder: count
        for folder, count in Counter(module.parent for module in modules).items()
        if count > 16
    }
    assert crowded == {}
    lengths = {
        str(module.relative_to(REPOSITORY)): module.read_text().count("\n") for module in modules
    }
    long = {name for name, count in lengths.items() if count > 400}
    assert long <= WIRE_RECORDS
