"""Listings in pages: an entry that stays is listed once, or the client gets CHANGED."""

import errno
import stat
from collections.abc import AsyncIterator

import pytest
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.fake.backend import MAX_PAGES, Answer, FakeBackend, File, FuseRequest
from tests.faults.catalogue import fault
from tests.listings import names
from vuserd.errors import BackendError, CallError, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.listings import ContinuationTable, Listing
from vuserd.fs.nodes import Hold
from vuserd.fs.reader import DirectoryReader
from vuserd.fs.walk import TreeWalk
from vuserd.users.holdings import Holdings

FOLDER = File(mode=stat.S_IFDIR | 0o755)


@pytest.fixture
def backend() -> FakeBackend:
    """Return a backend that gives each opening of a directory offsets of its own."""
    files: dict[bytes, File | bytes] = {b"file-%d" % number: b"%d" % number for number in range(50)}
    backend = FakeBackend({b"folder": FOLDER, b"other": FOLDER, **files})
    backend.orders_differ = True
    return backend


@pytest.fixture
async def files(backend: FakeBackend) -> AsyncIterator[FileSystem]:
    async with backend.session() as session:
        yield FileSystem(session, idle_nodes=10)


async def owes_nothing(backend: FakeBackend, files: FileSystem) -> None:
    files.close()
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()
    assert not +backend.lookups


def opened(backend: FakeBackend) -> int:
    return len(backend.named(Opcode.OPENDIR))


# --- pages ----------------------------------------------------------------------------------------


@fault(
    "offsets-of-one-opening",
    done="each opening of a directory has an order and offsets of its own",
    must="All pages of a listing come from one opening: what is there all the time is given once.",
)
@pytest.mark.parametrize("path", [b"", b"folder"])
@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 51, 52, 53, 1000])
async def test_all_pages_come_from_one_open_directory(
    files: FileSystem, backend: FakeBackend, path: bytes, attributes: bool, limit: int
) -> None:
    found = await names(files, path, attributes=attributes, limit=limit)
    assert sorted(found) == sorted(backend.files)
    assert opened(backend) == 1
    await owes_nothing(backend, files)


async def test_two_listings_do_not_disturb_each_other(
    files: FileSystem, backend: FakeBackend
) -> None:
    one, other = Listing(b"", attributes=False), Listing(b"", attributes=False)
    found: dict[Listing, list[bytes]] = {one: [], other: []}
    for limit in (20, 20, 20):
        for listing in (one, other):
            found[listing] += (await listing.next_page(files, limit)).names
    assert one.finished
    assert other.finished
    assert sorted(found[one]) == sorted(found[other]) == sorted(backend.files)
    assert found[one] != found[other]
    await owes_nothing(backend, files)


@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 30])
async def test_a_listing_goes_on_by_name_where_it_lapsed(
    files: FileSystem, backend: FakeBackend, attributes: bool, limit: int
) -> None:
    listing = Listing(b"folder", attributes=attributes)
    found: list[bytes] = []
    while not listing.finished:
        page = await listing.next_page(files, limit)
        assert len(page.names) <= limit
        assert page.names or listing.finished
        found += page.names
        listing.lapse()
        await wait_all_tasks_blocked()
        assert backend.open_handles == set()
    assert sorted(found) == sorted(backend.files)
    await owes_nothing(backend, files)


@fault(
    "dies-between-pages",
    done="the backend ends between two pages of a listing, and the next one has another order",
    must="The listing goes on: what was given is left out by name.",
)
@pytest.mark.parametrize("attributes", [False, True])
async def test_a_listing_goes_on_with_the_next_backend(
    backend: FakeBackend, attributes: bool
) -> None:
    listing = Listing(b"folder", attributes=attributes)
    found: list[bytes] = []
    for limit in (5, 10, 1000):
        async with backend.session() as session:
            files = FileSystem(session, idle_nodes=10)
            found += (await listing.next_page(files, limit)).names
            if not listing.finished:
                backend.die()
                await session.wait_lost()
                with pytest.raises(BackendError):
                    await listing.next_page(files, limit)
            files.close()
    assert listing.finished
    assert sorted(found) == sorted(backend.files)
    assert len(found) == len(backend.files)


async def test_what_comes_and_goes_meanwhile_takes_no_other_with_it(
    files: FileSystem, backend: FakeBackend
) -> None:
    listing = Listing(b"folder", attributes=False)
    found = (await listing.next_page(files, 20)).names
    listing.lapse()
    given = [name for name in found if name not in (b"folder", b"other")]
    gone = {given[3], next(name for name in backend.files if name not in (*found, b"folder"))}
    there = {*backend.files} - gone
    for name in gone:
        # It keeps its place: the fake backend numbers its nodes by that.
        backend.files = {
            (b"new-" + name if key == name else key): file for key, file in backend.files.items()
        }
    while not listing.finished:
        found += (await listing.next_page(files, 7)).names
    assert there <= {*found}
    assert len(found) == len({*found})
    await owes_nothing(backend, files)


async def test_a_reader_that_was_closed_leaves_out_what_it_gave(
    files: FileSystem, backend: FakeBackend
) -> None:
    reader = DirectoryReader(attributes=False)
    with Hold(files.nodes) as hold:
        node = await files.directory(b"folder", hold)
        first = await reader.read(files, node, 5)
        assert reader.has_begun
        assert reader.is_open
        reader.close()
        rest: list[bytes] = []
        while not reader.finished:
            rest += (await reader.read(files, node, 1000)).names
    assert len(first.names) == 5
    assert sorted(first.names + rest) == sorted(backend.files)
    await owes_nothing(backend, files)


@fault(
    "replaced-between-pages",
    done="a path leads to another directory than the page before came from",
    must="The caller gets CHANGED.",
)
async def test_a_directory_that_was_replaced_is_told(
    files: FileSystem, backend: FakeBackend
) -> None:
    listing = Listing(b"folder/..", attributes=False)
    listing_below = Listing(b"folder", attributes=False)
    await listing.next_page(files, 5)
    await listing_below.next_page(files, 5)

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP and request.body == b"folder\0":
            return backend.serve_files(request._replace(body=b"other\0"))
        return backend.serve_files(request)

    backend.answer = answer
    with pytest.raises(CallError, match="was replaced") as changed:
        await listing_below.next_page(files, 5)
    assert changed.value.code == "CHANGED"
    assert len((await listing.next_page(files, 5)).names) == 5
    listing.close()
    listing_below.close()
    await owes_nothing(backend, files)


@pytest.mark.parametrize("lapses", [False, True])
@pytest.mark.parametrize("ino", [None, 7])
async def test_another_directory_after_a_lapse(
    files: FileSystem, backend: FakeBackend, lapses: bool, ino: int | None
) -> None:
    """Of the same number it passes for the same where nothing holds it: it may well be that one."""
    backend.files[b"folder"] = FOLDER._replace(ino=7)
    backend.files[b"other"] = FOLDER._replace(ino=ino)
    listing = Listing(b"folder", attributes=False)
    await listing.next_page(files, 5)
    if lapses:
        listing.lapse()

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP:
            return backend.serve_files(request._replace(body=b"other\0"))
        return backend.serve_files(request)

    backend.answer = answer
    if lapses and ino == 7:
        await listing.next_page(files, 5)
    else:
        with pytest.raises(CallError) as changed:
            await listing.next_page(files, 5)
        assert changed.value.code == "CHANGED"
    listing.close()
    await owes_nothing(backend, files)


@fault(
    "elsewhere-between-pages",
    done="a directory on another file system was not read for a while, and is looked up anew",
    must="The caller gets CHANGED, as nothing shows that it is the same file.",
)
@pytest.mark.parametrize("submounts", [False, True])
async def test_a_directory_elsewhere_is_not_known_after_a_lapse(
    backend: FakeBackend, submounts: bool
) -> None:
    """On another file system the inode number may be that of any other directory's."""
    if submounts:
        backend.files[b"folder"] = FOLDER._replace(flags=1)
    else:
        backend.flags = MAX_PAGES
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=10)
        listing = Listing(b"folder", attributes=False)
        await listing.next_page(files, 5)
        await listing.next_page(files, 5)  # it is held
        listing.lapse()
        with pytest.raises(CallError, match="not known") as changed:
            await listing.next_page(files, 5)
        assert changed.value.code == "CHANGED"
        listing.close()
        await owes_nothing(backend, files)


@fault(
    "covered-between-pages",
    done="a directory is looked up anew, and another file system was mounted over it or under it"
    " taken away, with a directory of the same inode number",
    must="The caller gets CHANGED.",
)
@pytest.mark.parametrize("kind", [Listing, TreeWalk])
@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("flags", [0, 1])
async def test_a_directory_on_another_mount_is_not_the_same(
    files: FileSystem,
    backend: FakeBackend,
    kind: type[Listing | TreeWalk],
    attributes: bool,
    flags: int,
) -> None:
    backend.files = {b"folder": FOLDER._replace(ino=7, flags=flags)}
    backend.files |= dict.fromkeys([b"%03d" % number for number in range(3000)], File())
    going = kind(b"folder", attributes=attributes)
    await going.next_page(files, 5)
    going.lapse()
    backend.files[b"folder"] = FOLDER._replace(ino=7, flags=1 - flags)
    with pytest.raises(CallError, match="was replaced") as changed:
        await going.next_page(files, 5000)
    assert changed.value.code == "CHANGED"
    going.close()
    await owes_nothing(backend, files)


@pytest.mark.parametrize("opcode", [Opcode.LOOKUP, Opcode.OPENDIR, Opcode.READDIR])
@pytest.mark.parametrize("lapses", [False, True])
async def test_a_page_that_failed_can_be_asked_for_again(
    files: FileSystem, backend: FakeBackend, opcode: Opcode, lapses: bool
) -> None:
    listing = Listing(b"folder", attributes=False)
    found = (await listing.next_page(files, 5)).names
    if lapses:
        listing.lapse()
        backend.answer_to(opcode, Answer(error=errno.EIO))
        with pytest.raises(FileError):
            await listing.next_page(files, 5)
        await wait_all_tasks_blocked()
        assert backend.open_handles == set()
    elif opcode is not Opcode.OPENDIR:  # which is not asked again
        backend.answer_to(opcode, Answer(error=errno.EIO))
        with pytest.raises(FileError):
            await listing.next_page(files, 5)
        await wait_all_tasks_blocked()
        assert len(backend.open_handles) == len(files.open_listings) == 1
    backend.answer = backend.serve_files
    while not listing.finished:
        found += (await listing.next_page(files, 20)).names
    assert sorted(found) == sorted(backend.files)
    await owes_nothing(backend, files)


@pytest.mark.parametrize("path", [b"file-1", b"missing"])
async def test_what_is_no_directory_is_not_listed(
    files: FileSystem, backend: FakeBackend, path: bytes
) -> None:
    listing = Listing(path, attributes=False)
    with pytest.raises(FileError) as refused:
        await listing.next_page(files, 5)
    assert refused.value.code == ("ENOENT" if path == b"missing" else "ENOTDIR")
    assert opened(backend) == 0
    assert not files.open_listings
    await owes_nothing(backend, files)


# --- walks ----------------------------------------------------------------------------------------


def one_level(backend: FakeBackend) -> None:
    """Give the root all names, and directories none."""

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode in (Opcode.READDIR, Opcode.READDIRPLUS) and request.node != 1:
            return Answer()
        return backend.serve_files(request)

    backend.answer = answer


@pytest.mark.parametrize("attributes", [False, True])
async def test_a_walk_goes_on_with_the_next_backend(backend: FakeBackend, attributes: bool) -> None:
    one_level(backend)
    backend.max_pages = 64  # so that a directory comes in several replies
    walk = TreeWalk(b"", attributes=attributes)
    found: list[bytes] = []
    for limit in (5, 10, 1000):
        async with backend.session() as session:
            files = FileSystem(session, idle_nodes=10)
            entries, problems = await walk.next_page(files, limit)
            assert problems == []
            found += entries.names
            backend.die()
            await session.wait_lost()
            files.close()
    assert walk.finished
    assert sorted(found) == sorted(backend.files)


async def test_a_walk_that_lapsed_goes_on(files: FileSystem, backend: FakeBackend) -> None:
    one_level(backend)
    walk = TreeWalk(b"", attributes=False)
    found: list[bytes] = []
    while not walk.finished:
        entries, problems = await walk.next_page(files, 9)
        assert problems == []
        found += entries.names
        walk.lapse()
        await wait_all_tasks_blocked()
        assert backend.open_handles == set()
    assert sorted(found) == sorted(backend.files)
    walk.close()
    await owes_nothing(backend, files)


# --- tokens ---------------------------------------------------------------------------------------


class Going:
    """Something that goes on, and knows when it was let go."""

    def __init__(self, remembered: int = 8) -> None:
        self.remembered = remembered
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_a_token_goes_on_once() -> None:
    table: ContinuationTable[Going] = ContinuationTable(3, Holdings(99, 1 << 20))
    going = Going()
    token = table.keep(going, ("files", b"a"))
    assert table.take(token, ("files", b"a")) is going
    assert not going.is_closed
    with pytest.raises(CallError, match="this page is gone") as gone:
        table.take(token, ("files", b"a"))
    assert gone.value.code == "CHANGED"
    assert table.keep(going, ("files", b"a")) != token


def test_a_page_that_failed_keeps_its_token() -> None:
    table: ContinuationTable[Going] = ContinuationTable(3, Holdings(99, 1 << 20))
    going = Going()
    token = table.keep(going, ("files", b"a"))
    table.take(token, ("files", b"a"))
    assert table.keep(going, ("files", b"a"), token) == token
    assert table.take(token, ("files", b"a")) is going


@pytest.mark.parametrize("begun", [("files", b"b"), ("other", b"a"), ("files",)])
def test_a_token_of_something_else_takes_nothing(begun: tuple[object, ...]) -> None:
    table: ContinuationTable[Going] = ContinuationTable(3, Holdings(99, 1 << 20))
    going = Going()
    token = table.keep(going, ("files", b"a"))
    with pytest.raises(CallError, match="not the token") as refused:
        table.take(token, begun)
    assert refused.value.code == "BAD_REQUEST"
    assert table.take(token, ("files", b"a")) is going


@pytest.mark.parametrize("token", [b"", bytes(8), b"\0" * 7 + b"\2", b"\xff" * 8, b"x" * 100])
def test_a_token_that_never_was(token: bytes) -> None:
    table: ContinuationTable[Going] = ContinuationTable(3, Holdings(99, 1 << 20))
    table.keep(Going(), ("files", b"a"))
    with pytest.raises(CallError, match="not the token") as refused:
        table.take(token, ("files", b"a"))
    assert refused.value.code == "BAD_REQUEST"


def test_the_one_that_waited_longest_makes_room() -> None:
    table: ContinuationTable[Going] = ContinuationTable(2, Holdings(99, 1 << 20))
    first, second, third = Going(), Going(), Going()
    tokens = [table.keep(going, ("files",)) for going in (first, second, third)]
    assert [going.is_closed for going in (first, second, third)] == [True, False, False]
    with pytest.raises(CallError, match="of the last 2") as gone:
        table.take(tokens[0], ("files",))
    assert gone.value.code == "CHANGED"
    table.close()
    assert second.is_closed
    assert third.is_closed


def test_what_its_user_may_have_is_made_room_for_by_this_client_alone() -> None:
    holdings = Holdings(2, 100)
    table: ContinuationTable[Going] = ContinuationTable(9, holdings)
    others: ContinuationTable[Going] = ContinuationTable(9, holdings)
    first, second, third, other = Going(), Going(60), Going(60), Going()
    others.keep(other, ("files",))
    for going in (first, second, third):
        table.keep(going, ("files",))
    assert [going.is_closed for going in (first, second, third)] == [True, True, False]
    assert (holdings.count, holdings.size) == (2, 68)
    table.close()
    holdings.take()
    with pytest.raises(CallError, match="as many as one user may have") as refused:
        table.keep(first, ("files",))
    assert (refused.value.code, refused.value.fields) == ("TOO_LARGE", {"limit": 2})
    holdings.give_back()
    large = Going(93)
    with pytest.raises(CallError, match="would take 101 bytes") as refused:
        table.keep(large, ("files",))
    assert (refused.value.code, refused.value.fields) == ("TOO_LARGE", {"limit": 100})
    assert large.is_closed
    assert not other.is_closed
    assert (holdings.count, holdings.size) == (1, 8)


def test_nothing_is_ended_where_that_makes_no_room() -> None:
    holdings = Holdings(3, 100)
    table: ContinuationTable[Going] = ContinuationTable(2, holdings)
    first, second = Going(20), Going(20)
    tokens = [table.keep(going, ("files",)) for going in (first, second)]
    holdings.take(50)  # of another client
    with pytest.raises(CallError, match="would take 141 bytes") as refused:
        table.keep(Going(51), ("files",))
    assert refused.value.code == "TOO_LARGE"
    assert [first.is_closed, second.is_closed] == [False, False]
    assert table.take(tokens[1], ("files",)) is second
    table.end(second)
    table.keep(Going(50), ("files",))
    assert first.is_closed


def test_what_is_read_on_counts_meanwhile() -> None:
    holdings = Holdings(2, 100)
    table: ContinuationTable[Going] = ContinuationTable(9, holdings)
    going = Going()
    token = table.keep(going, ("files",))
    table.take(token, ("files",))
    assert (holdings.count, holdings.size) == (1, 8)
    going.remembered = 50
    token = table.keep(going, ("files",))
    assert (holdings.count, holdings.size) == (1, 50)
    table.take(token, ("files",))
    table.end(going)
    table.end(going)
    assert (holdings.count, holdings.size) == (0, 0)
