"""The contents of an archive's members: those of small files are asked for ahead, many at once."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

from vuserd.client import calls
from vuserd.client.archive.looks import GONE, below
from vuserd.client.archive.members import Member, unfit
from vuserd.client.archive.parts import Parts
from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Finish, Procedure
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import RemoteError
from vuserd.client.files.sinks import StreamSink
from vuserd.client.files.wholefile import Options, take
from vuserd.client.records import Stat

#: Errors of a name that is there, and of another type than before.
_OF_ANOTHER_TYPE: Final = frozenset({"EINVAL", "EISDIR", "ELOOP"})
#: The largest file that is asked for ahead, and what the answers in flight may hold together.
SMALL: Final = 256 << 10
_WINDOW: Final = 48
_WINDOW_BYTES: Final = 4 << 20
#: The most that is kept of a file whose size is untrue, before there is a head for it.
_UNTRUE: Final = 8 << 20


Content: TypeAlias = bytes | bytearray | memoryview
#: A member and its content, which a large file has not.
Found: TypeAlias = tuple[Member, Content | None]


class _Asked(NamedTuple):
    """A member, and its content or the call for that."""

    member: Member
    ticket: Ticket[Any] | None  #: None where the content is there, or is too large to ask for
    content: Content | None


class Contents:
    """What the members of a tree hold, in their order; each file is one version of it."""

    def __init__(
        self,
        talk: Talk,
        export: str,
        path: RemotePath,
        parts: Parts,
        members: Iterable[Member],
    ) -> None:
        self._talk, self._export, self._path, self._parts = talk, export, path, parts
        self._members: Iterator[Member] = iter(members)
        #: The member that comes next, if its part has to come before it.
        self._next: Member | None = None
        self._asked: deque[_Asked] = deque()
        self._bytes = 0

    @property
    def is_at_part(self) -> bool:
        """Whether all that was returned has to be handed on: another part takes its place."""
        return self._next is not None and not self._asked

    def next(self) -> Procedure[list[Found]]:
        """Return members that come next, as they are, and their contents.

        A large file comes without content. None come after the last one, and where there are none
        until what was returned is handed on.

        Raises:
            Gone: there is no such file any more.

        """
        yield from self._ask_ahead()
        found: list[Found] = []
        while self._asked and self._asked[0].ticket is None:
            member, _, content = self._asked.popleft()
            found.append((member, content))
        if not found and self._asked:
            found.append((yield from self._finished(*self._asked[0])))
        return found

    def _finished(
        self, member: Member, ticket: Ticket[Any] | None, content: Content | None
    ) -> Procedure[Found]:
        """Return a member whose content was asked for."""
        assert ticket is not None
        assert content is not None
        try:
            result = yield Finish(ticket)
        except RemoteError as error:
            if error.code in GONE or error.code in _OF_ANOTHER_TYPE:
                raise Gone(member) from None
            raise
        finally:
            self._asked.popleft()
            self._bytes -= len(content)
        if member.type == "symlink":
            return member._replace(target=os.fsencode(result)), b""
        if result != member.size:  # it changed, or its size is untrue
            return (yield from self._whole(member))
        return member, memoryview(content)[:result]

    def settle(self) -> Procedure[None]:
        """Receive what is in flight: the daemon drops a client that takes nothing for long."""
        for _, ticket, _ in self._asked:
            if ticket is not None:
                with suppress(RemoteError):  # raised when its turn comes
                    yield Finish(ticket)
        yield from self._parts.settle()

    def abandon(self) -> None:
        """Forget what was asked for."""
        for _, ticket, _ in self._asked:
            if ticket is not None:
                self._talk.abandon(ticket)

    def _ask_ahead(self) -> Procedure[None]:
        if self._next is not None:
            if self._asked:
                return  # these first
            yield from self._parts.next()
            member, self._next = self._next, None
            self._begin(member)
        while len(self._asked) < _WINDOW and self._bytes < _WINDOW_BYTES:
            following = next(self._members, None)
            if following is None:
                return
            if self._parts.begins_with(following):
                self._next = following
                return
            self._begin(following)

    def _begin(self, member: Member) -> None:
        asked = self._ask(member)
        self._asked.append(asked)
        if asked.ticket is not None and asked.content is not None:
            self._bytes += len(asked.content)

    def _ask(self, member: Member) -> _Asked:
        content: Content | None = self._parts.take(member)
        if member.type == "symlink":
            if content is not None:
                return _Asked(member._replace(target=bytes(content)), None, b"")
            where = below(self._path, member.path)
            ticket: Ticket[Any] = self._talk.begin(calls.readlink(self._export, where))
            return _Asked(member, ticket, b"")
        if not member.has_content:
            return _Asked(member, None, b"")
        if content is not None:
            return _Asked(member, None, content)
        if member.size > SMALL:
            return _Asked(member, None, None)
        where = below(self._path, member.path)
        buffer = bytearray(member.size + 1)  # one more shows whether there is more
        ticket = self._talk.begin(calls.read_into(self._export, where, 0, buffer))
        return _Asked(member, ticket, buffer)

    def _whole(self, member: Member) -> Procedure[tuple[Member, memoryview]]:
        """Return a file that is not as long as its size says, and that with its true size."""
        yield from self.settle()
        kept = _Kept(member)
        where = below(self._path, member.path)
        yield from take(self._talk, self._export, where, kept, Options(None, grows=False))
        return member._replace(size=len(kept.content)), memoryview(kept.content)


class Gone(Exception):  # noqa: N818 - never leaves the clients
    """A file of the tree is gone."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.path)
        self.member = member


class _Kept(StreamSink):
    """A file in memory, for one whose size is untrue."""

    is_file = True

    def __init__(self, member: Member) -> None:
        self.content = bytearray()
        self._path = member.path

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:  # noqa: ARG002
        """Begin with nothing."""
        self.content.clear()

    def write(self, payload: memoryview, offset: int) -> None:
        """Put bytes at their offset."""
        self.end(max(len(self.content), offset + len(payload)))
        self.content[offset : offset + len(payload)] = payload

    def end(self, size: int) -> None:
        """Cut or extend it to ``size`` bytes, within reason."""
        if size > _UNTRUE:
            raise unfit("EFBIG", self._path, "it is much longer than its size says")
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))


class Opened(StreamSink):
    """A large file on its way, with the size that it was opened with."""

    size = 0

    def __init__(self) -> None:
        super().__init__(lambda _payload: None)  # the bytes are taken out of the steps

    def begin(self, attributes: Stat, *, has_holes_told: bool) -> None:  # noqa: ARG002
        """Learn the size."""
        self.size = attributes.size
