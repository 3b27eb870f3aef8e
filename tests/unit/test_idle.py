"""Unused things: how long they stay, and which task wakes for them."""

import math
import stat
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol import fuse
from protocol.fuse import Entry, NodeId, Opcode
from tests.fake.backend import FakeBackend, File
from tests.faults.catalogue import fault
from tests.listings import names
from vuserd.device.session import Session
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.heldfile import HeldFile
from vuserd.fs.idle import Alarm, IdleSet
from vuserd.fs.listings import Listing
from vuserd.fs.nodes import Hold, Node, NodeTable, root_node
from vuserd.fs.walk import TreeWalk

FOLDER = File(mode=stat.S_IFDIR | 0o755)


# --- the set, and the alarm -----------------------------------------------------------------------


async def test_what_was_used_longest_ago_is_due_first(mock_clock: MockClock) -> None:
    idle: IdleSet[str] = IdleSet(5)
    assert idle.due() == math.inf
    begun = trio.current_time()
    idle.add("a")
    mock_clock.jump(1)
    idle.add("b")
    mock_clock.jump(1)
    idle.add("a")  # it was used again
    assert [*idle] == ["b", "a"]
    assert idle.due() == begun + 6
    assert [*idle.pop_due(begun + 5.9)] == []
    assert [*idle.pop_due(begun + 6)] == ["b"]
    assert idle.due() == begun + 7
    idle.discard("a")
    idle.discard("a")
    assert not idle
    assert idle.due() == math.inf


async def test_all_are_popped_where_no_time_is_said(mock_clock: MockClock) -> None:
    idle: IdleSet[str] = IdleSet(5)
    for name in "abc":
        idle.add(name)
        mock_clock.jump(1)
    assert idle.pop_oldest() == "a"
    assert [*idle.pop_due()] == ["b", "c"]
    assert [*idle.pop_due()] == []


async def test_what_is_added_while_others_end_stays(mock_clock: MockClock) -> None:
    """A thing that ends may make another one idle: that one has its whole time."""
    idle: IdleSet[str] = IdleSet(5)
    idle.add("a")
    mock_clock.jump(5)
    for name in idle.pop_due(trio.current_time()):
        idle.add(name + "'s child")
    assert [*idle] == ["a's child"]


@pytest.mark.parametrize(
    ("waits_until", "is_set_to", "wakes_after"), [(10, 3, 0), (10, 12, 10), (math.inf, 50, 0)]
)
async def test_an_alarm_wakes_for_what_is_due_before(
    autojump_clock: MockClock,  # noqa: ARG001 - seconds pass at once
    waits_until: float,
    is_set_to: float,
    wakes_after: float,
) -> None:
    alarm = Alarm()
    begun = trio.current_time()
    alarm.set(begun)  # nobody waits: nobody is woken
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.wait, begun + waits_until)
        await wait_all_tasks_blocked()
        alarm.set(begun + is_set_to)
    assert trio.current_time() == begun + wakes_after


# --- nodes ----------------------------------------------------------------------------------------


def entry(node: int) -> Entry:
    return Entry(NodeId(node), root_node().attributes._replace(mode=stat.S_IFREG, ino=node))


class Posted:
    """A table of nodes, and the lookup counts that it has given back."""

    def __init__(self, idle_limit: int, idle_time: float) -> None:
        self.batches: list[dict[int, int]] = []
        self.due: list[float] = []
        self.table = NodeTable(idle_limit, idle_time, self._post, 100)
        self.table.on_idle = self.due.append

    def _post(self, request: fuse.Request) -> None:
        assert request.opcode is Opcode.BATCH_FORGET
        numbers = [
            int.from_bytes(request.body[at : at + 8], "little")
            for at in range(8, len(request.body), 8)
        ]
        self.batches.append(dict(zip(numbers[::2], numbers[1::2], strict=True)))

    def use(self, node: int) -> Node:
        """Look a node up, and leave it."""
        with Hold(self.table) as hold:
            return hold.add(entry(node), root_node(), b"%d" % node)


async def test_a_node_is_forgotten_after_its_time(mock_clock: MockClock) -> None:
    posted = Posted(10, 5)
    begun = trio.current_time()
    assert posted.table.due() == math.inf
    posted.use(2)
    assert posted.due == [begun + 5]
    mock_clock.jump(3)
    posted.use(3)
    assert posted.table.due() == begun + 5
    posted.table.expire(begun + 5)
    assert posted.batches == [{2: 1}]
    assert len(posted.table) == 1
    assert posted.table.due() == begun + 8
    posted.table.expire(begun + 8)
    assert posted.batches == [{2: 1}, {3: 1}]
    assert posted.table.due() == math.inf
    assert len(posted.table) == 0
    posted.table.expire(begun + 100)
    assert len(posted.batches) == 2


async def test_a_node_in_use_has_no_time(mock_clock: MockClock) -> None:
    posted = Posted(10, 5)
    posted.use(2)
    with Hold(posted.table) as hold:
        node = hold.add(entry(2), root_node(), b"2")
        mock_clock.jump(100)
        posted.table.expire(trio.current_time())
        assert node.lookups == 2
        assert posted.batches == []
    assert posted.table.due() == trio.current_time() + 1  # the count that is owed
    posted.table.expire(trio.current_time() + 1)
    assert posted.batches == [{2: 1}]
    posted.table.expire(trio.current_time() + 5)
    assert posted.batches == [{2: 1}, {2: 1}]


async def test_what_is_owed_goes_out_within_a_second(mock_clock: MockClock) -> None:
    posted = Posted(10, 5)
    begun = trio.current_time()
    posted.table.forget(NodeId(7))
    mock_clock.jump(0.5)
    posted.table.forget(NodeId(7), 2)
    posted.table.forget(NodeId(8))
    assert posted.due == [begun + 1]
    assert posted.table.due() == begun + 1
    posted.table.expire(begun + 1)
    assert posted.batches == [{7: 3, 8: 1}]
    assert posted.table.due() == math.inf


async def test_the_root_is_never_owed() -> None:
    posted = Posted(10, 5)
    posted.table.forget(fuse.ROOT_ID)
    posted.table.flush()
    assert posted.batches == []
    assert posted.due == []


@pytest.mark.parametrize(("idle_limit", "idle_time"), [(0, 5), (10, 0)])
async def test_without_idle_nodes_each_is_forgotten_as_it_is_left(
    idle_limit: int, idle_time: float
) -> None:
    posted = Posted(idle_limit, idle_time)
    posted.use(2)
    assert len(posted.table) == 0
    posted.table.flush()
    assert posted.batches == [{2: 1}]


async def test_what_is_kept_with_a_node_ends_with_it(mock_clock: MockClock) -> None:
    posted = Posted(2, 5)
    dropped: list[int] = []
    for number in (2, 3, 4, 5):
        posted.use(number).on_drop = lambda node: dropped.append(node.id)
    assert dropped == [2, 3]  # two too many
    mock_clock.jump(5)
    posted.table.expire(trio.current_time())
    assert dropped == [2, 3, 4, 5]
    posted.table.close()
    assert dropped == [2, 3, 4, 5]


async def test_a_table_that_was_closed_keeps_nothing() -> None:
    posted = Posted(10, 5)
    hold = Hold(posted.table)
    hold.add(entry(2), root_node(), b"2")
    posted.use(3)
    posted.table.close()
    assert posted.batches == [{3: 1}]
    hold.leave()
    posted.table.flush()
    assert posted.batches == [{3: 1}, {2: 1}]


# --- the file system ------------------------------------------------------------------------------


@pytest.fixture
def backend() -> FakeBackend:
    files: dict[bytes, File | bytes] = {b"file-%d" % number: b"%d" % number for number in range(30)}
    return FakeBackend({b"Image": b"kernel", b"folder": FOLDER, **files})


@pytest.fixture
async def files(session: Session) -> AsyncIterator[FileSystem]:
    """Yield a file system whose idle things end in time."""
    files = FileSystem(session, idle_nodes=10, idle_time=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(files.expire)
        yield files
        nursery.cancel_scope.cancel()


async def asleep(clock: MockClock) -> bool:
    """Return whether nothing will ever wake by itself, once the session has seen to its requests.

    It looks after their deadlines a last time when ten seconds are over.
    """
    for _ in range(3):
        await pass_(clock, 10)
    return trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf


async def pass_(clock: MockClock, seconds: float) -> None:
    """Let time pass, and the tasks that waited for it run."""
    for _ in range(2):
        await wait_all_tasks_blocked()
        clock.jump(seconds / 2)
    await wait_all_tasks_blocked()


@fault(
    "nobody-asks",
    done="no call comes for some seconds",
    must="No node and no handle is left in the backend, and nothing in the daemon wakes.",
)
async def test_nothing_wakes_while_nothing_is_idle(
    files: FileSystem, backend: FakeBackend, mock_clock: MockClock
) -> None:
    assert await asleep(mock_clock)
    await files.stat(b"folder/Image", follow=True)
    await names(files, limit=7, attributes=True)
    assert files.nodes.due() < math.inf
    await pass_(mock_clock, 5)
    await pass_(mock_clock, 1)
    assert await asleep(mock_clock)
    assert len(files.nodes) == 0
    assert not +backend.lookups
    assert backend.open_handles == set()


async def test_a_node_that_is_used_now_and_then_stays(
    files: FileSystem, backend: FakeBackend, mock_clock: MockClock
) -> None:
    for _ in range(10):
        await files.stat(b"Image", follow=True)
        await pass_(mock_clock, 4)
        assert len(files.nodes) == 1
        assert sum(backend.lookups.values()) == 1  # what was owed has gone out
    await pass_(mock_clock, 1)
    assert not +backend.lookups
    assert await asleep(mock_clock)


async def test_counts_that_are_owed_do_not_wait_for_a_node(
    files: FileSystem, backend: FakeBackend, mock_clock: MockClock
) -> None:
    await files.stat(b"Image", follow=True)
    await wait_all_tasks_blocked()  # until the node's time is over
    await files.stat(b"Image", follow=True)
    assert sum(backend.lookups.values()) == 2
    await pass_(mock_clock, 1.1)
    assert sum(backend.lookups.values()) == 1


async def test_nodes_do_not_wait_for_a_file_that_is_open(
    files: FileSystem, backend: FakeBackend, mock_clock: MockClock
) -> None:
    """A client has one for a minute; the others' nodes are given up after five seconds."""
    held = HeldFile(b"Image", await files.open(b"Image"), files)
    await wait_all_tasks_blocked()
    await files.stat(b"file-7", follow=True)
    assert sum(backend.lookups.values()) == 2
    await pass_(mock_clock, 6)
    assert sum(backend.lookups.values()) == 1
    assert len(backend.open_handles) == 1
    await pass_(mock_clock, 54)
    await pass_(mock_clock, 5)
    assert backend.open_handles == set()
    assert not +backend.lookups
    assert await asleep(mock_clock)
    held.close()


@pytest.mark.parametrize("attributes", [False, True])
async def test_a_listing_that_nobody_goes_on_with_is_closed(
    files: FileSystem, backend: FakeBackend, mock_clock: MockClock, attributes: bool
) -> None:
    listing = Listing(b"folder", attributes=attributes)
    first = await listing.next_page(files, 5)
    assert len(backend.open_handles) == 1
    await pass_(mock_clock, 5)
    assert backend.open_handles == set()
    await pass_(mock_clock, 6)
    assert not +backend.lookups
    assert await asleep(mock_clock)
    rest = await listing.next_page(files, 100)
    assert first.names + rest.names == [*backend.files]
    listing.close()


async def test_a_walk_that_nobody_goes_on_with_lets_go(
    files: FileSystem, backend: FakeBackend, mock_clock: MockClock
) -> None:
    walk = TreeWalk(b"", attributes=False)
    first, _ = await walk.next_page(files, 5)
    await pass_(mock_clock, 5)
    await pass_(mock_clock, 6)
    assert backend.open_handles == set()
    assert not +backend.lookups
    assert await asleep(mock_clock)
    rest, _ = await walk.next_page(files, 10_000)
    assert walk.finished
    assert (first.names + rest.names)[: len(backend.files)] == [*backend.files]
    walk.close()


async def test_what_is_kept_after_the_end_lapses_at_once(
    files: FileSystem, backend: FakeBackend, mock_clock: MockClock
) -> None:
    listing = Listing(b"", attributes=False)
    await listing.next_page(files, 5)
    held = HeldFile(b"Image", await files.open(b"Image"), files)
    files.close()
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()
    assert await listing.next_page(files, 5)  # of a call that goes on meanwhile
    await held.use(files, lambda file: file.look_again())
    await pass_(mock_clock, 1.1)
    assert backend.open_handles == set()
    assert not +backend.lookups


@pytest.mark.parametrize("none", [0, 1])
async def test_many_counts_are_given_back_at_once(none: int) -> None:
    """In no more batches than needed; no node, and the root, have none."""
    posted = Posted(10, 5)
    nodes = [NodeId(number) for number in range(2, 232)]
    posted.table.forget_each([*nodes[:150], NodeId(none), *nodes[150:]])
    assert [len(batch) for batch in posted.batches] == [100, 100, 30]
    assert dict.fromkeys(nodes, 1) == posted.batches[0] | posted.batches[1] | posted.batches[2]
    assert posted.table.due() == math.inf
    posted.table.forget_each([NodeId(5), NodeId(none), NodeId(5)])
    assert len(posted.batches) == 3
    posted.table.flush()
    assert posted.batches[3:] == [{5: 2}]
