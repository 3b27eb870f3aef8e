"""Format the daemon's log so that names in it add no lines and no terminal escapes."""

import logging

from vuserd.errors import printable


class PrintableFormatter(logging.Formatter):
    """A formatter whose records are printable, whatever names are in them.

    A record may have several lines, of its message or a traceback, but none that a name adds.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        args = record.args
        if isinstance(args, tuple):
            record.args = tuple(printable(arg) if isinstance(arg, str) else arg for arg in args)
        try:
            return "\n".join(map(printable, super().format(record).split("\n")))
        finally:
            record.args = args
