"""Draw the rooms of vuserd, and who imports whom, into docs/architecture.md.

``python -m tests.rooms`` writes the drawing and its table, ``--check`` only compares them. They
come from the import graph and from the docstrings of the folders.
"""

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import grimp

from tests.running import REPOSITORY

DOCUMENT: Final = REPOSITORY / "docs" / "architecture.md"
_BEGIN: Final = "<!-- rooms: written by python -m tests.rooms -->\n"
_END: Final = "<!-- end of rooms -->\n"
_FLOORS: Final = ("vuserd", "memory", "protocol")
#: What stands at the root of vuserd/ and is imported everywhere: no arrow to it says anything.
_EVERYWHERE: Final = frozenset({"vuserd.errors", "vuserd.packages"})

_ROLE: Final = re.compile(r":[a-z]+:`([^`]*)`")

Graph = Mapping[str, frozenset[str]]


def rooms() -> Graph:
    """Return, for each room, the rooms that it imports, for types alone included."""
    modules = grimp.build_graph(*_FLOORS, exclude_type_checking_imports=False, cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in modules.modules:
        uses = found.setdefault(_room(module), set())
        uses.update(map(_room, modules.find_modules_directly_imported_by(module)))
    outside = {"vuserd", *_EVERYWHERE}
    return {
        room: frozenset(uses - {room} - outside)
        for room, uses in found.items()
        if room not in outside
    }


def _room(module: str) -> str:
    """Return the folder of a module: ``memory`` and ``protocol`` are one room each."""
    floor, *rest = module.split(".")
    return f"{floor}.{rest[0]}" if floor == "vuserd" and rest else floor


def without_shortcuts(graph: Graph) -> Graph:
    """Leave out the arrows that a longer way shows as well.

    Raises:
        ValueError: the rooms import each other in a circle.

    """
    reached: dict[str, frozenset[str]] = {}

    def below(room: str, way: tuple[str, ...] = ()) -> frozenset[str]:
        if room in way:
            raise ValueError(f"a circle of imports: {' -> '.join((*way, room))}")
        if room not in reached:
            further = [below(used, (*way, room)) for used in graph[room]]
            reached[room] = graph[room].union(*further)
        return reached[room]

    for room in graph:
        below(room)
    return {
        room: frozenset(
            used for used in uses if not any(used in below(other) for other in uses - {used})
        )
        for room, uses in graph.items()
    }


def described(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    path = REPOSITORY.joinpath(*room.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    sentence = text.partition("\n\n")[0].replace("\n", " ").rstrip(".")
    return _ROLE.sub(r"`\1`", sentence).replace("``", "`")


def drawing() -> str:
    """Return the drawing, as Mermaid, and the table of rooms."""
    graph = rooms()
    short = {room: room.removeprefix("vuserd.") for room in graph}
    lines = [
        f"    {short[room]} --> {short[used]}"
        for room, uses in sorted(without_shortcuts(graph).items())
        for used in sorted(uses)
    ]
    rows = [f"| `{_place(room)}` | {described(room)} |" for room in sorted(graph)]
    return "\n".join(
        [
            "```mermaid",
            "flowchart TD",
            *lines,
            "```",
            "",
            "| room | what is in it |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _place(room: str) -> str:
    path = Path(*room.split("."))
    return f"{path}/" if (REPOSITORY / path).is_dir() else f"{path}.py"


def with_drawing(text: str) -> str:
    """Return the document with the drawing as it is now."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return before + _BEGIN + drawing() + _END + after


def main(arguments: list[str]) -> int:
    """Return 1 where the drawing was to be checked and is another one."""
    before = DOCUMENT.read_text()
    after = with_drawing(before)
    if "--check" not in arguments:
        DOCUMENT.write_text(after)
    elif before != after:
        print("docs/architecture.md does not show the rooms as they are: python -m tests.rooms")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
