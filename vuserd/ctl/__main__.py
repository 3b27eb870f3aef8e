"""The program ``vuserctl``, also as ``python -m vuserd.ctl``, in a process of its own."""

import gc
import signal
import sys
from typing import Final

#: How many new objects start the cycle collector. Starting makes fewer, which are modules mostly,
#: and stay.
_NEW_OBJECTS: Final = 50_000


def main() -> int:
    """Run the command line; return the exit status."""
    gc.set_threshold(_NEW_OBJECTS)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while modules are loaded
    from vuserd.ctl.main import main as run

    try:
        return run()
    finally:
        gc.freeze()  # what is left ends with the process: no need to look for cycles in it


if __name__ == "__main__":
    sys.exit(main())
