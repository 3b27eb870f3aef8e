"""Guest memory: the regions that the backend maps, and the addresses of their bytes.

A byte of a region has three names: its offset in the region, its guest-physical address (which
descriptors use) and its user address (which SET_VRING_ADDR uses). No guest and no mapping stands
behind the two addresses, so they are chosen far apart: one taken for the other is in no region.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from protocol.vhost_user import MemoryRegion

_FIRST_GUEST_ADDRESS: Final = 1 << 32
_USER_ADDRESS_OFFSET: Final = 1 << 60
#: Regions begin at multiples of this and never touch, so no buffer runs from one into the next.
_ALIGNMENT: Final = 1 << 20


class Shareable(Protocol):
    """A memfd of fixed size: a Region of the daemon's, or a client's ForeignRegion."""

    size: int

    def fileno(self) -> int:
        """Return its descriptor."""


class GuestRegion(NamedTuple):
    """A region and the addresses that the backend knows it by."""

    region: Shareable
    guest_base: int

    def guest_address(self, offset: int, length: int) -> int:
        """Return the guest-physical address of ``length`` bytes at ``offset``."""
        self._check(offset, length)
        return self.guest_base + offset

    def user_address(self, offset: int, length: int) -> int:
        """Return the user address of ``length`` bytes at ``offset``."""
        self._check(offset, length)
        return self.guest_base + _USER_ADDRESS_OFFSET + offset

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 1 or offset + length > self.region.size:
            raise ValueError(
                f"{length} bytes at {offset} leave the region of {self.region.size} bytes"
            )

    def wire(self) -> MemoryRegion:
        """Return the region as SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG describe it."""
        size = self.region.size
        return MemoryRegion(self.guest_base, size, self.user_address(0, size), mmap_offset=0)


class GuestMemory:
    """The regions of one session. Each still belongs to its maker, which closes it."""

    def __init__(self) -> None:
        self._regions: list[GuestRegion] = []
        self._next_address = _FIRST_GUEST_ADDRESS

    def __len__(self) -> int:
        return len(self._regions)

    def __iter__(self) -> Iterator[GuestRegion]:
        return iter(self._regions)

    def add(self, region: Shareable) -> GuestRegion:
        """Place ``region`` at addresses that no other region has or had."""
        placed = GuestRegion(region, self._next_address)
        self._next_address += region.size + _ALIGNMENT - region.size % _ALIGNMENT
        self._regions.append(placed)
        return placed

    def remove(self, placed: GuestRegion) -> None:
        """Forget a region."""
        self._regions.remove(placed)
