"""What a session and its backend agree on, before any memory is shared and any ring runs."""

from typing import Final, NamedTuple

from protocol.vhost_user import ProtocolFeature, Request, decode_u64, encode_u64
from protocol.virtio_fs import QUEUES
from protocol.virtio_ring import Feature
from vuserd.device.connection import VhostUserConnection
from vuserd.errors import BackendBroken

_FEATURES: Final = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
_PROTOCOL_FEATURES: Final = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
#: Taken where they are offered: without the first no memory of clients can be attached, and
#: without the second nodes and open handles end with the backend.
_WELCOME: Final = ProtocolFeature.CONFIGURE_MEM_SLOTS | ProtocolFeature.DEVICE_STATE


class Agreement(NamedTuple):
    """What the backend can do beyond what each of them has to."""

    #: Regions that it can map.
    slots: int
    #: Whether its state can be moved to another one.
    device_state: bool
    #: Whether it bears an INTERRUPT.
    interrupts: bool


async def negotiate(connection: VhostUserConnection) -> Agreement:
    """Agree with a backend that was just connected to, in the order that every one takes.

    Raises:
        BackendError: it does not answer, offers too little, or breaks the protocol.

    """
    ask, tell = connection.ask, connection.tell
    offered = Feature(decode_u64(await ask(Request.GET_FEATURES)))
    _require("virtio", _FEATURES, offered)
    protocol_offered = ProtocolFeature(decode_u64(await ask(Request.GET_PROTOCOL_FEATURES)))
    _require("vhost-user", _PROTOCOL_FEATURES, protocol_offered)
    taken = _PROTOCOL_FEATURES | (protocol_offered & _WELCOME)
    await connection.announce(Request.SET_PROTOCOL_FEATURES, encode_u64(taken))
    queues = decode_u64(await ask(Request.GET_QUEUE_NUM))
    if queues < len(QUEUES):
        raise BackendBroken(f"the backend has {queues} queues, virtio-fs needs {len(QUEUES)}")
    slots = 1
    if taken & ProtocolFeature.CONFIGURE_MEM_SLOTS:
        slots = decode_u64(await ask(Request.GET_MAX_MEM_SLOTS))
    await tell(Request.SET_OWNER)
    await tell(Request.SET_FEATURES, encode_u64(_FEATURES))
    return Agreement(
        slots,
        device_state=ProtocolFeature.DEVICE_STATE in taken,
        # Only QEMU's own virtiofsd offers this bit. It keeps an INTERRUPT whose request has ended,
        # answers it with the next request, from memory that is freed by then, and crashes.
        interrupts=Feature.NOTIFY_ON_EMPTY not in offered,
    )


def _require(kind: str, needed: Feature | ProtocolFeature, offered: int) -> None:
    missing = type(needed)(needed & ~offered)
    if missing:
        names = ", ".join(flag.name or hex(flag) for flag in missing)
        raise BackendBroken(f"the backend lacks {kind} features: {names}")
