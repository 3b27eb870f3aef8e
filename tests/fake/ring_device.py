"""The device's side of a split virtqueue, as strict as the backends that die of a driver's mistake.

Written from VIRTIO 1.2, sections 2.7.4 to 2.7.8 and 2.7.13 to 2.7.14, and from BACKENDS.md's rules
of the rings. It shares no code with :mod:`memory.virtqueue`: it has its own mapping of the memory,
its own index words (ctypes) and its own walk through the chains. What no correct driver does raises
:class:`DriverError`; what a hostile device may do to a driver is written with :meth:`RingDevice.
place` and :meth:`RingDevice.set_used_index`, which check nothing.

It has no memory fences: its driver runs in the same thread, or on x86.

A backend has a :class:`DeviceMemory` for each session and a :class:`RingDevice` for each queue::

    memory = DeviceMemory()
    memory.add(guest_address, user_address, view)      # SET_MEM_TABLE, one a region
    ring = RingDevice(memory, num, addresses, base)    # SET_VRING_NUM, _ADDR, _BASE
    while (chain := ring.pop()) is not None:           # a kick
        ring.push(chain, chain.write(answer(chain.read())))
"""

import ctypes
from collections.abc import Callable
from typing import Final, NamedTuple

_NEXT: Final = 1
_WRITE: Final = 2
_INDIRECT: Final = 4
_WRAP: Final = 0x10000


class DriverError(Exception):
    """The driver did what no driver may do; a real backend exits, panics or hangs here."""


class _MappedRegion(NamedTuple):
    guest_address: int
    user_address: int
    view: memoryview


class DeviceMemory:
    """Guest memory as a backend has it mapped: found by guest-physical or by user address."""

    def __init__(self) -> None:
        self._regions: list[_MappedRegion] = []

    def add(self, guest_address: int, user_address: int, view: memoryview) -> None:
        """Map a region: ``view`` is the whole of it, writable bytes."""
        self._regions.append(_MappedRegion(guest_address, user_address, view))

    def remove(self, guest_address: int) -> None:
        """Unmap the region that begins there."""
        self._regions = [one for one in self._regions if one.guest_address != guest_address]

    def __len__(self) -> int:
        return len(self._regions)

    def at_guest(self, address: int, length: int) -> memoryview:
        """Return the bytes that a descriptor names.

        Raises:
            DriverError: they are not within one region.

        """
        return self._find(address, length, "guest", lambda region: region.guest_address)

    def at_user(self, address: int, length: int) -> memoryview:
        """Return the bytes that SET_VRING_ADDR names.

        Raises:
            DriverError: they are not within one region.

        """
        return self._find(address, length, "user", lambda region: region.user_address)

    def _find(
        self, address: int, length: int, kind: str, start: Callable[[_MappedRegion], int]
    ) -> memoryview:
        for region in self._regions:
            offset = address - start(region)
            if offset >= 0 and offset + length <= len(region.view):
                return region.view[offset : offset + length]
        raise DriverError(f"{length} bytes at {kind} address {address:#x} are outside memory")

    def close(self) -> None:
        """Let go of the regions."""
        self._regions.clear()


class RingAddresses(NamedTuple):
    """A ring's three parts as user addresses, as SET_VRING_ADDR gives them."""

    descriptors: int
    available: int
    used: int


class Descriptor(ctypes.LittleEndianStructure):
    """One entry of the descriptor table, where it stands in memory."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("flags", ctypes.c_uint16),
        ("next", ctypes.c_uint16),
    )
    address: int
    length: int
    flags: int
    next: int


class Chain(NamedTuple):
    """A chain that the driver made available: views of the bytes that its descriptors name."""

    head: int
    slots: list[int]  #: indices of its descriptors, in order
    readable: list[memoryview]
    writable: list[memoryview]

    @property
    def capacity(self) -> int:
        """Bytes that the device may write."""
        return sum(map(len, self.writable))

    def read(self) -> bytes:
        """Return what the driver wrote, its buffers joined."""
        return b"".join(self.readable)

    def write(self, payload: bytes) -> int:
        """Write ``payload`` over the writable buffers, in order; return its length."""
        if len(payload) > self.capacity:
            raise ValueError(f"{len(payload)} bytes into a chain for {self.capacity}")
        position = 0
        for view in self.writable:
            part = payload[position : position + len(view)]
            view[: len(part)] = part
            position += len(part)
        return len(payload)


class RingDevice:
    """One split ring, from the device's side.

    ``base`` is the index in the available ring to begin at (SET_VRING_BASE); the used ring goes on
    from the used.idx that stands in memory, as vhost-user has it.
    """

    def __init__(
        self, memory: DeviceMemory, num: int, addresses: RingAddresses, base: int = 0
    ) -> None:
        for name, address, alignment in zip(
            RingAddresses._fields, addresses, (16, 2, 4), strict=True
        ):
            if address % alignment:
                raise DriverError(f"{name} at {address:#x}, not aligned to {alignment}")
        if num < 1 or num & (num - 1) or num > 32768:
            raise DriverError(f"a ring of {num} descriptors")
        self.num = num
        self._memory = memory
        table = memory.at_user(addresses.descriptors, 16 * num)
        available = memory.at_user(addresses.available, 6 + 2 * num)
        used = memory.at_user(addresses.used, 6 + 8 * num)
        self._table = (Descriptor * num).from_buffer(table)
        self._available_flags = ctypes.c_uint16.from_buffer(available, 0)
        self._available_index = ctypes.c_uint16.from_buffer(available, 2)
        self._available_ring = (ctypes.c_uint16 * num).from_buffer(available, 4)
        self._used_index = ctypes.c_uint16.from_buffer(used, 2)
        self._used_ring = (ctypes.c_uint32 * (2 * num)).from_buffer(used, 4)
        self._next_available = base
        self._next_used = self._used_index.value
        self._held: dict[int, Chain] = {}
        self._taken: set[int] = set()

    @property
    def base(self) -> int:
        """The next index in the available ring: what GET_VRING_BASE answers."""
        return self._next_available

    @property
    def held(self) -> dict[int, Chain]:
        """The chains taken and not yet placed in the used ring, by their heads."""
        return dict(self._held)

    @property
    def available(self) -> int:
        """How many chains the driver made available that were not taken yet.

        Raises:
            DriverError: more than the ring has descriptors.

        """
        ahead = (self._available_index.value - self._next_available) % _WRAP
        if ahead > self.num:
            raise DriverError(f"avail.idx is {ahead} ahead in a ring of {self.num}")
        return ahead

    @property
    def wants_call(self) -> bool:
        """Whether the driver left VRING_AVAIL_F_NO_INTERRUPT unset."""
        return not self._available_flags.value & 1

    def pop(self) -> Chain | None:
        """Take the next available chain; None if there is none.

        Raises:
            DriverError: a chain that no driver may lay.

        """
        if not self.available:
            return None
        head = self._available_ring[self._next_available % self.num]
        chain = self._walk(head)
        self._held[head] = chain
        self._taken.update(chain.slots)
        self._next_available = (self._next_available + 1) % _WRAP
        return chain

    def push(self, chain: Chain, length: int) -> None:
        """Use a chain that was taken, and tell the driver: ``length`` bytes were written."""
        if self._held.get(chain.head) is not chain:
            raise ValueError(f"the device does not have the chain at {chain.head}")
        self.place(chain.head, length)
        self.publish()

    def place(self, head: int, length: int) -> None:
        """Write a used element, any element, that the next :meth:`publish` shows the driver."""
        if (chain := self._held.pop(head, None)) is not None:
            self._taken.difference_update(chain.slots)
        position = 2 * (self._next_used % self.num)
        self._used_ring[position] = head
        self._used_ring[position + 1] = length
        self._next_used = (self._next_used + 1) % _WRAP

    def publish(self) -> None:
        """Show the driver all elements that were placed: used.idx moves."""
        self.set_used_index(self._next_used)

    def set_used_index(self, index: int) -> None:
        """Write any used.idx."""
        self._used_index.value = index

    def close(self) -> None:
        """Let go of the ring's memory."""
        del self._table, self._available_flags, self._available_index, self._available_ring
        del self._used_index, self._used_ring
        self._held.clear()
        self._taken.clear()

    def _walk(self, head: int) -> Chain:
        chain = Chain(head, [], [], [])
        slot = head
        while True:
            if slot >= self.num:
                raise DriverError(f"descriptor {slot} in a ring of {self.num}")
            if slot in chain.slots:
                raise DriverError(f"the chain at {head} loops at descriptor {slot}")
            if slot in self._taken:
                raise DriverError(f"descriptor {slot} belongs to a chain that the device has")
            chain.slots.append(slot)
            descriptor = self._table[slot]
            flags = self._checked_flags(descriptor, slot, chain)
            view = self._memory.at_guest(descriptor.address, descriptor.length)
            (chain.writable if flags & _WRITE else chain.readable).append(view)
            if not flags & _NEXT:
                return chain
            slot = descriptor.next

    @staticmethod
    def _checked_flags(descriptor: Descriptor, slot: int, chain: Chain) -> int:
        flags = descriptor.flags
        if flags & _INDIRECT:
            raise DriverError(f"descriptor {slot} is indirect, which was not negotiated")
        if flags & ~(_NEXT | _WRITE):
            raise DriverError(f"descriptor {slot} has flags {flags:#x}")
        if descriptor.length == 0:
            raise DriverError(f"descriptor {slot} is empty")
        if chain.writable and not flags & _WRITE:
            raise DriverError(f"descriptor {slot} is readable after a writable one")
        return flags
