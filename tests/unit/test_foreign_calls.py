"""Calls in threads, on what clients sent: each result has one taker, whenever the caller leaves."""

import threading

from vuserd.users.foreign_descriptors import ForeignDescriptors, _Call


class Handover:
    """A lock after whose first release the caller gives up."""

    def __init__(self, call: "_Call[str]") -> None:
        self._call = call
        self._lock = threading.Lock()
        self._is_first = True

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if self._is_first:
            self._is_first = False
            self._call.abandon()


async def test_a_result_is_given_up_once_where_the_caller_leaves_as_it_comes() -> None:
    given_up: list[str] = []
    call = _Call(lambda: "region", given_up.append)
    call._lock = Handover(call)  # type: ignore[assignment]
    call()
    assert given_up == ["region"]


async def test_a_result_that_comes_after_the_caller_left_is_given_up() -> None:
    given_up: list[str] = []
    call = _Call(lambda: "region", given_up.append)
    call.abandon()
    call()
    assert given_up == ["region"]


async def test_a_result_that_is_taken_is_not_given_up() -> None:
    given_up: list[str] = []
    taken = await ForeignDescriptors(1).call(lambda: "region", given_up.append, 60)
    assert (taken, given_up) == ("region", [])
