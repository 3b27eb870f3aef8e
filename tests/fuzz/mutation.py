"""Input for fuzz targets: hypothesis draws a beginning, and each is damaged many times.

An input that hypothesis makes costs ten times what most targets take for it.  So of every drawn
one a hundred more are made, by small damage and by splicing it with others of the corpus.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import hypothesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import Target

_CORPUS: Final = os.path.join(os.path.dirname(__file__), "corpus")
_LONGEST: Final = 2048
#: Bytes that stand at the edges of numbers, and that begin MessagePack's containers and lengths.
_EDGES: Final = (
    *(bytes([edge]) for edge in (0x00, 0x01, 0x0F, 0x10, 0x7F, 0x80, 0xFF)),
    *(b"\xff\xff", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\0\1", b"\x10\0\0\0", b"\0\x10\0\0"),
    *(b"\x90", b"\x91", b"\x93\x02", b"\x94\x00", b"\x94\x01", b"\xc0", b"\xc1", b"\xd4\1"),
    *(b"\xc4\x05", b"\xc6\0\0\1\0", b"\xd9\xff", b"\xdc\0\x10", b"\xdd", b"\xdf"),
    *(b"/", b"..", b"/../", b"./", b"\n"),
)


class FindingError(AssertionError):
    """A target gave what it must not; ``data`` makes it do so again."""

    def __init__(self, target: str, data: bytes, error: BaseException) -> None:
        self.data = data
        super().__init__(f"{target} on {data!r}: {error!r}")


def corpus(target: str) -> dict[str, bytes]:
    """Return a target's corpus, findings of old among it, by the names of its files."""
    folder = os.path.join(_CORPUS, target)
    inputs = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as opened:
            inputs[name] = opened.read()
    return inputs


def keep_finding(target: str, data: bytes) -> str:
    """Put a finding into the corpus, so that the suite runs it from now on; return its path."""
    path = os.path.join(_CORPUS, target, f"finding-{random.Random(data).getrandbits(32):08x}")
    with open(path, "wb") as opened:
        opened.write(data)
    return path


def execute(target: Target, inputs: Iterable[bytes]) -> None:
    """Run a target on one input after the other, in one run of trio: that costs more than most.

    Raises:
        FindingError: anything came out of it.

    """
    trio.run(_execute, target, inputs)


async def _execute(target: Target, inputs: Iterable[bytes]) -> None:
    for data in inputs:
        try:
            running = target.run(data)
            if running is not None:
                await running
        except Exception as error:
            raise FindingError(target.name, data, error) from error


def mutants(base: bytes, others: list[bytes], chance: random.Random, count: int) -> Iterator[bytes]:
    """Yield damaged versions of ``base``."""
    for _ in range(count):
        made = bytearray(base)
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            at = chance.randrange(len(made) + 1)
            match chance.randrange(6):
                case 0 if at < len(made):
                    made[at] = chance.randrange(256)
                case 1 if at < len(made):
                    made[at] ^= 1 << chance.randrange(8)
                case 2:
                    edge = chance.choice(_EDGES)
                    made[at : at + len(edge)] = edge
                case 3:
                    made[at:at] = chance.choice(_EDGES)
                case 4:
                    del made[at : at + chance.randint(1, 16)]
                case _:
                    other = chance.choice(others)
                    begin = chance.randrange(len(other) + 1)
                    made[at:] = other[begin : begin + chance.randint(1, 200)] + made[at:]
        yield bytes(made[:_LONGEST])


def explore(
    target: Target,
    seed: int,
    examples: int,
    of_each: int = 100,
    enough: Callable[[], bool] = lambda: False,
) -> int:
    """Run a target on what hypothesis draws and on damaged versions of it; return how often.

    Args:
        target: what to run.
        seed: the same gives the same inputs.
        examples: how many inputs hypothesis draws.
        of_each: how many more are made of each.
        enough: asked before each; once it is true, nothing more is run.

    Raises:
        FindingError: anything came out of the target.

    """
    executions = 0
    known = list(corpus(target.name).values())

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(known) | st.binary(max_size=300), st.integers(0, 2**32 - 1))
    def draw(base: bytes, number: int) -> None:
        nonlocal executions
        if enough():
            return
        damaged = mutants(base, known, random.Random(number), of_each)
        execute(target, itertools.chain([base], damaged))
        executions += 1 + of_each

    draw()
    return executions


def shortened(target: Target, data: bytes) -> bytes:
    """Cut from a finding all that it does not need."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            try:
                execute(target, [shorter])
            except FindingError:
                data = shorter
            else:
                at += size
        size //= 2
    return data
