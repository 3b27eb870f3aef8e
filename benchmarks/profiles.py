"""How much a run does: the full one in ten minutes at most, the quick one in two."""

from typing import Final, NamedTuple

from benchmarks.corpus import MIB


class Profile(NamedTuple):
    """The sizes and counts of a run; sizes in bytes, times in seconds."""

    name: str
    rounds: int  #: measured; one more before them warms up
    sizes: tuple[int, ...]  #: of the large files of W1
    cold: int  #: the size of W2's file
    latencies: int  #: W3: calls of each contender in each round
    small_files: int  #: W4
    wide: int  #: W5: entries of one directory
    tree_directories: int  #: W6
    tree_files: int  #: W6, in each directory
    connections: int  #: W7: clients of the stat storm
    storm: float  #: W7: length of a round
    idle: float  #: W8: how long an idle daemon is watched


FULL: Final = Profile(
    name="full",
    rounds=9,
    sizes=(64 * MIB, 256 * MIB, 512 * MIB),
    cold=256 * MIB,
    latencies=200,
    small_files=10_000,
    wide=100_000,
    tree_directories=5_000,
    tree_files=16,
    connections=1_000,
    storm=1.0,
    idle=5.0,
)

#: The same lines with a third of the rounds, and less to do where a line is a ratio.
QUICK: Final = Profile(
    name="quick",
    rounds=3,
    sizes=(64 * MIB,),
    cold=64 * MIB,
    latencies=100,
    small_files=2_000,
    wide=20_000,
    tree_directories=500,
    tree_files=16,
    connections=1_000,
    storm=1.0,
    idle=3.0,
)
