"""The short form of ``make fuzz``: the corpus with its old findings, and a little more."""

import pytest

from tests.fuzz.mutation import FindingError, corpus, execute, explore, shortened
from tests.fuzz.targets import TARGETS, Target

#: Inputs drawn for each target, few where each costs a socket.
_EXAMPLES = {"rpc_connection": 4, "vhost_user_connection": 4}


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_nothing_but_the_declared_exception_comes_out(target: Target) -> None:
    inputs = corpus(target.name)
    assert len(inputs) >= 3
    execute(target, inputs.values())
    assert explore(target, 0, _EXAMPLES.get(target.name, 25), of_each=50) > 100


def test_a_finding_is_noticed_and_shortened() -> None:
    def fragile(data: bytes) -> None:
        if b"\xc1" in data:
            raise KeyError("c1")

    target = Target("rpc_frames", fragile)
    with pytest.raises(FindingError, match="KeyError") as found:
        explore(target, 0, 50)
    assert b"\xc1" in found.value.data
    assert shortened(target, found.value.data) == b"\xc1"
