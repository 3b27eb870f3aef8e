"""Lines of the daemon's log, wherever it goes: what they tell of adds none, and no escapes."""

import logging

from vuserd.errors import printable


class PrintableFormatter(logging.Formatter):
    """A formatter whose records are printable, whatever they tell of.

    A record has the lines that its message, a traceback or several problems have: names have none.
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
