"""Look for a command again and again until standard input ends, and run it now and then.

Run in the machine by any Python: probes.py COMMAND ARGUMENT... Says "under way", and in the end, as
JSON, how often the command was found or missing, and how often it ran or failed.
"""

import json
import os
import subprocess
import sys
import threading
from collections import Counter

#: Looks between two runs, which take a hundred times as long.
LOOKS = 500


def main() -> None:
    """Look, run and count."""
    command = sys.argv[1:]
    counts: Counter[str] = Counter()
    stopping = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    print("under way", flush=True)
    while not stopping.wait(0.001):
        counts["found" if os.access(command[0], os.X_OK) else "missing"] += 1
        if counts.total() % LOOKS == 0:
            ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
            counts["failed" if ended.returncode else "ran"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
