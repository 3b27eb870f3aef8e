"""Draw the states of an export, and what leads from one to another, into docs/states.md.

``python -m tests.states`` writes the page, ``--check`` only compares it. It comes from the table in
``vuserd/exports/states.py`` alone.
"""

import inspect
import re
import sys
from typing import Final

from tests.running import REPOSITORY
from vuserd.exports.states import CALLS_WAIT, TRANSITIONS, Event, ExportState, is_final

DOCUMENT: Final = REPOSITORY / "docs" / "states.md"

_HEAD: Final = """# The states of an export

`vuserctl exports`, the methods `exports` and `status` and the metric `vuserd_export_state` say in
which state an export is. The table that the daemon goes by is `vuserd/exports/states.py`; this page
is made from it by `python -m tests.states`, and a test fails when it is stale.

"""
#: A state with its comment, as the source has it.
_MEMBER: Final = re.compile(r'^    ([A-Z]+) = "\w+"  #: (.*)$', re.MULTILINE)


def page() -> str:
    """Return the page."""
    return "".join([_HEAD, _drawing(), "\n", _states(), "\n", _transitions()])


def _drawing() -> str:
    arrows: dict[tuple[ExportState, ExportState], list[Event]] = {}
    for state, ways in TRANSITIONS.items():
        for event, target in ways.items():
            arrows.setdefault((state, target), []).append(event)
    lines = ["[*] --> starting"]
    for (state, target), events in arrows.items():
        lines.append(f"{state} --> {target}: {' / '.join(_name(event) for event in events)}")
    lines += [f"{state} --> [*]" for state in ExportState if is_final(state)]
    drawn = "".join(f"    {line}\n" for line in lines)
    return f"```mermaid\nstateDiagram-v2\n{drawn}```\n"


def _states() -> str:
    meanings = dict(_MEMBER.findall(inspect.getsource(ExportState)))
    rows = [f"| `{state}` | {meanings[state.name]} | {_call(state)} |\n" for state in ExportState]
    return f"| state | what it means | a call |\n|---|---|---|\n{''.join(rows)}"


def _call(state: ExportState) -> str:
    if state is ExportState.UP:
        return "is served"
    return "waits for the next backend" if state in CALLS_WAIT else "fails at once: BACKEND_DOWN"


def _transitions() -> str:
    rows = []
    for event in Event:
        ways = [(state, of[event]) for state, of in TRANSITIONS.items() if event in of]
        told = ", ".join(f"`{state}` to `{target}`" for state, target in ways)
        rows.append(f"| {_name(event)} | {event.value} | {told} |\n")
    return f"| event | what happens | leads from and to |\n|---|---|---|\n{''.join(rows)}"


def _name(event: Event) -> str:
    return event.name.lower().replace("_", " ")


def main(arguments: list[str]) -> int:
    """Return 1 where the page was to be checked and is another one."""
    if "--check" not in arguments:
        DOCUMENT.write_text(page())
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != page():
        print("docs/states.md does not show the states as they are: python -m tests.states")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
