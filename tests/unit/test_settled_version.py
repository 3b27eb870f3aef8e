"""A file is opened once its timestamps are old enough that any later change would move them."""

import time

import pytest

from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, FuseRequest
from vuserd.delivery.inline import read_inline
from vuserd.device.session import Session
from vuserd.fs import version
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.version import TICK

#: Bytes of struct fuse_attr (linux/fuse.h), where ctime and ctimensec are in it.
_ATTRIBUTES, _CTIME, _CTIMENSEC = 88, 40, 56


class Touched:
    """A backend whose file changes before each of the first few answers about it.

    Its clock is the daemon's, too: it goes on with each answer, by more than a step.
    """

    def __init__(self, backend: FakeBackend, changes: int) -> None:
        self._backend = backend
        self._changes = changes
        self._ctime = 0
        self._now = time.time_ns()

    def time_ns(self) -> int:
        return self._now

    def answer(self, request: FuseRequest) -> Answer | None:
        answer = self._backend.serve_files(request)
        if request.opcode not in (Opcode.LOOKUP, Opcode.GETATTR) or answer is None:
            return answer
        self._now += int(2 * TICK * 1_000_000_000)
        if self._changes:
            self._changes -= 1
            self._ctime = self._now
        seconds, nanoseconds = divmod(self._ctime, 1_000_000_000)
        at = len(answer.body) - _ATTRIBUTES
        body = bytearray(answer.body)
        body[at + _CTIME : at + _CTIME + 8] = seconds.to_bytes(8, "little")
        body[at + _CTIMENSEC : at + _CTIMENSEC + 4] = nanoseconds.to_bytes(4, "little")
        return Answer(bytes(body))


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"file": b"content"})


@pytest.mark.parametrize("changes", [0, 1, 2])
async def test_one_that_changed_again_is_looked_at_again(
    backend: FakeBackend, session: Session, changes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a write is at work between two looks: its stamp covers what it will write yet."""
    touched = Touched(backend, changes)
    backend.answer = touched.answer
    monkeypatch.setattr(version, "time", touched)
    content = await read_inline(FileSystem(session, idle_nodes=10), b"file", 0, 100)
    assert b"".join(content.views()) == b"content"
    content.give_back()
    kinds = [request.opcode for request in backend.requests if request.opcode is not Opcode.INIT]
    looks = [Opcode.LOOKUP, *[Opcode.GETATTR] * changes]
    assert kinds[: len(looks) + 1] == [*looks, Opcode.OPEN]
