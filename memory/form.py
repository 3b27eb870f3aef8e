"""Forms of requests that are much alike: what a virtqueue's slots keep of them."""


class Form:
    """Requests of one queue that differ in some words of 64 bits, and in their target.

    Args:
        message: one of them.
        reply: bytes of a reply that go into the slot's own room.
        has_target: whether the others go elsewhere.

    """

    __slots__ = ("free", "has_target", "message", "reply")

    def __init__(self, message: bytes, reply: int, *, has_target: bool = False) -> None:
        self.message = message
        self.reply = reply
        self.has_target = has_target
        #: Slots that have such a request and are free.
        self.free: list[int] = []
