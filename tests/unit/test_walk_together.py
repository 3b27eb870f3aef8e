"""Small directories that a walk reads all at once: what is odd about one harms no other."""

import errno
import stat
import struct
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.dirent import LONGEST_RECORD
from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from tests.fake.files import ROOT, directory_record
from vuserd.device.lane.lane import Lane
from vuserd.errors import BackendTimeout, CallError, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.walk import TreeWalk, WalkProblem
from vuserd.fs.walking.small import GROUP, GROUPS, GROUPS_SHARED
from vuserd.tasks.turns import SHARER

FOLDER = File(mode=stat.S_IFDIR | 0o755)
FOLDERS = [b"folder-%02d" % number for number in range(20)]
INSIDE = [b"one", b"two", b"three"]
PATHS = sorted(FOLDERS + [folder + b"/" + name for folder in FOLDERS for name in INSIDE])
#: The one that is odd, and what is in it.
ODD = FOLDERS[15]
IN_ODD = {ODD + b"/" + name for name in INSIDE}

#: What becomes of the odd directory's request, instead of the honest answer; called until it
#: gives None.
Spoil = Callable[[FuseRequest], Answer | None]


class Forest:
    """A backend with folders in its root, and files in each."""

    def __init__(self, spoiled: Opcode | None = None, spoil: Spoil = lambda _: None) -> None:
        files = dict.fromkeys(INSIDE, File(b"x"))
        self.backend = FakeBackend(dict.fromkeys(FOLDERS, FOLDER) | files)
        self.backend.answer = self._answer
        self._spoiled, self._spoil = spoiled, spoil
        self.odd = [*self.backend.files].index(ODD) + 2

    def _answer(self, request: FuseRequest) -> Answer | None:
        if request.opcode is self._spoiled and request.node == self.odd:
            spoiled = self._spoil(request)
            if spoiled is not None:
                return spoiled
        if request.opcode not in (Opcode.READDIR, Opcode.READDIRPLUS):
            return self.backend.serve_files(request)
        return Answer(self.listing(request))

    def listing(self, request: FuseRequest, *, without: bytes = b"") -> bytes:
        """List a directory, honestly but for the node of one name."""
        offset, size = struct.unpack_from("=QI", request.body, 8)
        plus = request.opcode is Opcode.READDIRPLUS
        listing = b""
        names = FOLDERS if request.node == ROOT else INSIDE
        for number, name in list(enumerate(names, 1))[offset:]:
            node = [*self.backend.files].index(name) + 2
            record = directory_record(name, number, kind=4 if name in FOLDERS else 8)
            if plus:
                record = (bytes(128) if name == without else self.backend.entry(node)) + record
            if len(listing) + len(record) > size:
                break
            listing += record
            self.backend.lookups[node] += plus and name != without
        return listing

    async def walked(self) -> tuple[list[bytes], list[WalkProblem]]:
        """Walk it, and see that nothing is owed in the end."""
        async with self.backend.session() as session:
            files = FileSystem(session, idle_nodes=100)
            walk = TreeWalk(b"", attributes=True)
            found: list[bytes] = []
            problems: list[WalkProblem] = []
            while not walk.finished:
                page, wrong = await walk.next_page(files, 1000)
                assert 0 not in page.nodes
                found += page.names
                problems += wrong
            assert walk.remembered == 0
            await self.owes_nothing(walk, files)
        return found, problems

    async def owes_nothing(self, walk: TreeWalk, files: FileSystem) -> None:
        walk.close()
        files.close()
        await wait_all_tasks_blocked()
        assert +self.backend.lookups == {}
        assert self.backend.open_handles == set()


async def test_they_are_opened_once_and_read_twice() -> None:
    forest = Forest()
    found, problems = await forest.walked()
    assert sorted(found) == PATHS
    assert problems == []
    assert len(forest.backend.named(Opcode.OPENDIR)) == 21
    assert len(forest.backend.named(Opcode.READDIRPLUS)) == 2 * 21
    assert forest.backend.named(Opcode.LOOKUP) == []


class Shared:
    """One who is never alone, and has a turn whenever it wants one."""

    def is_alone(self) -> bool:
        return False

    async def take_turn(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(("sharer", "groups"), [(None, GROUPS), (Shared(), GROUPS_SHARED)])
async def test_the_backend_has_some_groups_while_another_is_taken(
    monkeypatch: pytest.MonkeyPatch, sharer: Shared | None, groups: int
) -> None:
    count = (GROUPS + 1) * GROUP
    monkeypatch.setattr(
        "tests.unit.test_walk_together.FOLDERS", [b"folder-%02d" % n for n in range(count)]
    )
    SHARER.set(sharer)
    forest = Forest()
    found, _ = await forest.walked()
    assert len(found) == count * 4
    asked = [one.opcode for one in forest.backend.requests if one.node > ROOT]
    begun = [one for one in asked if one is not Opcode.BATCH_FORGET].index(Opcode.READDIRPLUS)
    assert begun == groups * GROUP


async def test_a_group_is_small_while_others_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lane, "is_shared", property(lambda _: True))
    forest = Forest()
    found, _ = await forest.walked()
    assert sorted(found) == PATHS
    asked = [one.opcode for one in forest.backend.requests if one.node > ROOT]
    assert asked[:8].count(Opcode.OPENDIR) == 8
    assert Opcode.READDIRPLUS in asked[8:12]


@pytest.mark.parametrize("count", [1, GROUP, GROUP + 1, 2 * GROUP + 1, GROUPS * GROUP + 1])
async def test_any_number_of_them_is_read(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    folders = [b"folder-%02d" % number for number in range(count)]
    monkeypatch.setattr("tests.unit.test_walk_together.FOLDERS", folders)
    monkeypatch.setattr("tests.unit.test_walk_together.ODD", folders[0])
    with trio.fail_after(60):
        found, problems = await Forest().walked()
    assert len(found) == len({*found}) == count * (1 + len(INSIDE))
    assert problems == []


@pytest.mark.parametrize("dies", [False, True])
async def test_interrupted_between_pages_it_gives_each_entry_once(*, dies: bool) -> None:
    forest = Forest()
    walk = TreeWalk(b"", attributes=True)
    found: list[bytes] = []
    while walk.remembered:
        async with forest.backend.session() as session:
            files = FileSystem(session, idle_nodes=100)
            while not walk.finished:
                found += (await walk.next_page(files, 7))[0].names
                if dies:
                    forest.backend.die()
                    await session.wait_lost()
                    break
                walk.lapse()
            if not dies:
                await forest.owes_nothing(walk, files)
    assert sorted(found) == PATHS


@pytest.mark.parametrize(("count", "again"), [(45, LONGEST_RECORD), (50, 8 << 10)])
async def test_little_is_asked_for_where_it_most_likely_ends(
    monkeypatch: pytest.MonkeyPatch, count: int, again: int
) -> None:
    inside = [b"file-%02d" % number for number in range(count)]
    monkeypatch.setattr("tests.unit.test_walk_together.INSIDE", inside)
    forest = Forest()
    found, _ = await forest.walked()
    assert len(found) == 20 * (count + 1)
    sizes: dict[int, list[int]] = {}
    for request in forest.backend.named(Opcode.READDIRPLUS):
        _, size = struct.unpack_from("=QI", request.body, 8)
        sizes.setdefault(request.node, []).append(size)
    del sizes[ROOT]
    assert [*sizes.values()] == [[8 << 10, again]] * 20


@pytest.mark.parametrize("opcode", [Opcode.OPENDIR, Opcode.READDIRPLUS])
async def test_one_that_refuses_is_a_problem(opcode: Opcode) -> None:
    forest = Forest(opcode, lambda _: Answer(error=errno.EACCES))
    if opcode is Opcode.READDIRPLUS:  # the directory's own error: READDIR has it, too
        honest = forest.backend.answer

        def answer(request: FuseRequest) -> Answer | None:
            is_odd = request.opcode is Opcode.READDIR and request.node == forest.odd
            return Answer(error=errno.EACCES) if is_odd else honest(request)

        forest.backend.answer = answer
    found, problems = await forest.walked()
    assert sorted(found) == sorted({*PATHS} - IN_ODD)
    assert [(one.path, str(one.error.code)) for one in problems] == [(ODD, "EACCES")]


async def test_one_that_is_gone_is_none() -> None:
    found, problems = await Forest(Opcode.OPENDIR, lambda _: Answer(error=errno.ENOENT)).walked()
    assert sorted(found) == sorted({*PATHS} - IN_ODD)
    assert problems == []


async def test_an_entry_without_a_node_is_looked_up() -> None:
    forest = Forest(
        Opcode.READDIRPLUS, lambda request: Answer(forest.listing(request, without=b"two"))
    )
    found, problems = await forest.walked()
    assert sorted(found) == PATHS
    assert problems == []
    assert [one.body for one in forest.backend.named(Opcode.LOOKUP)] == [b"two\0"]


async def test_one_whose_offsets_lead_back_is_a_problem() -> None:
    def spoil(_: FuseRequest) -> Answer | None:
        entry = forest.backend.entry([*forest.backend.files].index(b"one") + 2)
        forest.backend.lookups[[*forest.backend.files].index(b"one") + 2] += 1
        return Answer(entry + directory_record(b"one", 0))

    forest = Forest(Opcode.READDIRPLUS, spoil)
    found, problems = await forest.walked()
    assert sorted(found) == sorted({*PATHS} - IN_ODD)
    assert [(one.path, str(one.error.code)) for one in problems] == [(ODD, "EIO")]


async def test_a_long_one_is_read_on() -> None:
    """In replies of one entry each."""
    forest = Forest(
        Opcode.READDIRPLUS,
        lambda request: Answer(
            forest.listing(request._replace(body=request.body[:16] + struct.pack("=I", 200)))
        ),
    )
    found, problems = await forest.walked()
    assert sorted(found) == PATHS
    assert problems == []


async def test_without_descriptors_the_walk_goes_on_later() -> None:
    """Three are refused: the odd directory, the same by itself, and the root, which decides."""
    refusals = [errno.EMFILE] * 3
    forest = Forest()
    honest = forest.backend.answer

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.OPENDIR and refusals:
            is_odd = request.node == forest.odd or len(refusals) == 1
            if is_odd:
                return Answer(error=refusals.pop())
        return honest(request)

    forest.backend.answer = answer
    async with forest.backend.session() as session:
        files = FileSystem(session, idle_nodes=100)
        walk = TreeWalk(b"", attributes=True)
        found: list[bytes] = []
        with pytest.raises(FileError) as refused:
            await walk.next_page(files, 1000)
        assert refused.value.is_exhaustion
        while not walk.finished:
            found += (await walk.next_page(files, 1000))[0].names
        assert sorted(found) == PATHS
        await forest.owes_nothing(walk, files)


async def test_no_answer_ends_the_page_and_not_the_walk(mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0.01
    silent = [True]

    forest = Forest()
    honest = forest.backend.answer

    def answer(request: FuseRequest) -> Answer | None:
        is_odd = request.opcode is Opcode.READDIRPLUS and request.node == forest.odd
        if is_odd and silent:
            silent.clear()
            return None
        return honest(request)

    forest.backend.answer = answer
    async with forest.backend.session() as session:
        files = FileSystem(session, idle_nodes=100)
        walk = TreeWalk(b"", attributes=True)
        found: list[bytes] = []
        late = 0
        while not walk.finished:
            try:
                found += (await walk.next_page(files, 1000))[0].names
            except BackendTimeout:
                late += 1
        assert late == 1
        assert sorted(found) == PATHS
        walk.close()


@pytest.mark.parametrize("opcode", [Opcode.OPENDIR, Opcode.READDIRPLUS])
async def test_cancelled_among_them_it_owes_nothing(opcode: Opcode) -> None:
    forest = Forest()
    honest = forest.backend.answer
    scope = trio.CancelScope()

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is opcode and request.node == forest.odd:
            scope.cancel()
        return honest(request)

    forest.backend.answer = answer
    async with forest.backend.session() as session:
        files = FileSystem(session, idle_nodes=100)
        walk = TreeWalk(b"", attributes=True)
        found: list[bytes] = []
        with scope:
            found += (await walk.next_page(files, 1000))[0].names
        assert scope.cancelled_caught
        while not walk.finished:
            found += (await walk.next_page(files, 1000))[0].names
        assert sorted(found) == PATHS
        await forest.owes_nothing(walk, files)


class Leaver:
    """A client whose call is cancelled while it waits for a turn, and then has each at once."""

    def __init__(self, turns: int) -> None:
        self.scope = trio.CancelScope()
        self._turns = turns

    def is_alone(self) -> bool:
        return False

    async def take_turn(self) -> None:
        self._turns -= 1
        if not self._turns:
            self.scope.cancel()
            await trio.sleep_forever()


@pytest.mark.parametrize("turns", range(1, 8))
async def test_cancelled_while_others_have_their_turn_it_owes_nothing(
    turns: int,
) -> None:
    forest, leaver = Forest(), Leaver(turns)
    async with forest.backend.session() as session:
        files = FileSystem(session, idle_nodes=100)
        walk = TreeWalk(b"", attributes=True)
        found: list[bytes] = []
        token = SHARER.set(leaver)
        with leaver.scope:
            found += (await walk.next_page(files, 1000))[0].names
        assert leaver.scope.cancelled_caught
        while not walk.finished:
            found += (await walk.next_page(files, 1000))[0].names
        SHARER.reset(token)
        assert sorted(found) == PATHS
        await forest.owes_nothing(walk, files)


async def test_directories_that_come_again_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened anew lists those that were given, and after them nothing but files."""
    files_after = [b"more-%03d" % number for number in range(100)]
    monkeypatch.setattr("tests.unit.test_walk_together.FOLDERS", FOLDERS + files_after)
    forest = Forest()
    forest.backend.files |= dict.fromkeys(files_after, File(b"x"))
    walk = TreeWalk(b"", attributes=True)
    found: list[bytes] = []
    async with forest.backend.session() as session:
        files = FileSystem(session, idle_nodes=100)
        room = files.nodes.room
        found += (await walk.next_page(files, 1))[0].names
        walk.lapse()
        while not walk.finished:
            found += (await walk.next_page(files, 1000))[0].names
        assert sorted(found) == sorted(PATHS + files_after)
        assert files.nodes.room == room
        await forest.owes_nothing(walk, files)


@pytest.mark.parametrize("attributes", [False, True])
async def test_what_was_given_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, *, attributes: bool
) -> None:
    """Though more is found than a page has, again and again, so that some is left each time."""
    folders = FOLDERS + [b"another-%03d" % number for number in range(480)]
    monkeypatch.setattr("tests.unit.test_walk_together.FOLDERS", folders)
    monkeypatch.setattr("tests.unit.test_walk_together.INSIDE", [b"%d" % each for each in range(7)])
    forest = Forest()
    walk = TreeWalk(b"", attributes=attributes)
    found: list[bytes] = []
    async with forest.backend.session() as session:
        files = FileSystem(session, idle_nodes=1000)
        while not walk.finished:
            remembered = walk.remembered
            found += (await walk.next_page(files, 64))[0].names
        assert remembered < 700 << 10  # a page may leave three groups of directories to the next
        assert walk.remembered == 0
        await forest.owes_nothing(walk, files)
    assert len(found) == len({*found}) == 500 + 500 * 7


@pytest.mark.parametrize("attributes", [False, True])
async def test_another_file_system_at_its_place_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, *, attributes: bool
) -> None:
    """Whether its top was read to the end or not, and though all inode numbers are the same."""
    monkeypatch.setattr("vuserd.fs.walk._PORTION", 3)  # of those that are not small
    forest = Forest()
    walk = TreeWalk(b"", attributes=attributes)
    for device in range(2):
        async with forest.backend.session() as session:
            files = FileSystem(session, idle_nodes=100, device=(0, device))
            if not device:
                assert len((await walk.next_page(files, 1))[0].names) == 1
            else:
                with pytest.raises(CallError) as refused:
                    await walk.next_page(files, 1000)
                assert refused.value.code == "CHANGED"
                await forest.owes_nothing(walk, files)
            forest.backend.die()
            await session.wait_lost()
