"""Which mutants are tried, which live and why they may, and the page that lists both."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

REASONS: Final = Path(__file__).with_name("reasons.toml")

_HEAD: Final = """\
# Mutants

`make mutants` wrote this page. It changes one thing at a time in the codec and in the virtqueue
(another operator, another number, a condition turned round, a statement left out, a field of
another width) and runs the unit and property tests of that module. A mutant is killed when a test
fails, when the module cannot be imported, or, by time, when the tests compute far longer than they
do without it or wait for nothing. Mutants that compile to the same code as the original, or as
another mutant, are not counted.

| module | mutants | killed | of these by time | live | score |
|---|---|---|---|---|---|
"""


class Part(NamedTuple):
    """Some of a module's mutants: in ``of`` parts every one is tried once."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the part that ``2/5`` says, for one."""
        number, of = map(int, text.split("/"))
        if not 1 <= number <= of:
            raise ValueError(text)
        return cls(number, of)


class Survivor(NamedTuple):
    """A mutant that no test noticed."""

    module: str
    line: int
    was: str
    now: str


class Score(NamedTuple):
    """How many mutants a module had, how many of them live, and how many had to be ended."""

    module: str
    mutants: int
    live: int
    by_time: int

    @property
    def percent(self) -> float:
        return 100 * (self.mutants - self.live) / self.mutants


class Reason(NamedTuple):
    """Why some mutants of a module are let live, each as the lines before and after."""

    module: str
    why: str
    mutants: tuple[tuple[str, str], ...]

    def covers(self, survivor: Survivor) -> bool:
        return survivor.module == self.module and (survivor.was, survivor.now) in self.mutants


def load_reasons(path: Path = REASONS) -> list[Reason]:
    """Read the reasons; their mutants are written as a diff is: ``- before``, then ``+ after``."""
    reasons = []
    for table in tomllib.loads(path.read_text())["reason"]:
        was = ""
        mutants = []
        for line in table["mutants"].strip().splitlines():
            mark, text = line[:1], line[2:].strip()
            if mark == "-":
                was = text
            elif mark == "+":
                mutants.append((was, text))
            else:
                raise ValueError(f"{path.name}: neither '- before' nor '+ after': {line!r}")
        reasons.append(Reason(table["module"], " ".join(table["why"].split()), tuple(mutants)))
    return reasons


def without_reason(survivors: Iterable[Survivor], reasons: Iterable[Reason]) -> list[Survivor]:
    """Return the survivors that no reason covers."""
    return [
        survivor for survivor in survivors if not any(reason.covers(survivor) for reason in reasons)
    ]


def out_of_date(live: Iterable[Survivor], reasons: Iterable[Reason], module: str) -> list[str]:
    """Return the mutants of ``module`` that have a reason and do not live (any more)."""
    alive = {(survivor.was, survivor.now) for survivor in live}
    return [
        now
        for reason in reasons
        if reason.module == module
        for was, now in reason.mutants
        if (was, now) not in alive
    ]


def markdown(scores: list[Score], survivors: list[Survivor], reasons: list[Reason]) -> str:
    """Lay out docs/mutants.md."""
    whole = Score(
        "all", *(sum(counts) for counts in zip(*(each[1:] for each in scores), strict=True))
    )
    rows = [
        f"| {name} | {each.mutants} | {each.mutants - each.live} | {each.by_time} | {each.live}"
        f" | {each.percent:.1f} % |"
        for name, each in [*((f"`{each.module}`", each) for each in scores), ("all", whole)]
    ]
    parts = [_HEAD + "\n".join(rows)]
    if survivors:
        parts.append("The ones that live, and why they may (`tests/mutants/reasons.toml`):")
    for module in (each.module for each in scores if each.live):
        parts.append(f"## {module}")
        for reason in reasons:
            covered = [survivor for survivor in survivors if reason.covers(survivor)]
            if reason.module == module and covered:
                parts += [reason.why, _diff(covered)]
        unexplained = [each for each in without_reason(survivors, reasons) if each.module == module]
        if unexplained:
            parts += ["**Without a reason yet:**", _diff(unexplained)]
    return "\n\n".join(parts) + "\n"


def _diff(survivors: list[Survivor]) -> str:
    lines = ["```diff"]
    was = None
    for survivor in survivors:
        if survivor.was != was:
            was = survivor.was
            lines.append(f"- {was}".rstrip())
        lines.append(f"+ {survivor.now}".rstrip())
    return "\n".join([*lines, "```"])
