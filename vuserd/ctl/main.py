"""``vuserctl``: the daemon's methods as commands.

Exit codes: 0 for success, 1 for a call that failed, 2 for wrong usage (and for trouble of ``diff``,
as with diff's own, where 1 is that something differs).  When a signal ends it (also
SIGPIPE, when the reader of ``cat``'s output is gone), it removes its temporary file and dies of
that signal, as shells expect.
"""

import signal
import sys

from vuserd.ctl.output import complain, local_fault, take_streams
from vuserd.ctl.parser import parse
from vuserd.ctl.parser import parser as parser
from vuserd.ctl.signals import Signalled, catch_signals, die_of, release_signals
from vuserd.service.standard_streams import finish_output, prepare


def main() -> int:
    """Run the command line; the entry point of the script."""
    prepare()
    try:
        caught = catch_signals()
        try:
            code = run(sys.argv[1:])
        except SystemExit as end:  # raised by argparse, which has printed help or an error
            code = end.code if isinstance(end.code, int) else 0
        if (error := finish_output()) is not None and not code:
            code = complain(local_fault(error))
        release_signals(caught)
    except KeyboardInterrupt:
        die_of(signal.SIGINT)
    except Signalled as signalled:
        die_of(signalled.number)
    except BrokenPipeError:
        die_of(signal.SIGPIPE)
    return code


def run(arguments: list[str]) -> int:
    """Run one command; return the exit code.

    KeyboardInterrupt and BrokenPipeError (of standard output) are left to the caller.
    """
    take_streams()
    options = None if arguments[:1] == ["__complete"] else parse(arguments)
    # Not before: --help, --version and wrong usage end there, and need no client.
    from vuserd.ctl import commands

    return commands.execute(options, arguments)


if __name__ == "__main__":
    sys.exit(main())
