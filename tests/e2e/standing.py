"""What an idle daemon and its backend hold, which has to be the same after each storm."""

import os
import time
from typing import Any, Final, NamedTuple

from tests.e2e.processes import family, memfd_mappings
from tests.running import RunningDaemon, open_descriptors, wait_until
from vuserd.client import Client

#: Seconds for a daemon to notice that clients are gone.
_SETTLED: Final = 20.0


class BackendHeld(NamedTuple):
    """What the backend of the only export keeps for its daemon."""

    nodes: int
    descriptors: int


def held_at_rest(client: Client) -> BackendHeld:
    """Take stock once all that no call uses any more has been given back.

    Nobody waits for that: the last page of a walk, for one, may be sent before.  At rest there is
    one lookup count for each node that the daemon knows, besides forgets that wait for a batch.
    """

    def is_at_rest() -> bool:
        [export] = client.status()["exports"]
        return export["lookups"] == export["nodes"] and not export["in_flight"] + export["payloads"]

    wait_until(is_at_rest)
    [export] = client.status()["exports"]
    assert export["backend"] is not None
    assert export["backend"]["pid"] is not None
    return BackendHeld(export["nodes"], open_descriptors(export["backend"]["pid"]))


def assert_owes_no_more(client: Client, before: BackendHeld) -> None:
    """Check that the backend comes to keep no more than before."""

    def is_within() -> bool:
        now = held_at_rest(client)
        return now.nodes <= before.nodes and now.descriptors <= before.descriptors

    wait_until(is_within)


class Standing(NamedTuple):
    """The state of a daemon with one export."""

    processes: int
    descriptors: int
    memfd_mappings: int
    connections: int
    export: dict[str, Any]

    @classmethod
    def of(cls, running: RunningDaemon) -> "Standing":
        """Take stock, through a connection that counts itself."""
        with Client.connect(running.socket) as client:
            deadline = time.monotonic() + _SETTLED
            while True:  # a RELEASE or FORGET may be on its way, which nobody waits for
                status = client.status()
                [export] = status["exports"]
                if not export["in_flight"] or time.monotonic() > deadline:
                    break
                time.sleep(0.005)
            held = ("state", "nodes", "lookups", "in_flight", "payloads")
            processes = list(family(running.process.pid))
            return cls(
                len(processes),
                sum(len(os.listdir(f"/proc/{each}/fd")) for each in processes),
                memfd_mappings(running.process.pid),
                status["connections"],
                {key: dict(export)[key] for key in held},
            )

    def is_within(self, before: "Standing") -> bool:
        """Return whether nothing is more than before: what is idle lapses meanwhile, or has."""
        held, held_before = dict(self.export), dict(before.export)
        return (
            held.pop("state") == held_before.pop("state")
            and all(held[key] <= held_before[key] for key in held)
            and all(now <= then for now, then in zip(self[:4], before[:4], strict=True))
        )


def assert_settles(running: RunningDaemon, before: Standing) -> None:
    """Check that what the daemon holds becomes what it was; it may need to notice who has gone.

    Or less than that.
    """
    deadline = time.monotonic() + _SETTLED
    while not (now := Standing.of(running)).is_within(before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert now.is_within(before), f"{before} became {now}"
