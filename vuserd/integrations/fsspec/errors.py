"""A client's errors as those of a file system, which are OSErrors in fsspec."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from vuserd.client import BadReply, CannotConnect, ClientError, RemoteError
from vuserd.errors import ErrorCode

#: The errno that says about the same as a code of the daemon's.
_NUMBERS: Final = {
    ErrorCode.UNKNOWN_EXPORT: errno.ENOENT,
    ErrorCode.DENIED: errno.EACCES,
    ErrorCode.CHANGED: errno.ESTALE,
    ErrorCode.TIMEOUT: errno.ETIMEDOUT,
    ErrorCode.TOO_LARGE: errno.EFBIG,
    ErrorCode.BUSY: errno.EBUSY,
    ErrorCode.BAD_REQUEST: errno.EINVAL,
    ErrorCode.UNKNOWN_METHOD: errno.ENOSYS,
}

#: What listings and searches pass over: there is no such file.
NOT_THERE: Final = (FileNotFoundError, NotADirectoryError)


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Raise an OSError about ``path`` in place of each error of the client's that is none."""
    try:
        yield
    except OSError:
        raise
    except ClientError as error:
        raise OSError(_number(error), str(error), path) from error


def refuse(path: object) -> NoReturn:
    """Raise the error of writing to a read-only file system."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


def _number(error: ClientError) -> int:
    match error:
        case RemoteError(code=code):
            return _NUMBERS.get(code, errno.EIO)  # type: ignore[call-overload,no-any-return]
        case CannotConnect():
            return errno.ECONNREFUSED
        case BadReply():
            return errno.EPROTO
        case _:
            return errno.ECONNRESET
