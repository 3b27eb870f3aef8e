"""Walks and listings of directories that change, or do not say what their entries are."""

import errno
import stat
import struct
from collections.abc import AsyncIterator

import pytest
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest
from tests.fake.files import ROOT, directory_record
from vuserd.errors import CallError, FileError
from vuserd.fs import walk as walk_module
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.listings import Listing
from vuserd.fs.walk import TreeWalk
from vuserd.fs.walking.directory import DIRECTORY_BYTES

FOLDER = File(mode=stat.S_IFDIR | 0o755)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"folder": FOLDER, b"one": b"1", b"two": b"22"})


@pytest.fixture
async def files(backend: FakeBackend) -> AsyncIterator[FileSystem]:
    async with backend.session() as session:
        yield FileSystem(session, idle_nodes=0)


async def walked(files: FileSystem, path: bytes = b"", *, attributes: bool) -> list[bytes]:
    walk = TreeWalk(path, attributes=attributes)
    found = []
    while not walk.finished:
        entries, problems = await walk.next_page(files, 100)
        assert problems == []
        found += entries.names
    assert walk.remembered == 0
    walk.close()
    return found


def lists(backend: FakeBackend, kinds: dict[bytes, int]) -> None:
    """Make READDIR return these entries for the root, and none for other directories."""
    listing = b"".join(
        directory_record(name, number, kind=kind)
        for number, (name, kind) in enumerate(kinds.items(), 1)
    )

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is not Opcode.READDIR:
            return backend.serve_files(request)
        begins = request.node == ROOT and not int.from_bytes(request.body[8:16], "little")
        return Answer(listing if begins else b"")

    backend.answer = answer


@pytest.mark.parametrize("vanished", [[b"one"], [b"one", b"two", b"folder"]])
async def test_an_entry_that_vanishes_takes_no_other_with_it(
    backend: FakeBackend, files: FileSystem, vanished: list[bytes]
) -> None:
    """As QEMU's virtiofsd has it: ENOENT for the READDIRPLUS, and READDIR still has the name."""

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READDIRPLUS and request.node == ROOT:
            return Answer(error=errno.ENOENT)
        if request.opcode is Opcode.LOOKUP and request.body.rstrip(b"\0") in vanished:
            return Answer(error=errno.ENOENT)
        return lists_of(request)

    lists(backend, {b"folder": 4, b"one": 8, b"two": 8})
    lists_of = backend.answer
    backend.answer = answer
    expected = [name for name in (b"folder", b"one", b"two") if name not in vanished]
    listing = Listing(b"", attributes=True)
    entries = await listing.next_page(files, 100)
    assert entries.names == expected
    assert all(entries.nodes)
    assert listing.finished


async def test_a_walk_that_found_no_descriptors_goes_on_and_owes_nothing(
    backend: FakeBackend, files: FileSystem
) -> None:
    refusals = [
        errno.EMFILE
    ] * 2  # of the directory, and of the root: it is not the directory's own

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.OPENDIR and refusals:
            return Answer(error=refusals.pop())
        return lists_of(request)

    lists(backend, {b"folder": 4, b"one": 8})
    lists_of = backend.answer
    backend.answer = answer
    walk = TreeWalk(b"folder/..", attributes=False)
    with pytest.raises(FileError, match="open files"):
        await walk.next_page(files, 100)
    refusals += [errno.ENFILE] * 2
    with pytest.raises(FileError, match="open files"):
        await walk.next_page(files, 100)
    entries, problems = await walk.next_page(files, 100)
    assert entries.names == [b"folder", b"one"]
    assert problems == []
    walk.close()
    files.nodes.flush()
    await wait_all_tasks_blocked()
    assert +backend.lookups == {}


async def test_a_way_to_the_top_that_is_tried_again_owes_nothing(
    backend: FakeBackend, files: FileSystem
) -> None:
    refusals = [errno.ENFILE, errno.EMFILE]

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP and request.node != ROOT and refusals:
            return Answer(error=refusals.pop())
        return backend.serve_files(request)

    backend.answer = answer
    walk = TreeWalk(b"folder/folder", attributes=False)
    for _ in range(2):
        with pytest.raises(FileError):
            await walk.next_page(files, 100)
    walk.close()
    files.nodes.flush()
    await wait_all_tasks_blocked()
    assert +backend.lookups == {}


@pytest.mark.parametrize("attributes", [True, False])
async def test_directories_that_are_not_said_to_be_such_are_entered(
    backend: FakeBackend, files: FileSystem, attributes: bool
) -> None:
    """As XFS without ftype: d_type is DT_UNKNOWN."""
    inside = directory_record(b"one", 1, kind=0)
    root = directory_record(b"folder", 1, kind=0) + directory_record(b"two", 2, kind=0)

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode not in (Opcode.READDIR, Opcode.READDIRPLUS):
            return backend.serve_files(request)
        if request.opcode is Opcode.READDIRPLUS:
            return Answer(error=errno.ENOENT)  # so that each name is looked up by itself
        begins = not int.from_bytes(request.body[8:16], "little")
        return Answer((root if request.node == ROOT else inside) if begins else b"")

    backend.answer = answer
    assert sorted(await walked(files, attributes=attributes)) == [b"folder", b"folder/one", b"two"]


def with_attributes(backend: FakeBackend) -> None:
    """Have directories but the root be empty, with READDIRPLUS."""

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READDIRPLUS and request.node != ROOT:
            return Answer()
        return backend.serve_files(request)

    backend.answer = answer


async def test_readdirplus_is_the_look_up_of_directories(backend: FakeBackend) -> None:
    backend.files = {b"%03d" % number: FOLDER for number in range(40)}
    with_attributes(backend)
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=100)
        assert await walked(files, attributes=True) == [*backend.files]
        assert backend.named(Opcode.LOOKUP) == []
        assert len(backend.named(Opcode.OPENDIR)) == 41
        files.close()
        await wait_all_tasks_blocked()
        assert +backend.lookups == {}


async def test_directories_that_had_to_be_forgotten_are_looked_up_again(
    backend: FakeBackend,
) -> None:
    """Of a wide directory the backend keeps few descriptors, whoever walks."""
    backend.files = {b"%03d" % number: FOLDER for number in range(40)}
    with_attributes(backend)
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=8)
        other = TreeWalk(b"", attributes=True)
        assert await other.next_page(files, 1)
        assert files.nodes.room == 0
        assert len(backend.named(Opcode.LOOKUP)) == 0
        assert await walked(files, attributes=True) == [*backend.files]
        assert len(backend.named(Opcode.LOOKUP)) == 40
        other.close()
        assert files.nodes.room == 8
        assert await walked(files, attributes=True) == [*backend.files]
        assert len(backend.named(Opcode.LOOKUP)) == 2 * 40 - 8
        files.close()
        await wait_all_tasks_blocked()
        assert +backend.lookups == {}


async def test_a_directory_that_the_next_backend_has_is_looked_up_there(
    backend: FakeBackend,
) -> None:
    backend.files = {b"%03d" % number: FOLDER for number in range(40)}
    with_attributes(backend)
    walk = TreeWalk(b"", attributes=True)
    found: list[bytes] = []
    while not walk.finished:
        async with backend.session() as session:
            files = FileSystem(session, idle_nodes=100)
            found += (await walk.next_page(files, 39))[0].names
            looked_up = len(backend.named(Opcode.LOOKUP))
            backend.die()
            await session.wait_lost()
    assert found == [*backend.files]
    assert looked_up > 0


# --- walks that are interrupted -------------------------------------------------------------------


class Nested:
    """A backend whose directories are in each other: a/b/c, each with so many files beside it."""

    def __init__(self, files: int) -> None:
        self.names = [b"%d" % number for number in range(files)]
        self.backend = FakeBackend(
            {b"a": FOLDER, b"b": FOLDER, b"c": FOLDER, **dict.fromkeys(self.names, b"x")}
        )
        self.backend.answer = self._answer
        #: What a LOOKUP of a name looks for instead.
        self.instead: dict[bytes, bytes] = {}
        self.paths = sorted(
            prefix + name
            for prefix, below in ((b"", b"a"), (b"a/", b"b"), (b"a/b/", b"c"), (b"a/b/c/", None))
            for name in (self.names if below is None else [below, *self.names])
        )

    def _answer(self, request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP:
            name = request.body.rstrip(b"\0")
            return self.backend.serve_files(
                request._replace(body=self.instead.get(name, name) + b"\0")
            )
        if request.opcode is not Opcode.READDIR:
            return self.backend.serve_files(request)
        below = {1: b"a", 2: b"b", 3: b"c"}.get(request.node)
        offset, size = struct.unpack_from("=QI", request.body, 8)
        listing = b""
        names = [*([] if below is None else [below]), *self.names]
        for number, name in list(enumerate(names, 1))[offset:]:
            record = directory_record(name, number, kind=4 if name == below else 8)
            if len(listing) + len(record) > size:
                break
            listing += record
        return Answer(listing)


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a walk come back to each directory many times."""
    monkeypatch.setattr(walk_module, "_PORTION", 3)
    monkeypatch.setattr(walk_module, "_READERS", 2)


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("interrupted", ["never", "lapses", "dies"])
@pytest.mark.parametrize("most_open", [0, 1, 64])
async def test_an_interrupted_walk_gives_each_entry_once(
    monkeypatch: pytest.MonkeyPatch, interrupted: str, most_open: int
) -> None:
    monkeypatch.setattr(walk_module, "_MOST_OPEN", most_open)
    nested = Nested(10)
    backend = nested.backend
    walk = TreeWalk(b"", attributes=False)
    found: list[bytes] = []
    while not walk.finished:
        async with backend.session() as session:
            files = FileSystem(session, idle_nodes=0)
            while not walk.finished:
                entries, problems = await walk.next_page(files, 4)
                assert problems == []
                assert entries.names or walk.finished
                found += entries.names
                await wait_all_tasks_blocked()
                assert len(backend.open_handles) <= most_open + 1
                if interrupted == "lapses":
                    walk.lapse()
                if interrupted == "dies":
                    backend.die()
                    await session.wait_lost()
                    break
            files.close()
            await wait_all_tasks_blocked()
            if interrupted != "dies":
                assert +backend.lookups == {}
                assert backend.open_handles == set()
    assert walk.remembered == 0
    walk.close()
    assert sorted(found) == nested.paths


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("replaced", [b"a", b"b", b"c"])
async def test_a_directory_that_was_replaced_while_it_was_read_is_a_problem(
    replaced: bytes,
) -> None:
    """Of what was begun the rest is not known; what was only named is as it is now."""
    nested = Nested(10)
    nested.backend.files[b"another"] = FOLDER
    walk = TreeWalk(b"", attributes=False)
    found: list[bytes] = []
    problems: list[tuple[bytes, str]] = []
    async with nested.backend.session() as session:
        files = FileSystem(session, idle_nodes=0)
        while not walk.finished:
            entries, wrong = await walk.next_page(files, 4)
            found += entries.names
            problems += [(one.path, str(one.error.code)) for one in wrong]
            inside = {b"a": b"a/", b"b": b"a/b/", b"c": b"a/b/c/"}[replaced]
            if any(path.startswith(inside) for path in found) and not nested.instead:
                nested.instead = {replaced: b"another"}
                walk.lapse()
        assert walk.remembered == 0
        walk.close()
        files.close()
        await wait_all_tasks_blocked()
        assert +nested.backend.lookups == {}
    assert inside[:-1] in {path for path, _ in problems}
    assert {code for _, code in problems} == {"CHANGED"}
    assert len(found) == len({*found})
    assert {path for path in nested.paths if not path.startswith(b"a/")} <= {*found}


@pytest.mark.parametrize("attributes", [False, True])
async def test_a_top_that_was_replaced_is_told(
    monkeypatch: pytest.MonkeyPatch, attributes: bool
) -> None:
    monkeypatch.setattr(walk_module, "_PORTION", 3)
    more_than_small = {b"%03d" % number: File() for number in range(120)}
    backend = FakeBackend({b"folder": FOLDER, b"another": FOLDER} | more_than_small)
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=0)
        walk = TreeWalk(b"folder", attributes=attributes)
        await walk.next_page(files, 1)
        walk.lapse()
        backend.answer_to(
            Opcode.LOOKUP,
            lambda request: backend.serve_files(request._replace(body=b"another\0")),
        )
        with pytest.raises(CallError, match="was replaced") as changed:
            await walk.next_page(files, 100)
        assert changed.value.code == "CHANGED"
        walk.close()
        files.close()
        await wait_all_tasks_blocked()
        assert +backend.lookups == {}
        assert backend.open_handles == set()


@pytest.mark.usefixtures("small_portions")
async def test_a_walk_knows_what_it_remembers(files: FileSystem, backend: FakeBackend) -> None:
    """Entries that wait, directories that are not done, and the names that were given of each."""
    backend.files = {b"%03d" % number: File() for number in range(100)}
    walk = TreeWalk(b"", attributes=False)
    await walk.next_page(files, 10)
    assert walk.remembered > walk_module._ENTRY  # one waits at least
    await walk.next_page(files, 80)
    assert walk.remembered >= 8 * 80
    walk.lapse()
    before = walk.remembered
    await walk.next_page(files, 1)
    assert walk.remembered > before
    while not walk.finished:
        await walk.next_page(files, 100)
    assert walk.remembered == 0
    backend.files = {b"%03d" % number: FOLDER for number in range(10)}
    walk = TreeWalk(b"", attributes=False)
    await walk.next_page(files, 1)
    assert walk.remembered > 4 * DIRECTORY_BYTES  # three and the top
    walk.close()


async def test_a_page_has_few_problems(backend: FakeBackend, files: FileSystem) -> None:
    """A tree may have a million directories that cannot be read."""
    lists(backend, {b"%03d" % number: 4 for number in range(200)})
    listed = backend.answer

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP:
            return Answer(error=errno.EACCES)
        return listed(request)

    backend.answer = answer
    walk = TreeWalk(b"", attributes=False)
    entries: list[bytes] = []
    problems: list[walk_module.WalkProblem] = []
    while not walk.finished:
        some, wrong = await walk.next_page(files, 20)
        assert len(some.names) <= 20
        assert len(wrong) < 20 + walk_module._READERS
        entries += some.names
        problems += wrong
    assert len(entries) == len({problem.path for problem in problems}) == 200
    walk.close()
