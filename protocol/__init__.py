"""Wire formats, bytes in and values out: no socket, no file, no waiting.

Encoders raise ``ValueError`` or ``struct.error`` for values that do not fit: that is the caller's
mistake. A decoder of bytes from outside raises :class:`MalformedError` and nothing else.
"""

from enum import StrEnum


class Check(StrEnum):
    """What was checked when bytes from the other side turned out wrong."""

    USED_INDEX = "used_index"  #: used.idx, against the chains that are outstanding
    USED_ID = "used_id"  #: the head of a used chain
    USED_LENGTH = "used_length"  #: the bytes that the device says it wrote
    REPLY_UNIQUE = "reply_unique"  #: which request a FUSE reply is to
    REPLY_LENGTH = "reply_length"  #: the length in an out-header
    REPLY_ERROR = "reply_error"  #: the errno in an out-header
    REPLY_BODY = "reply_body"  #: what a FUSE reply brings: a node, a handle, a link's target
    DIRECTORY = "directory"  #: the entries of a directory, and how they follow each other
    VHOST_USER = "vhost_user"  #: what came over the vhost-user socket, and what was agreed there


class MalformedError(Exception):
    """Bytes from the other side that the specification does not allow; the message says which.

    ``check`` is the kind of check that they failed.
    """

    def __init__(self, message: str, check: Check = Check.REPLY_BODY) -> None:
        self.check = check
        super().__init__(message)
