"""What all faults have in common: a session to spoil, and nothing that may be left of it."""

import gc
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fake.backend import FakeBackend, File
from tests.faults.harness import CONTENT, SECRET, Front
from tests.running import leftovers
from vuserd.fs.filesystem import FileSystem


@pytest.fixture(autouse=True)
def _nothing_is_kept(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No process, memfd or pipe stays behind, and nothing was logged with a traceback."""
    before = leftovers()
    yield
    _nothing_was_wrong(caplog)
    if _more_than(before):
        gc.collect()  # a fake backend and its own methods keep each other
    assert not _more_than(before)


def _more_than(before: dict[str, set[str]]) -> set[str]:
    return {one for kind, here in leftovers().items() for one in here - before[kind]}


def _nothing_was_wrong(caplog: pytest.LogCaptureFixture) -> None:
    records = caplog.get_records("call")
    for record in records:
        assert record.exc_info is None, record.getMessage()
        assert record.levelno < logging.ERROR or "failed" in record.getMessage()
    records.clear()  # they keep exceptions, and those what was in use


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(
        {
            b"Image": CONTENT,
            b"secret": SECRET,
            b"folder": File(mode=0o040755),
            b"link": File(b"Image", mode=0o120777),
        }
    )


@pytest.fixture
async def front(backend: FakeBackend) -> AsyncIterator[Front]:
    """Yield a session that is up, with its file system."""
    async with backend.session() as session:
        yield Front(backend, session, FileSystem(session, idle_nodes=10))
