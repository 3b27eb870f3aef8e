"""Somebody who looks on: at each FUSE request that goes to the device, and at its end."""

from typing import Protocol

from protocol import fuse


class Observer(Protocol):
    """What a :class:`~vuserd.device.channel.FuseChannel` tells who looks on. Nothing may raise.

    A request that never got as far as the ring is not told of.
    """

    def sent(self, unique: int, request: fuse.Request) -> None:
        """Take note that the device is given a request."""

    def ended(self, unique: int, error: int, length: int) -> None:
        """Take note of a reply: its errno, 0 for success, and the length of its body in bytes.

        A request that is only taken, as FORGET is, has neither.
        """

    def timed_out(self, unique: int) -> None:
        """Take note that nobody waits for a request any more: its reply may come yet."""

    def lost(self) -> None:
        """Take note that the backend is gone, and with it all that has not ended."""
