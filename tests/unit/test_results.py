"""The results of requests: what keeps an error keeps the memory of the session that it is about."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from protocol import fuse
from tests.fake.backend import FakeBackend
from vuserd.device.request import Ask
from vuserd.device.results import Failed, Result, body_of
from vuserd.errors import BackendDown, FileError

LOST = "the backend has gone"


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def kept_of(results: list[Result]) -> "list[weakref.ref[BackendDown]]":
    """Raise the errors of results, as callers do; return what leads to those that are left."""
    left = []
    for result in results:
        try:
            body_of(result)
        except BackendDown as error:
            left.append(weakref.ref(error))
    return left


def test_an_error_is_raised_and_not_kept() -> None:
    results: list[Result] = [Failed(BackendDown(LOST))]
    [left] = kept_of(results)
    assert left() is None


def test_it_is_raised_once() -> None:
    failed = Failed(FileError(2))
    with pytest.raises(FileError):
        failed.unwrap()
    with pytest.raises(LookupError):
        failed.unwrap()


async def test_what_is_not_sent_keeps_nothing() -> None:
    async with FakeBackend().session() as session:
        session.lane.fail(BackendDown(LOST))
        asked = [Ask(fuse.getattr(fuse.ROOT_ID)), Ask(fuse.getattr(fuse.ROOT_ID))]
        left = kept_of(await session.lane.ask_all(asked))
    assert [one() for one in left] == [None, None]
