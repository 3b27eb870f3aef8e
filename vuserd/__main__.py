"""The program ``vuserd``, also as ``python -m vuserd``, in a process of the daemon's own."""

import sys

from vuserd.packages import forget_others
from vuserd.trust.undumpable import become_undumpable


def main() -> int:
    """Run the command line with the daemon's own packages; return the exit status."""
    become_undumpable()  # before there is anything to hide
    forget_others()
    from vuserd.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
