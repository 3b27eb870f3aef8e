"""What became of a FUSE request: what its reply brought, or why there is none."""

from typing import Final, NoReturn, TypeAlias


class Failed:
    """Why there is no successful reply.

    The error is raised once, and not kept then: its traceback leads to frames that have this
    object, and so it would keep itself, and with it the memory of a session that is lost.
    """

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def unwrap(self) -> NoReturn:
        """Raise it."""
        error, self.error = self.error, _RAISED
        try:
            raise error
        finally:
            del error


#: In place of an error that was raised.
_RAISED: Final = LookupError("this was raised before")

#: What a successful reply brought, its body, or only its length if that went into a target; or why
#: there is none.
Result: TypeAlias = bytes | int | Failed
#: In place of the result of a request that has not ended.
MISSING: Final[Result] = Failed(LookupError("no result yet"))


def body_of(result: Result) -> bytes:
    """Return the body of a successful reply; raise its error."""
    if isinstance(result, Failed):
        result.unwrap()
    assert isinstance(result, bytes)
    return result


def length_of(result: Result) -> int:
    """Return the length of a reply that went into its target; raise its error."""
    if isinstance(result, Failed):
        result.unwrap()
    assert isinstance(result, int)
    return result
