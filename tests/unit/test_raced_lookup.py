"""A name that moves away while the backend looks it up, which openat2(2) reports specially.

The Rust backend looks names up by openat2 with RESOLVE_IN_ROOT. Where a rename comes in between,
that gives EXDEV ("an escape was detected") or EAGAIN ("may be tried again"), and neither is true of
the path: asked once more, the kernel says what is there.
"""

import errno
from collections import Counter

import pytest

from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from vuserd.errors import FileError
from vuserd.fs.filesystem import FileSystem


async def stat_after(backend: FakeBackend, refusals: int, number: int) -> int:
    """Return the size of a file whose LOOKUP fails so many times first."""
    asked: Counter[Opcode] = Counter()

    def answer(request: FuseRequest) -> Answer | None:
        asked[request.opcode] += 1
        if request.opcode is Opcode.LOOKUP and asked[Opcode.LOOKUP] <= refusals:
            return Answer(error=number)
        return backend.serve_files(request)

    backend.answer = answer
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=10)
        return (await files.stat(b"file", follow=True)).size


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EAGAIN])
async def test_it_is_looked_up_once_more(number: int) -> None:
    assert await stat_after(FakeBackend({b"file": b"12345"}), 1, number) == 5


async def test_what_goes_on_is_told() -> None:
    """A backend that says nothing else is not asked for ever."""
    with pytest.raises(FileError) as refused:
        await stat_after(FakeBackend({b"file": b"12345"}), 1_000_000, errno.EXDEV)
    assert refused.value.code == "EXDEV"
