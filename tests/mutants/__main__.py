"""``python -m tests.mutants``: try the tests of each module on all of its mutants.

Run by ``make mutants`` in a copy of the tree. It prints the mutants that live and have no reason
in reasons.toml; the status is 1 then, or when a module's score is too low.
"""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Final

from tests.mutants.making import make_mutants
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

#: The least share of its mutants, in percent, that a module's tests have to kill: one of six may live.
LEAST: Final = 80


def _try_module(module: str, part: Part, limit: float) -> tuple[Score, list[Survivor]]:
    tests = TARGETS[module]
    begun = time.monotonic()
    counts = dict.fromkeys(Verdict, 0)
    survivors = []
    source = Path(module).read_text()
    mutants = islice(make_mutants(source, module), part.number - 1, None, part.of)
    for mutant, verdict in run_trials(mutants, module, tests, limit):
        counts[verdict] += 1
        if verdict is Verdict.LIVES:
            survivors.append(Survivor(module, mutant.line, mutant.was, mutant.now))
    endless, stuck = counts[Verdict.ENDLESS], counts[Verdict.STUCK]
    score = Score(module, sum(counts.values()), len(survivors), endless + stuck)
    print(
        f"{module:<24} {score.mutants:>5} mutants, {score.live:>3} live"
        f" ({score.percent:.1f} % killed; {endless} were endless, {stuck} stuck)"
        f" in {time.monotonic() - begun:.0f} s",
        flush=True,
    )
    return score, sorted(survivors)


def main() -> int:
    """Try the modules one after the other."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--report", type=Path, help="the page to write, after all modules")
    parser.add_argument("module", nargs="*", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument(
        "--part", type=Part.parse, default=Part(1, 1), help="only some of them: the 2nd of 5 is 2/5"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.module) - TARGETS.keys()
    if unknown:
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    modules = arguments.module or list(TARGETS)
    reasons = load_reasons()
    scores: list[Score] = []
    survivors: list[Survivor] = []
    satisfied = True
    try:
        # All of them before the first mutant: tests that fail or are gone are no news after hours.
        limits = {module: 3 + 3 * baseline(TARGETS[module]) for module in modules}
        for module, limit in limits.items():
            score, live = _try_module(module, arguments.part, limit)
            scores.append(score)
            survivors += live
            satisfied &= _judge(score, live, reasons, arguments.part)
    except TrialError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.report and not arguments.module and arguments.part.of == 1:
        arguments.report.write_text(markdown(scores, survivors, reasons))
    return 0 if satisfied else 1


def _judge(score: Score, live: list[Survivor], reasons: list[Reason], part: Part) -> bool:
    """Print what is wrong with a module's result; True if nothing is."""
    if part.of == 1:
        for text in out_of_date(live, reasons, score.module):
            print(f"  killed, so it needs no reason: {text}")
    unexplained = without_reason(live, reasons)
    for each in unexplained:
        print(f"  line {each.line} lives without a reason:\n- {each.was}\n+ {each.now}", flush=True)
    if score.percent < LEAST:
        print(f"  at least {LEAST} % are wanted")
    return not unexplained and score.percent >= LEAST


if __name__ == "__main__":
    sys.exit(main())
