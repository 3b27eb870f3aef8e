"""Every exception that crosses a boundary of vuserd, and the RPC code that each becomes.

::

    VuserdError
    |-- ConfigurationError      the operator's fault: what is configured cannot be set up
    |   |-- ConfigurationErrors     all that is wrong in configuration files
    |   |-- UnsafePath              another user could lead a path elsewhere
    |   `-- BackendNotFound         no virtiofsd on this machine
    |-- BackendError            the backend's fault                           BACKEND_DOWN
    |   |-- BackendDown             it did not start, ended, or went away     BACKEND_DOWN
    |   |-- BackendBroken           it broke the protocol                     BACKEND_DOWN
    |   |   `-- BackendRefused          it refused a request it must take     BACKEND_DOWN
    |   `-- BackendTimeout          it did not answer in time                 TIMEOUT
    |-- FileError               what the file system says                     an errno name
    |   `-- HeldBack                it has hung the backend before           ETIMEDOUT
    |-- CallError               the caller's fault, or the daemon's answer    one of ErrorCode
    `-- ClientError             what a client library raises: see vuserd.client.errors

Local misuse of an interface (a programming error) is a ``ValueError`` or ``RuntimeError`` as in the
standard library, and reaches a client as ``INTERNAL``.
"""

import errno
import os
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple, Self


class ErrorCode(StrEnum):
    """The names, beside errno names, that an RPC error's ``code`` may have."""

    BAD_REQUEST = (
        "BAD_REQUEST"  #: the frame, the parameters or their types are not what the method takes
    )
    UNKNOWN_METHOD = "UNKNOWN_METHOD"  #: there is no method of this name
    UNKNOWN_EXPORT = "UNKNOWN_EXPORT"  #: there is no export of this name for this client
    DENIED = "DENIED"  #: the client may not do this
    CHANGED = (
        "CHANGED"  #: the file changed while it was delivered, and again when that was repeated
    )
    TIMEOUT = "TIMEOUT"  #: the backend did not answer within the deadline
    BACKEND_DOWN = "BACKEND_DOWN"  #: the export has no working backend
    TOO_LARGE = "TOO_LARGE"  #: a frame or an amount asked for is over its limit
    BUSY = "BUSY"  #: a resource is used up for now
    SHUTTING_DOWN = "SHUTTING_DOWN"  #: the daemon is about to end
    INTERNAL = "INTERNAL"  #: a fault of the daemon itself; its log says more


#: Characters of a message about a call.
_LONGEST = 500


class VuserdError(Exception):
    """The base of all errors; ``code`` is the RPC's name of it, ``str()`` the text for people."""

    code: str = ErrorCode.INTERNAL

    def to_wire(self) -> dict[str, Any]:
        """Return the RPC's error map: ``code``, ``message`` and fields of the error's own."""
        return {"code": str(self.code), "message": str(self)}

    def to_pair(self) -> list[Any]:
        """Return ``[0, "CODE: message"]``, the form of Neovim's own errors (0: an exception)."""
        return [0, f"{self.code}: {self}"]

    def again(self) -> Self:
        """Return a copy to raise, or to keep: it knows nothing of where this one was raised.

        An instance that is raised again keeps growing its traceback, and one that is kept keeps
        what the frames of its traceback have: buffers, and with them the memory of a lost session.
        """
        copy = type(self).__new__(type(self), *self.args)
        vars(copy).update(vars(self))
        return copy


class ConfigurationError(VuserdError):
    """What the operator configured cannot be set up; the message says what would be right."""

    code = ErrorCode.BAD_REQUEST


class Problem(NamedTuple):
    """One mistake in a configuration file; ``str()`` is a line about it."""

    file: str
    line: int | None
    #: Empty where it is about the file itself.
    key: str
    wrong: str
    #: What to do about it, for people.
    right: str

    def __str__(self) -> str:
        """Return ``FILE:LINE: KEY: what is wrong; what would be right``."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        words = "; ".join(filter(None, (self.wrong, self.right)))
        return ": ".join(filter(None, (place, self.key, words)))


class ConfigurationErrors(ConfigurationError):  # noqa: N818 - there are several
    """All that is wrong in configuration files; ``str()`` has a line for each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class UnsafePath(ConfigurationError):  # noqa: N818
    """Another user could lead a path elsewhere, or has written what it leads to.

    ``wrong`` names the user and the place, ``right`` says what to do about it.
    """

    def __init__(self, path: str, wrong: str, right: str) -> None:
        super().__init__(printable(f"{path}: {wrong}; {right}"))
        self.wrong, self.right = printable(wrong), printable(right)


class BackendNotFound(ConfigurationError):  # noqa: N818 - reads as the sentence it is
    """No virtiofsd was found; the message names the package to install."""


class LossCause(StrEnum):
    """Why a backend was lost: one member for each thing that can be done about it."""

    KILLED = "killed"  #: its process was sent a signal, by an administrator or the OOM killer
    CRASHED = "crashed"  #: its process caused a signal itself: SIGSEGV, SIGABRT, SIGSYS
    EXITED = "exited"  #: its process ended with an exit status
    CLOSED = "closed"  #: it closed its socket; of an adopted backend no more is known
    PROTOCOL = "protocol"  #: it broke the protocol
    SILENT = "silent"  #: it stopped answering
    NOT_STARTED = "not_started"  #: it never began to serve


class BackendError(VuserdError):
    """The backend's fault: the base of the errors of a lost, broken or silent backend.

    Args:
        message: for people.
        cause: why the backend is lost, if this ends its session and the class does not say so.
        check: the :class:`protocol.Check` that its bytes failed, if it broke the protocol.

    """

    code = ErrorCode.BACKEND_DOWN
    cause: LossCause = LossCause.CLOSED
    check = ""

    def __init__(self, message: str, cause: LossCause | None = None, check: str = "") -> None:
        super().__init__(message)
        self.cause = cause or self.cause
        self.check = check or self.check


class BackendDown(BackendError):  # noqa: N818
    """The backend did not start, has ended, or closed its socket."""


class BackendBroken(BackendError):  # noqa: N818
    """The backend broke the protocol; the session with it is over."""

    cause = LossCause.PROTOCOL
    check = "vhost_user"  #: unless the constructor is given another


class BackendRefused(BackendBroken):
    """The backend refused a request that it has to take; earlier requests stay in effect."""


class BackendTimeout(BackendError):  # noqa: N818
    """The backend did not answer within the deadline."""

    code = ErrorCode.TIMEOUT
    cause = LossCause.SILENT


class FileError(VuserdError):
    """An errno that the file system gave, for the path that was asked for.

    ``number`` is the errno, ``code`` its name (``ENOENT``).
    """

    def __init__(self, number: int, detail: str | None = None) -> None:
        self.number = number
        self.code = errno.errorcode.get(number, f"ERRNO_{number}")
        super().__init__(detail or in_a_sentence(os.strerror(number)))

    @property
    def is_exhaustion(self) -> bool:
        """Whether the backend has run out of descriptors: each known node takes one."""
        return self.number in (errno.EMFILE, errno.ENFILE)

    def to_wire(self) -> dict[str, Any]:
        """Add ``errno``: its number on this machine."""
        return super().to_wire() | {"errno": self.number}


class HeldBack(FileError):  # noqa: N818
    """A request has hung the backend, and is not sent again for ``retry_after`` seconds.

    This is an error of one file, not of the backend: other files are served, and listings go on
    without this one.
    """

    def __init__(self, request: str, retry_after: float) -> None:
        self.request = request
        self.retry_after = retry_after
        super().__init__(
            errno.ETIMEDOUT,
            f"{request} of it hung the backend, and is tried again in {retry_after:.1f} s: is there"
            " a lease on the file, or does the server of its file system not answer?",
        )

    def to_wire(self) -> dict[str, Any]:
        """Add ``retry_after``, in seconds."""
        return super().to_wire() | {"retry_after": self.retry_after}


class CallError(VuserdError):
    """A call that cannot be answered, with a code, a message and fields of its own."""

    def __init__(self, code: ErrorCode, message: str, **fields: Any) -> None:
        self.code = code
        self.fields = fields
        # The message may quote the client's text, which may be long and grows when it is escaped.
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}...")

    def to_wire(self) -> dict[str, Any]:
        """Add the error's own fields."""
        return super().to_wire() | self.fields


def os_reason(error: OSError) -> str:
    """Return the system's words for an error, without Python's decoration of them."""
    return in_a_sentence(os.strerror(error.errno) if error.errno else str(error))


def in_a_sentence(text: str) -> str:
    """Return a message without its capital, for use within a sentence.

    An acronym or a name with more than one capital (``AF_UNIX``, ``SELinux``) keeps it.
    """
    rest_of_word = text.partition(" ")[0][1:]
    if rest_of_word != rest_of_word.lower():
        return text
    return text[:1].lower() + text[1:]


def printable(text: str) -> str:
    """Escape what ends a line, moves a terminal's cursor or is no text, as Python spells it.

    Names of files and words of backends may be anything. Text that is printable stays as it is, so
    escaping twice changes nothing.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
