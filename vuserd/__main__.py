"""The program ``vuserd``, also as ``python -m vuserd``: a process that is the daemon's alone."""

import sys

from vuserd.packages import forget_others


def main() -> int:
    """Run the command line with the daemon's own packages; return the exit status."""
    forget_others()
    from vuserd.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
