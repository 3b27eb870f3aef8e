"""Which changes are made: Cosmic Ray's, and two more that a codec of records calls for."""

import re
from collections.abc import Iterator
from typing import Final

from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Keyword, String
from parso.tree import NodeOrLeaf

Position = tuple[int, int]

#: A format of struct: the order of bytes, then fields.
_FORMAT: Final = re.compile(r'"[=<](?:\d*[a-zA-Z])+"')
_PART: Final = re.compile(r"[=<]|\d+|[a-zA-Z]")
#: What a field becomes: of another width, and with or without a sign.
_FIELDS: Final = {
    "H": ("I", "h"),
    "I": ("H", "i"),
    "i": ("h", "I"),
    "Q": ("I", "q"),
    "q": ("i", "Q"),
    "s": ("x",),
    "x": ("s",),
}


class ReplaceFormat(Operator):  # type: ignore[misc] # a class without types
    """Change one part of a struct's format: byte order, a count, or a field."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[Position, Position]]:
        for _ in self._changed(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        value = list(self._changed(node))[index]
        return String(value, node.start_pos, prefix=node.get_first_leaf().prefix)

    def _changed(self, node: NodeOrLeaf) -> Iterator[str]:
        if not isinstance(node, String) or not _FORMAT.fullmatch(node.value):
            return
        for part in _PART.finditer(node.value):
            for other in _others(part[0]):
                yield node.value[: part.start()] + other + node.value[part.end() :]

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example('x = "=Q"', 'x = ">Q"'), Example('x = "=Q"', 'x = "=I"', occurrence=1))


def _others(part: str) -> tuple[str, ...]:
    if part.isdigit():
        return str(int(part) - 1), str(int(part) + 1)
    return (">",) if part in "=<" else _FIELDS[part]


class RemoveStatement(Operator):  # type: ignore[misc]
    """Leave out a statement of a function: a call, a check, a store into memory or an attribute."""

    def mutation_positions(self, node: NodeOrLeaf) -> Iterator[tuple[Position, Position]]:
        if node.type == "simple_stmt" and node.search_ancestor("funcdef"):
            statement = node.children[0]
            if statement.type == "expr_stmt":
                target, operator, *_ = statement.children
                # A local name that is never given a value is no program worth a trial.
                local = target.type in ("name", "testlist_star_expr")
                worth = not local or getattr(operator, "value", "=") != "="
            else:
                worth = statement.type in ("raise_stmt", "del_stmt", "atom_expr")
            if worth:
                yield node.start_pos, node.end_pos

    def mutate(self, node: NodeOrLeaf, index: int) -> NodeOrLeaf:
        assert index == 0
        prefix = node.get_first_leaf().prefix
        node.children[0] = Keyword("pass", node.start_pos, prefix=prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("def f():\n    g()\n", "def f():\n    pass\n"),)


def operators() -> Iterator[Operator]:
    """Yield one operator of each kind."""
    for name in operator_names():
        kind = get_operator(name)
        # "is" for "==" lives or dies with the numbers that the interpreter happens to keep.
        if not kind.arguments() and not re.search(r"Comparison.*(?<!Is|ot)_Is(Not)?$", name):
            yield kind()
    yield ReplaceFormat()
    yield RemoveStatement()
