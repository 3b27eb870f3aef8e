"""``python -m tests.mutants``: try the tests of each module on all of its mutants.

Run by ``make mutants`` in a copy of the tree. It prints the mutants that live and have no reason
in reasons.toml; the status is 1 then, or when a module's score is too low. What was found is kept
(outcomes.py), and the page is written when all that it says is true of one tree.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from tests.mutants.making import Mutant, make_mutants
from tests.mutants.outcomes import Holds, Outcome, Tree, load_outcomes, save_outcomes
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
from tests.mutants.targets import TARGETS
from tests.mutants.trials import TrialError, Verdict, baseline, run_trials

#: The least share of its mutants, in percent, that a module's tests have to kill: 5 of 6 do.
LEAST: Final = 80


def _try_module(module: str, part: Part, limit: float, known: Outcome | None) -> Outcome:
    """Try the mutants of a module; of those in ``known``, the ones that still may live."""
    tree = Tree.read(module)
    holds = known.holds(tree) if known else Holds.NOTHING
    if known and holds is Holds.ALL:
        return known
    begun = time.monotonic()
    counts = dict.fromkeys(Verdict, 0)
    survivors = []
    mutants: Iterator[Mutant] = make_mutants(Path(module).read_text(), module)
    if known and holds is Holds.DEATHS:
        lived = {*known.survivors}
        mutants = (mutant for mutant in mutants if _survivor(module, mutant) in lived)
    mutants = islice(mutants, part.number - 1, None, part.of)
    for mutant, verdict in run_trials(mutants, module, TARGETS[module], limit):
        counts[verdict] += 1
        if verdict is Verdict.LIVES:
            survivors.append(_survivor(module, mutant))
    by_time = counts[Verdict.ENDLESS] + counts[Verdict.STUCK]
    score = Score(module, sum(counts.values()), len(survivors), by_time)
    if known and holds is Holds.DEATHS:
        dead = known.score.mutants - known.score.live
        score = score._replace(mutants=dead + score.mutants, by_time=known.score.by_time + by_time)
    print(
        f"{module}: tried {sum(counts.values())}, of which {counts[Verdict.ENDLESS]} were endless"
        f" and {counts[Verdict.STUCK]} stuck, in {time.monotonic() - begun:.0f} s"
    )
    return Outcome(tree, score, sorted(survivors))


def _survivor(module: str, mutant: Mutant) -> Survivor:
    return Survivor(module, mutant.line, mutant.was, mutant.now)


def main() -> int:
    """Try the modules one after the other."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--report", type=Path, required=True, help="the page to write")
    parser.add_argument("--outcomes", type=Path, required=True, help="what was found before")
    parser.add_argument("--anew", action="store_true", help="try again what was found before")
    parser.add_argument("module", nargs="*", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument(
        "--part", type=Part.parse, default=Part(1, 1), help="only some of them: the 2nd of 5 is 2/5"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.module) - TARGETS.keys()
    if unknown:
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    whole = arguments.part.of == 1
    modules = arguments.module or list(TARGETS)
    reasons = load_reasons()
    outcomes = load_outcomes(arguments.outcomes)
    satisfied = True
    try:
        # All of them before the first mutant: tests that fail or are gone are no news after hours.
        limits = {module: 3 + 3 * baseline(TARGETS[module]) for module in modules}
        for module, limit in limits.items():
            known = outcomes.get(module) if whole and not arguments.anew else None
            outcome = _try_module(module, arguments.part, limit, known)
            satisfied &= _judge(outcome, reasons, whole=whole)
            if whole:
                # Another run may have added what it found meanwhile.
                outcomes = {**load_outcomes(arguments.outcomes), module: outcome}
                save_outcomes(arguments.outcomes, outcomes)
    except TrialError as error:
        print(error, file=sys.stderr)
        return 1
    if all(
        module in outcomes and outcomes[module].holds(Tree.read(module)) is Holds.ALL
        for module in TARGETS
    ):
        found = [outcomes[module] for module in TARGETS]
        survivors = [survivor for each in found for survivor in each.survivors]
        page = markdown([each.score for each in found], survivors, reasons)
        arguments.report.write_text(page)
    return 0 if satisfied else 1


def _judge(outcome: Outcome, reasons: list[Reason], *, whole: bool) -> bool:
    """Print the result of a module, and what is wrong with it; True if nothing is."""
    score, live = outcome.score, outcome.survivors
    print(
        f"{score.module:<24} {score.mutants:>5} mutants, {score.live:>3} live"
        f" ({score.percent:.1f} % killed, {score.by_time} by time)"
    )
    if whole:
        for text in out_of_date(live, reasons, score.module):
            print(f"  killed, so it needs no reason: {text}")
    unexplained = without_reason(live, reasons)
    for each in unexplained:
        print(f"  line {each.line} lives without a reason:\n- {each.was}\n+ {each.now}")
    if score.percent < LEAST:
        print(f"  at least {LEAST} % are wanted")
    sys.stdout.flush()
    return not unexplained and score.percent >= LEAST


if __name__ == "__main__":
    sys.exit(main())
