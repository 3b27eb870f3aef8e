"""Run the benchmark and write its results: ``python -m benchmarks [--quick]``."""

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Final, NoReturn

from benchmarks import workloads
from benchmarks.chart import svg
from benchmarks.contenders.ring_session import kind_of
from benchmarks.crowd import crowds
from benchmarks.lines import judge
from benchmarks.machine import Others, describe
from benchmarks.measure import Group, Row, say
from benchmarks.profiles import FULL, QUICK
from benchmarks.readiness import readiness
from benchmarks.report import markdown
from benchmarks.worker import Fault
from benchmarks.workloads import Bench

WORKLOADS: Final[dict[str, Callable[[Bench], Iterator[Group]]]] = {
    "W1": workloads.large_files,
    "W2": workloads.cold_file,
    "W3": workloads.path_to_bytes,
    "W4": workloads.small_files,
    "W5": workloads.wide_directory,
    "W6": workloads.whole_tree,
    "W7": crowds,
    "W8": readiness,
}
_REPOSITORY: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TMPFS: Final = "/dev/shm"
_RESULTS: Final = os.path.join(_REPOSITORY, "benchmarks", "results")
#: Where the Rust and the C virtiofsd are; of either the first one found.
_BACKENDS: Final = (
    (os.path.join(_REPOSITORY, ".cache/virtiofsd-rust/virtiofsd"), "/usr/libexec/virtiofsd"),
    ("/usr/lib/qemu/virtiofsd",),
)


def main() -> int:
    """Measure, then write; return 1 where a row failed that the machine does not lack."""
    options = _parser().parse_args()
    programs = options.backend or _find_backends()
    if not programs:
        sys.exit("no virtiofsd found: `make backends` gets one, --backend names one")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    profile = QUICK if options.quick else FULL
    profile = profile._replace(rounds=options.rounds or profile.rounds)
    machine = describe(programs, options.place)
    others = Others()
    began = time.monotonic()
    groups: list[Group] = []
    with ExitStack() as stack:
        # What a process leaves that had to be killed goes with these three.
        place, tmpfs, tempfile.tempdir = (
            stack.enter_context(tempfile.TemporaryDirectory(prefix="vuserd-bench-", dir=parent))
            for parent in (options.place, _TMPFS, None)
        )
        for folder in (place, tempfile.tempdir):
            os.chmod(folder, 0o755)  # peers' workers run as other users
        bench = Bench(profile, programs, place, tmpfs)
        for name, measure in WORKLOADS.items():
            if name in (options.only or WORKLOADS):
                say(f"{name}, after {time.monotonic() - began:.0f} s")
                try:
                    groups.extend(measure(bench))
                except Exception as error:  # the others are still worth measuring
                    traceback.print_exc()
                    fault = Fault(f"{type(error).__name__}: {error}", unavailable=False)
                    groups.append(Group(name, "it failed", rows=[Row("all", "", fault=fault)]))
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    machine.append(("run", f"{profile.rounds} rounds, {minutes} min {seconds} s"))
    machine.append(("others meanwhile", others.share()))
    name = "partial" if options.only or options.rounds else profile.name
    _write(options.output, name, machine, groups, [str(kind_of(one)) for one in programs])
    return int(any(row.fault and not row.fault.unavailable for one in groups for row in one.rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds, less work in each")
    parser.add_argument("--only", action="append", choices=WORKLOADS, help="repeat it for more")
    parser.add_argument("--rounds", type=int, help="instead of nine, or three")
    parser.add_argument("--backend", action="append", help="a virtiofsd (default: all found)")
    parser.add_argument(
        "--place", default="/var/tmp", help="a folder on a disk (default: %(default)s)"
    )
    parser.add_argument("--output", default=_RESULTS, help="a folder (default: %(default)s)")
    return parser


def _find_backends() -> list[str]:
    found = []
    for places in _BACKENDS:
        found += [place for place in places if os.access(place, os.X_OK)][:1]
    return found


def _write(
    folder: str,
    name: str,
    machine: Sequence[tuple[str, str]],
    groups: Sequence[Group],
    backends: Sequence[str],
) -> None:
    verdicts = list(judge({group.key: group for group in groups}, backends))
    title = f"vuserd's benchmark, the {name} run"
    os.makedirs(folder, exist_ok=True)
    table, picture = (os.path.join(folder, f"{name}.{ending}") for ending in ("md", "svg"))
    with open(table, "w") as file:
        file.write(markdown(title, f"{name}.svg", machine, groups, verdicts))
    with open(picture, "w") as file:
        file.write(svg(title, _for_picture(groups)))
    missed = [verdict for verdict in verdicts if not verdict.reached]
    say(f"{len(verdicts) - len(missed)} of {len(verdicts)} lines reached: {table}")


def _for_picture(groups: Sequence[Group]) -> list[Group]:
    """Return the groups that have times; of those in several sizes the largest."""
    largest = {group.key.partition(",")[0]: group for group in groups if "MiB" in group.key}
    return [
        group
        for group in groups
        if not group.plain and (group in largest.values() or "MiB" not in group.key)
    ]


def _end(number: int, _: FrameType | None) -> NoReturn:
    """Unwind, so that everything is cleaned up."""
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
