"""``python -m tests.fuzz``: run each target for a while, and report the findings.

For each target it prints how often it was run and by how much the memory of this process grew
after the first tenth of the time.  A finding is shortened, put into the corpus and printed; the
status is 1 then.
"""

import argparse
import gc
import sys
import time
from pathlib import Path

from tests.fuzz.mutation import FindingError, explore, keep_finding, shortened
from tests.fuzz.targets import TARGETS, Target

_EXAMPLES = 200


def _resident() -> int:
    """Return the bytes of its own that this process has in memory."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["RssAnon"].split()[0]) << 10


def _run(target: Target, seconds: float, seed: int) -> bool:
    """Run one target; tell whether nothing was found."""
    begun = time.monotonic()
    executions = 0
    settled: int | None = None
    while (passed := time.monotonic() - begun) < seconds:
        if settled is None and passed > seconds / 10:
            settled = _resident()
        try:
            executions += explore(
                target, seed, _EXAMPLES, enough=lambda: time.monotonic() - begun >= seconds
            )
        except FindingError as finding:
            data = shortened(target, finding.data)
            print(f"{target.name}: {finding}\nkept as {keep_finding(target.name, data)}")
            return False
        seed += 1
    grown = 0 if settled is None else _resident() - settled
    rate = executions / (time.monotonic() - begun)
    print(
        f"{target.name:<22} {executions:>10} executions, {rate:>6.0f} a second;"
        f" memory {grown / (1 << 20):+.1f} MiB",
        flush=True,
    )
    return True


def main() -> int:
    """Run the targets one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other inputs")
    parser.add_argument("target", nargs="*", help=f"default: all of {', '.join(TARGETS)}")
    arguments = parser.parse_args()
    unknown = set(arguments.target) - TARGETS.keys()
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    chosen = [TARGETS[name] for name in arguments.target or TARGETS]
    sound = [_run(each, arguments.seconds, arguments.seed) for each in chosen]
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
