"""The program ``vuserctl``, also as ``python -m vuserd.ctl``, in a process of its own."""

import gc
import sys
from typing import Final

#: So many objects that are new make the collector of cycles look at them. Starting makes fewer,
#: which are modules mostly, and stay.
_NEW_OBJECTS: Final = 50_000


def main() -> int:
    """Run the command line; return the exit status."""
    gc.set_threshold(_NEW_OBJECTS)
    from vuserd.ctl.main import main as run

    try:
        return run()
    finally:
        gc.freeze()  # what is left ends with the process, and need not be looked through for that


if __name__ == "__main__":
    sys.exit(main())
