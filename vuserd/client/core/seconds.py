"""The time that a call has for each answer of the daemon."""

import math


def limit_of(timeout: float | None, default: float | None) -> float | None:
    """Return the seconds for each answer, None for any number: the call's, else the client's.

    Raises ValueError for a number below 0, or none.
    """
    seconds = default if timeout is None else timeout
    if seconds is None or seconds == math.inf:
        return None
    if not seconds >= 0:
        raise ValueError(f"a timeout of {seconds!r} seconds")
    return seconds
