"""Make the mutants of a module, with Cosmic Ray."""

import ast
import re
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

from cosmic_ray.mutating import mutate_code

from tests.mutants.operators import operators


class Mutant(NamedTuple):
    """A module with one change: the lines that it had there, those that it has now, its code."""

    line: int
    was: str
    now: str
    code: CodeType


def make_mutants(source: str, path: str) -> Iterator[Mutant]:
    """Yield every mutant of ``source``, ready to be executed.

    Left out is what proves nothing: text that is no Python, and what compiles to the very code of
    the original or of a mutant before it (``1 ** 0`` for ``1 << 0``).
    """
    seen = {_compiled(source, path)}
    for text in _texts(source):
        try:
            code = _compiled(text, path)
        except SyntaxError:
            continue
        if code not in seen:
            seen.add(code)
            yield Mutant(*_difference(source, text), compile(text, path, "exec", dont_inherit=True))


def _texts(source: str) -> Iterator[str]:
    for operator in operators():
        occurrence = 0
        while (text := mutate_code(source, operator, occurrence)) is not None:
            yield str(text)
            occurrence += 1


def _compiled(text: str, path: str) -> CodeType:
    """Compile with every position the same, so that equal programs are equal."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.expr | ast.stmt | ast.excepthandler | ast.keyword | ast.arg):
            node.lineno = node.end_lineno = 1
            node.col_offset = node.end_col_offset = 0
    return compile(tree, path, "exec", dont_inherit=True)


def _difference(before: str, after: str) -> tuple[int, str, str]:
    """Return the first line that differs, by number, and what stands there before and after."""
    old, new = before.splitlines(), after.splitlines()
    first = 0
    while first < min(len(old), len(new)) and old[first] == new[first]:
        first += 1
    same = 0
    while same < min(len(old), len(new)) - first and old[-1 - same] == new[-1 - same]:
        same += 1
    was, now = (lines[first : len(lines) - same] for lines in (old, new))
    return first + 1, _joined(was), _joined(now)


def _joined(lines: list[str]) -> str:
    """Make one line of them, with single spaces: Cosmic Ray puts some in."""
    return re.sub(" +", " ", " ".join(line.strip() for line in lines)).strip()
