"""Measure how long a client waits when a backend is killed: replacements.py EXPORT ROUNDS [UNIT].

Run in the machine, by the Python that vuserd is installed with. UNIT is the backend's own, where
the daemon did not start it. Prints the median and the longest wait in milliseconds.
"""

import os
import signal
import statistics
import subprocess
import sys
import time

from vuserd.client import Client

#: Between two, for a backend to be up and idle, and for the limits of systemd on starts.
PAUSE = 0.4


def backend(client: Client, export: str, unit: str | None) -> int:
    """Return the process to kill."""
    if unit is not None:
        command = ["systemctl", "show", "-P", "MainPID", unit]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    [pid] = [
        info.backend.pid
        for info in client.exports()
        if info.name == export and info.backend is not None
    ]
    assert pid is not None
    return pid


def main() -> None:
    """Kill, ask, and take the time."""
    export, rounds, *unit = sys.argv[1:]
    waits = []
    with Client.connect() as client:
        for _ in range(int(rounds)):
            client.stat(export, "/")
            time.sleep(PAUSE)
            process = backend(client, export, unit[0] if unit else None)
            began = time.monotonic()
            os.kill(process, signal.SIGKILL)
            client.stat(export, "/")
            waits.append((time.monotonic() - began) * 1000)
    print(f"{statistics.median(waits):.1f} {max(waits):.1f}")


if __name__ == "__main__":
    main()
