"""The archive of a tree, from the first look at it to the last, as a procedure of all clients."""

import os
from collections.abc import Callable
from functools import partial
from typing import Final

from vuserd.client import calls
from vuserd.client.archive.contents import Contents, Gone, Opened
from vuserd.client.archive.looks import Exclusion, below, first_look, second_look
from vuserd.client.archive.members import (
    Archived,
    ArchiveOptions,
    Format,
    Look,
    Member,
    Plan,
    unfit,
)
from vuserd.client.archive.newc import Newc
from vuserd.client.archive.output import Output, sink_of
from vuserd.client.archive.parts import Parts, Subtree
from vuserd.client.calls import RemotePath
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Procedure, Running, Write
from vuserd.client.errors import RemoteError
from vuserd.client.files.wholefile import Options, take
from vuserd.errors import ErrorCode

#: Paths that an error's message names; its fields have all of them.
_NAMED: Final = 5
#: The daemon's API level from which on it leaves looking at files again to its client.
_UNCHECKED_LEVEL: Final = 4


def archive(
    talk: Talk,
    export: str,
    path: RemotePath,
    to: int | Callable[[memoryview], object],
    options: ArchiveOptions,
    subtree: Subtree,
) -> Procedure[Archived]:
    """Write an archive of a tree; return what came of it. ``subtree`` asks for parts of it."""
    return (yield from _Archiving(talk, export, path, to, options).run(subtree))


class _Archiving:
    def __init__(
        self,
        talk: Talk,
        export: str,
        path: RemotePath,
        to: int | Callable[[memoryview], object],
        options: ArchiveOptions,
    ) -> None:
        self._talk, self._export, self._path = talk, export, path
        self._form = _format(options.get("format", "newc"))
        self._look = Look(options.get("owner"), options.get("mtime"), options.get("special", True))
        self._allows_changes = options.get("allow_changes", False)
        self._progress = options.get("progress")
        self._sink = sink_of(to)
        self._exclusion = Exclusion(options.get("exclude", ()))
        self._there = self._total = self._count = 0
        self._gone: set[bytes] = set()

    def run(self, subtree: Subtree) -> Procedure[Archived]:
        root = yield from self._talk.ask(calls.stat(self._export, self._path))
        look = self._talk, self._export, self._path, self._exclusion
        if root.type != "dir":
            raise unfit("ENOTDIR", b".", "it is no directory")
        tree = yield from first_look(*look)
        plan = Plan(root, tree, self._look, self._form)
        level = yield from self._talk.level(self._export, self._path)
        if not self._allows_changes and level >= _UNCHECKED_LEVEL:
            # The second look shows what changed: the daemon need not look at each file for that.
            subtree = partial(subtree, look_again=False)
        parts = Parts(subtree, self._path, tree, plan.paths)
        try:
            parts.ask_ahead()
            for member in plan.members():  # what does not fit is told before the first byte
                self._form.require(member)
                self._total += member.size
            size = yield from self._write(plan, parts)
        finally:
            parts.abandon()
        changed = yield from second_look(*look, tree)
        again = yield from self._talk.ask(calls.stat(self._export, self._path))
        if not again.same_file(root):
            changed.insert(0, b".")
        changed = sorted({*changed, *self._gone})
        if changed and not self._allows_changes:
            raise self._changes(changed)
        return Archived(
            self._count,
            size,
            [(os.fsdecode(each), kind) for each, kind in plan.kept],
            [(os.fsdecode(each), kind) for each, kind in plan.left_out],
            [*map(os.fsdecode, changed)],
        )

    def _write(self, plan: Plan, parts: Parts) -> Procedure[int]:
        """Write all members and the end; return how many bytes there are."""
        contents = Contents(self._talk, self._export, self._path, parts, plan.members())
        out = Output(self._sink, contents.settle)
        try:
            while True:
                if contents.is_at_part:
                    yield from out.flush()
                try:
                    found = yield from contents.next()
                except Gone as gone:
                    self._leave_out(gone.member)
                    continue
                for member, content in found:
                    self._count += 1
                    if content is None:
                        yield from contents.settle()
                        yield from self._write_large(member, out)
                        out.pad(self._form.block)
                    else:
                        out.put_member(self._form.head(member), content, self._form.block)
                        self._tell(len(content))
                    if out.is_full:
                        yield from out.flush()
                if not (found or contents.is_at_part):
                    break
            out.put(self._form.end(out.size))
            yield from out.flush()
        finally:
            contents.abandon()
        return out.size

    def _write_large(self, member: Member, out: Output) -> Procedure[None]:
        """Write a file as its bytes come; its size is that which it is opened with."""
        opened, written = Opened(), 0
        where = below(self._path, member.path)
        running = Running(take(self._talk, self._export, where, opened, Options(None, grows=False)))
        try:
            while (step := running.next_step()) is not None:
                try:
                    if not isinstance(step, Write):
                        running.came((yield step))
                        continue
                    if not written:
                        member = member._replace(size=opened.size)
                        self._form.require(member)
                        out.put(self._form.head(member))
                    written += len(step.payload)
                    if written > opened.size:
                        raise RemoteError(ErrorCode.CHANGED, "it is longer than its size")
                    yield from out.pass_on(step.payload)
                    self._tell(len(step.payload))
                except BaseException as error:
                    running.failed(error)
        except RemoteError as error:
            if error.code == ErrorCode.CHANGED:
                raise self._changes([member.path]) from None
            raise
        if not written:
            out.put(self._form.head(member._replace(size=0)))
        elif written < opened.size:
            raise self._changes([member.path])

    def _leave_out(self, member: Member) -> None:
        """Leave out a file that is gone; its other names may count on it."""
        if member.names > 1:
            raise self._changes([member.path])
        self._gone.add(member.path)

    def _tell(self, count: int) -> None:
        self._there += count
        if self._progress is not None and count:
            self._progress(self._there, max(self._there, self._total))

    def _changes(self, paths: list[bytes]) -> RemoteError:
        names = [*map(os.fsdecode, paths)]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        message = f"the tree changed while it was read: {', '.join(names[:_NAMED])}{more}"
        where = f"{self._export}:{os.fsdecode(self._path)}"
        return RemoteError(ErrorCode.CHANGED, message, {"paths": names}, where)


def _format(name: str) -> Format:
    if name == "newc":
        return Newc()
    if name == "tar":
        from vuserd.client.archive.tar import Tar

        return Tar()
    raise ValueError(f"{name!r} is no format of archives: newc or tar")
