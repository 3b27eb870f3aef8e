"""Tasks that wait for FUSE requests: for one, for some that are sent at once, or for them all."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import trio

from protocol import MalformedError, fuse
from vuserd.device.gate import Gate
from vuserd.device.lane.direct import Direct
from vuserd.device.lane.hung import Attribution
from vuserd.device.request import Asked, Batch, Target, Undo, brought
from vuserd.device.results import Failed, Result, body_of, length_of
from vuserd.users.asker import ASKER

Reply = TypeVar("Reply")


class _Caller(Batch):
    """Requests that a task waits for."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        super().__init__(ASKER.get())
        self._task: trio.lowlevel.Task | None = None

    def resume(self) -> None:
        """Wake the task."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    async def wait(self) -> None:
        """Wait until all have their results."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        if self.missing:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)


class Lane(Direct):
    """The lane of a session: any number of tasks may wait for requests, and each may give up."""

    @property
    def submitted(self) -> int:
        """Requests that the device was given."""
        return self._unique // 2

    @property
    def owed(self) -> int:
        """Nodes that the device was told to forget, and has not yet."""
        return self._hiprio.owed

    @property
    def answers_in_order(self) -> bool:
        """Whether the backend is known to do one request after the other."""
        return self._backlog.answers_in_order

    @answers_in_order.setter
    def answers_in_order(self, known: bool) -> None:
        self._backlog.answers_in_order = known

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Submit nothing during the block; requests that come meanwhile wait."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self._go_on()

    def obey(self, gate: Gate) -> None:
        """Let ``gate`` decide from now on which requests the backend is given."""
        self.gate = gate
        self._watch.attribution = Attribution(gate, self._timeout)
        self._held_back = gate.held

    def makes_progress(self) -> bool:
        """Return whether this end's tasks run on time, whatever the backend does."""
        return self._watch.makes_progress()

    def take_replies(self) -> None:
        """Take replies that are there; the task that waits for them may be late."""
        try:
            self.requests.reap()
        except MalformedError as error:
            self.broken(error)

    async def idle(self) -> None:
        """Wait until the device holds no chain any more, or is lost."""
        while self._has_chains():
            await self._idle.park()

    async def drained(self) -> None:
        """Wait until all that was sent has ended, or the device is lost."""
        while self.in_flight:
            await self._idle.park()

    def give_up(self, batch: Batch, asked: Sequence[Asked]) -> None:
        """Give up the replies of a batch, whether they have come or not."""
        for ticket in batch.tickets:
            self._backlog.remove(ticket)
        for one in self._slots.of(batch):
            self._leave(one)
        for (_, target, undo), result in zip(asked, batch.results, strict=False):
            if undo is not None and not isinstance(result, Failed):
                self.decoded(undo, brought(target, result))
        self._go_on()

    def decoded(self, decode: Callable[[bytes], Reply], body: bytes) -> Reply:
        """Decode what the backend wrote; what no backend may write ends the session.

        Raises:
            BackendBroken: ``decode`` refused it.

        """
        try:
            return decode(body)
        except MalformedError as error:
            raise self.broken(error) from error

    async def call(
        self, request: fuse.Request, decode: Callable[[bytes], Reply], undo: Undo | None = None
    ) -> Reply:
        """Send a request whose reply has a fixed place; return the reply's body, decoded.

        Raises:
            FileError: the file system's errno.
            BackendTimeout: no reply within the deadline.
            BackendError: the backend is lost.

        """
        [result] = await self.ask_all([(request, None, undo)])
        return self.decoded(decode, body_of(result))

    async def ask_all(self, asked: Sequence[Asked]) -> list[Result]:
        """Send requests all at once; return what became of each, undecoded.

        What may not be sent has an error as its result; and so has the last one of
        :class:`~vuserd.device.request.InOrder`, where the device has not used it last.
        """
        caller = _Caller()
        try:
            self.submit(caller, asked)
            if len(asked) == 1:
                self.requests.offer()
            else:
                self.requests.publish()
            await caller.wait()
        except BaseException:
            self.give_up(caller, asked)
            raise
        return caller.results

    async def call_into(self, request: fuse.Request, target: Target) -> int:
        """Send a request whose reply's body goes into ``target``; return its length in bytes.

        A buffer stays the caller's to give back, at any time.

        Raises:
            As :meth:`call`.

        """
        [result] = await self.ask_all([(request, target, None)])
        return length_of(result)

    async def call_all_into(self, requests: Sequence[tuple[fuse.Request, Target]]) -> list[int]:
        """Send requests whose replies go into targets all at once; return their lengths in bytes.

        Raises:
            As :meth:`call`, for the first that failed; the others have ended then.

        """
        settled = await self.ask_all([(*request, None) for request in requests])
        return [length_of(result) for result in settled]
