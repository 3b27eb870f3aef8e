"""Calls that a client gave less time than the backend takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from protocol.fuse import Opcode
from tests.fake.backend import FakeBackend
from tests.faults.catalogue import fault
from tests.faults.harness import CONTENT, FOR_EVER
from tests.faults.system_calls import FILE, daemon_on, is_served
from vuserd.client import TrioClient, calls
from vuserd.client.calls import Call, within
from vuserd.client.errors import RemoteError

#: Enough for a request to reach the backend on a busy machine.
SECONDS: Final = 0.3


def load(memory: int) -> Call[Any]:
    return calls.load(memory, 0, FILE, "Image")


CALLS: Final[dict[str, Callable[[int], Call[Any]]]] = {
    "stat": lambda _: calls.stat(FILE, "Image"),
    "readlink": lambda _: calls.readlink(FILE, "link"),
    "readdir": lambda _: calls.readdir(FILE, ""),
    "walk": lambda _: calls.walk(FILE, ""),
    "read": lambda _: calls.read_into(FILE, "Image", 0, bytearray(100)),
    "statfs": lambda _: calls.statfs(FILE),
    "fetch": lambda _: calls.fetch(FILE, "Image"),
    "load": load,
}
#: What each of them waits for in vain.
KEPT: Final = {Opcode.LOOKUP, Opcode.READ, Opcode.READDIR, Opcode.STATFS}


@fault(
    "slower-than-the-caller-has-time",
    done="the backend answers later than a client has said that the call may take",
    must="The call ends with TIMEOUT when its time is over; the session goes on and owes nothing.",
)
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_has_the_time_that_its_caller_gives_it(
    backend: FakeBackend, tmp_path: Path, name: str
) -> None:
    async with (
        daemon_on(backend, str(tmp_path)) as address,
        TrioClient.connect(address) as client,
        await client.attach(size=1 << 16) as memory,
    ):
        await is_served(address, CONTENT)
        backend.answer = lambda request: (
            None if request.opcode in KEPT else backend.serve_files(request)
        )
        kept = len(backend.requests)
        begun = trio.current_time()
        with (
            pytest.raises(RemoteError, match=f"given {SECONDS:g} s") as raised,
            trio.fail_after(FOR_EVER),
        ):
            await client.call(within(SECONDS, CALLS[name](memory.id)))
        assert raised.value.code == "TIMEOUT"
        assert trio.current_time() - begun >= SECONDS
        late = [request for request in backend.requests[kept:] if request.opcode in KEPT]
        assert late
        backend.answer = backend.serve_files
        for request in late:
            answer = backend.serve_files(request)
            assert answer is not None
            backend.reply(request, answer)
        with trio.fail_after(FOR_EVER):
            await client.call(within(FOR_EVER, CALLS["read"](0)))
            [export] = (await client.status())["exports"]
            while export["in_flight"]:
                [export] = (await client.status())["exports"]
        assert export["backend"] is not None
        assert (export["payloads"], export["backend"]["generation"]) == (0, 1)
