"""What a client raises: the daemon's own answer, or that there is no talking to it.

::

    VuserdError
    `-- ClientError
        |-- RemoteError         the daemon answered with an error
        |   `-- RemoteOSError       ... of an errno: an OSError, too (FileNotFoundError, ...)
        |-- CannotConnect       no daemon was reached
        |-- TimedOut            no answer came in time: a TimeoutError, too
        |-- ConnectionLost      the connection ended before the answer
        |   `-- NotTaken            ... and before the request was taken: the call had no effect
        `-- BadReply            the answer is not what the method returns
"""

import errno
import reprlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Self, cast

from vuserd.errors import ErrorCode, VuserdError, in_a_sentence, printable
from vuserd.wire.address import RIG_SOCKET


class ClientError(VuserdError):
    """The base of all that a client's call raises on account of the daemon.

    Its text is ``EXPORT:PATH: METHOD: WORDS``, of which there is what is known: ``filename`` is the
    file that was asked about, ``asked`` the daemon's method, and ``words`` says what is wrong.
    """

    #: The file that was asked about, as ``EXPORT:PATH``; None where it was about none.
    filename: str | None = None
    #: The daemon's method that was called; None where it was none of them.
    asked: str | None = None

    @property
    def words(self) -> str:
        """What is wrong, without the file and what was asked."""
        return BaseException.__str__(self)  # and not as an OSError shows itself

    def __str__(self) -> str:
        parts = (printable(self.filename or ""), self.asked, self.words)
        return ": ".join(filter(None, parts))


class RemoteError(ClientError):
    """The daemon answered with an error.

    ``code`` is an errno name or an :class:`vuserd.errors.ErrorCode`, ``message`` the text without
    it, ``fields`` whatever else the answer held.

    One whose code is an errno name is the ``OSError`` of that errno as well, so that
    ``except FileNotFoundError`` does what it says: ``errno`` is this machine's number, ``strerror``
    the message, and ``filename`` the file that was asked about, as ``EXPORT:PATH``.
    """

    filename: str | None  # that of an OSError, which sets it with the others

    def __new__(
        cls,
        code: str,
        message: str,
        fields: Mapping[str, Any] | None = None,  # noqa: ARG004 - is for __init__
        filename: str | None = None,
        asked: str | None = None,  # noqa: ARG004 - likewise
    ) -> Self:
        """Make one of the class that the code calls for."""
        number = _number_of(code)
        kind: type[Any] = cls
        if cls is RemoteError and number is not None:
            kind = _os_error_of(number)
        if issubclass(kind, OSError):
            return cast("Self", OSError.__new__(kind, number, message, filename))
        return cast("Self", super().__new__(kind, code, message))

    def __init__(
        self,
        code: str,
        message: str,
        fields: Mapping[str, Any] | None = None,
        filename: str | None = None,
        asked: str | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.fields = dict(fields or {})
        self.filename = filename
        self.asked = asked

    @property
    def words(self) -> str:
        """The message and the code."""
        return f"{self.message} ({self.code})"

    def __repr__(self) -> str:
        return f"RemoteError({self.code!r}, {self.message!r}, {self.fields!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteError, (self.code, self.message, self.fields, self.filename, self.asked)

    @classmethod
    def from_wire(
        cls, error: object, filename: str | None = None, asked: str | None = None
    ) -> "RemoteError":
        """Make it of a response's error, whatever that is."""
        if not isinstance(error, dict):
            return cls(ErrorCode.INTERNAL, _text(error), None, filename, asked)
        fields = {_text(key): value for key, value in error.items()}
        code = _text(fields.pop("code", ErrorCode.INTERNAL))
        return cls(code, _text(fields.pop("message", "no message")), fields, filename, asked)


def _text(value: object) -> str:
    """Return a text from the wire; of anything else, which str() may be too deep for, a sketch."""
    return str(value) if isinstance(value, str) else reprlib.repr(value)


def _number_of(code: str) -> int | None:
    """Return the number that an errno name has here; None for other codes."""
    number = getattr(errno, code, None) if code[:1] == "E" else None
    return number if isinstance(number, int) else None


class RemoteOSError(RemoteError, OSError):
    """The daemon answered with an errno: also the OSError that Python has for that."""


@cache
def _os_error_of(number: int) -> type[RemoteOSError]:
    """Return the class for an errno: for ENOENT one that is a FileNotFoundError, too."""
    kind = type(OSError(number, ""))
    if kind is OSError:
        return RemoteOSError
    return type(f"Remote{kind.__name__}", (RemoteOSError, kind), {"__module__": __name__})


class CannotConnect(ClientError):  # noqa: N818 - reads as the sentence it is
    """No daemon was reached; the message names the sockets that were tried and what to do.

    Of several, that of a rig is only named where somebody listens on it: outside of rigs nobody
    does.
    """

    def __init__(self, attempts: Sequence[tuple[str, OSError]]) -> None:
        self.addresses = tuple(address for address, _ in attempts)
        told = [
            (address, error)
            for address, error in attempts
            if address != RIG_SOCKET or not isinstance(error, ConnectionRefusedError)
        ] or attempts
        tried = "; ".join(f"{address}: {reason_of(error)}" for address, error in told)
        #: Whether a socket is there, and its daemon does not answer.
        self.is_silent = any(isinstance(error, TimeoutError) for _, error in told)
        if any(error.errno == errno.EACCES for _, error in told):
            advice = "The daemon's configuration says whose it is: see 'group' and 'mode'"
        elif self.is_silent:
            advice = "The socket is there, but the daemon hangs or cannot start"
        else:
            advice = (
                "Is it running? 'systemctl start vuserd.socket' or 'vuserd serve' starts it;"
                " --socket or VUSERD_SOCKET names its socket"
            )
        super().__init__(f"cannot connect to the daemon ({tried}). {advice}")


class ConnectionLost(ClientError):  # noqa: N818
    """The connection ended before the answer; whether the call took effect is not known."""


class NotTaken(ConnectionLost):
    """The connection ended before all of the request was taken: the call had no effect."""


class TimedOut(ClientError, TimeoutError):  # noqa: N818
    """No answer came in the time that the call had for each; the client goes on with others.

    Whether the call took effect is not known; its answer, where it still comes, is dropped.
    """

    code = ErrorCode.TIMEOUT

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @classmethod
    def after(cls, seconds: float) -> "TimedOut":
        """Return the error of a daemon that was silent for ``seconds``."""
        return cls(f"the daemon did not answer within {seconds:g} s")


class BadReply(ClientError):  # noqa: N818
    """The daemon's answer is not what the method returns: client and daemon may not match."""


def describe_loss(error: OSError) -> str:
    """Say why a connection is lost, for ConnectionLost."""
    if isinstance(error, ConnectionResetError):
        return "the daemon closed the connection"
    return f"the connection to the daemon: {reason_of(error)}"


def reason_of(error: OSError) -> str:
    """Return the words of an error, as a part of a sentence."""
    return in_a_sentence(error.strerror or str(error))
