"""Wire formats, bytes in and values out: no socket, no file, no waiting.

Encoders raise ``ValueError`` or ``struct.error`` for values that do not fit: that is the caller's
mistake. A decoder of bytes from outside raises :class:`MalformedError` and nothing else.
"""


class MalformedError(Exception):
    """Bytes from the other side that the specification does not allow; the message says which."""
