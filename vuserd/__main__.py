"""The program ``vuserd``, also as ``python -m vuserd``, in a process of the daemon's own."""

import gc
import sys

from vuserd.packages import forget_others
from vuserd.trust.undumpable import become_undumpable


def main() -> int:
    """Run the command line with the daemon's own packages; return the exit status."""
    become_undumpable()  # before there is anything to hide
    forget_others()
    gc.disable()  # modules stay, so it finds little among them
    from vuserd.cli import main as run

    gc.enable()
    return run()


if __name__ == "__main__":
    sys.exit(main())
