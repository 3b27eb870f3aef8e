"""Hand a backend's nodes and open handles over to its successor, by DEVICE_STATE."""

import contextlib
import os
from typing import Final

import trio

from protocol import MalformedError
from protocol.vhost_user import (
    Request,
    TransferDirection,
    TransferPhase,
    decode_device_state_reply,
    decode_u64,
    encode_device_state,
)
from vuserd.device.connection import VhostUserConnection
from vuserd.errors import BackendBroken, BackendDown, BackendError, BackendRefused, os_reason

_PATH: Final = "/proc/self/fd/{}"
#: Seconds for a backend whose state nobody takes any more to get rid of the rest of it.
_REST: Final = 0.5


async def move_state(giver: VhostUserConnection, taker: VhostUserConnection) -> None:
    """Make ``giver``, whose rings are stopped, save its state, and ``taker`` load it.

    The state goes through a pipe from the one to the other, not through this process. Where the
    taker leaves it there, this process takes it: the giver is waiting for that, and has to go on.

    Raises:
        BackendError: one of the two fails, or takes too long.

    """
    with contextlib.ExitStack() as descriptors, contextlib.ExitStack() as ends:
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            ends.callback(os.close, reading)
            ends.callback(os.close, writing)
            # None of its ends: the giver is to see it if the taker closes the last one to read.
            pipe = os.open(_PATH.format(reading), os.O_PATH | os.O_CLOEXEC)
            descriptors.callback(os.close, pipe)
        except OSError as error:
            raise BackendDown(f"no pipe for the backend's state: {os_reason(error)}") from error
        try:
            await _begin(giver, TransferDirection.SAVE, writing)
            await _begin(taker, TransferDirection.LOAD, reading)
            ends.close()  # so that the taker sees an end of file when the giver closes its end
            await _finish(giver, "save its state")
            await _finish(taker, "load the other one's state")
        except (BackendError, MalformedError) as error:
            ends.close()
            await _take_rest(pipe)
            if isinstance(error, MalformedError):
                raise BackendBroken(f"the backend broke the protocol: {error}") from error
            raise


async def _finish(connection: VhostUserConnection, what: str) -> None:
    status = decode_u64(await connection.ask(Request.CHECK_DEVICE_STATE))
    if status != 0:
        raise BackendRefused(f"the backend could not {what} (status {status})")


async def _take_rest(pipe: int) -> None:
    """Take what is still written to a pipe, by a file description that no backend shares."""
    with contextlib.suppress(OSError), trio.move_on_after(_REST):
        end = os.open(_PATH.format(pipe), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        async with trio.lowlevel.FdStream(end) as stream:
            async for _ in stream:
                pass


async def _begin(
    connection: VhostUserConnection, direction: TransferDirection, descriptor: int
) -> None:
    payload = encode_device_state(direction, TransferPhase.STOPPED)
    answer = await connection.ask(Request.SET_DEVICE_STATE_FD, payload, [descriptor])
    accepted, own_descriptor = decode_device_state_reply(answer)
    if not accepted:
        raise BackendRefused(f"the backend refused to {direction.name.lower()} its state")
    if own_descriptor:
        raise BackendBroken("the backend wants its state to go through a descriptor of its own")
