"""The blocks of code in README.md and docs/, and how they are run.

Blocks of ``python`` run as programs, blocks of ``sh`` and ``console`` in bash. In a ``console``
block, what follows a prompt (``$``) is run, and the rest is what comes out: a line without a digit
has to come out as it is shown, lines with digits (sizes, times, versions) differ from machine to
machine.
"""

import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from tests.running import REPOSITORY

_FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN: Final = ("sh", "console", "python")


class Block(NamedTuple):
    """A block of code in a document."""

    document: str
    language: str
    text: str

    @property
    def command(self) -> list[str]:
        """The commands that a reader who copies the block runs."""
        match self.language:
            case "python":
                return [sys.executable, "-c", self.text]
            case "sh":
                return ["bash", "-euo", "pipefail", "-c", self.text]
            case _:
                return ["bash", "-c", "\n".join(self._commands())]

    def check(self, status: int, output: str) -> None:
        """Check the output of running it."""
        if self.language == "console":
            shown = [line for line in self.text.splitlines() if not line.startswith("$ ")]
            assert _steady(output.splitlines()) == _steady(shown), output
        else:
            assert status == 0, output

    def _commands(self) -> list[str]:
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]


def blocks(document: Path, languages: Collection[str] = _RUN) -> list[Block]:
    """Return the blocks of a document that can be run, in their order, or those of languages."""
    name = str(document.relative_to(REPOSITORY))
    found = _FENCE.findall(document.read_text())
    return [Block(name, language, text) for language, text in found if language in languages]


def _steady(lines: list[str]) -> list[str]:
    return [line for line in lines if not re.search(r"\d", line)]
