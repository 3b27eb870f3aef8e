"""What a daemon and its backend hold while nobody asks for anything: the same after each storm."""

import os
import time
from typing import Any, Final, NamedTuple

from tests.e2e.processes import family, memfd_mappings
from tests.running import RunningDaemon
from vuserd.client import Client

#: Seconds for a daemon to notice that clients are gone.
_SETTLED: Final = 20.0


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
            held = ("state", "nodes", "lookups", "in_flight", "payloads")
            processes = list(family(running.process.pid))
            return cls(
                len(processes),
                sum(len(os.listdir(f"/proc/{each}/fd")) for each in processes),
                memfd_mappings(running.process.pid),
                status["connections"],
                {key: export[key] for key in held},
            )


def assert_settles(running: RunningDaemon, before: Standing) -> None:
    """Check that what the daemon holds becomes what it was; it may need to notice who has gone."""
    deadline = time.monotonic() + _SETTLED
    while (now := Standing.of(running)) != before and time.monotonic() < deadline:
        pass
    assert now == before, f"{before} became {now}"
