"""Hand a backend's nodes and open handles over to its successor, by DEVICE_STATE."""

import os

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
from vuserd.errors import BackendBroken, BackendDown, BackendRefused, os_reason


async def move_state(giver: VhostUserConnection, taker: VhostUserConnection) -> None:
    """Make ``giver``, whose rings are stopped, save its state, and ``taker`` load it.

    The state goes through a pipe from the one to the other, not through this process.

    Raises:
        BackendError: one of the two fails, or takes too long.

    """
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC)
    except OSError as error:
        raise BackendDown(f"no pipe for the backend's state: {os_reason(error)}") from error
    try:
        try:
            await _begin(giver, TransferDirection.SAVE, writing)
            await _begin(taker, TransferDirection.LOAD, reading)
        finally:
            os.close(reading)
            os.close(writing)  # so that the taker sees an end of file when the giver closes its end
        for connection, what in ((giver, "save its state"), (taker, "load the other one's state")):
            status = decode_u64(await connection.ask(Request.CHECK_DEVICE_STATE))
            if status != 0:
                raise BackendRefused(f"the backend could not {what} (status {status})")
    except MalformedError as error:
        raise BackendBroken(f"the backend broke the protocol: {error}") from error


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
