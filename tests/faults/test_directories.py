"""Directories: entries that no directory has, and listings without an end."""

import errno
import stat as modes
import struct
from collections.abc import Awaitable, Callable
from itertools import compress

import pytest
import trio
from trio.testing import MockClock

from protocol.fuse import Opcode
from tests.fake.backend import FakeBackend
from tests.fake.files import ROOT, Answer, FuseRequest, directory_record
from tests.faults.catalogue import BROKEN, EIO, ERRNO, PASSED_ON, UNHARMED, fault
from tests.faults.harness import (
    ENTRY_ATTRIBUTES,
    MODE,
    NANOSECONDS,
    SIZE,
    Call,
    Front,
    entries,
    names,
    spoiled,
)
from tests.listings import page
from vuserd.delivery.pages import TreePages
from vuserd.errors import FileError, VuserdError
from vuserd.fs.listings import Listing
from vuserd.fs.walk import TreeWalk

NO_ENTRY = bytes(128)
#: READDIRs after which a listing has to have ended, whatever the backend says.
ENOUGH = 200

GOOD = directory_record(b"Image", 1)


def entry(node: int, mode: int = 0o100644) -> bytes:
    """Return struct fuse_entry_out of a node of the default file system's kind."""
    plain = struct.pack("=QQQQII", node, 0, 1, 1, 0, 0) + bytes(88)
    return spoiled(plain, ENTRY_ATTRIBUTES + MODE, "=I", mode)


def row(name: str, listing: bytes, words: str, done: str, *, plus: bool = False) -> object:
    return pytest.param(listing, plus, words, marks=fault(name, done=done, must=BROKEN), id=name)


@pytest.mark.parametrize(
    ("listing", "plus", "words"),
    [
        row(
            "name-empty",
            GOOD + directory_record(b"", 2),
            "a name of 0 bytes",
            "a directory entry has an empty name",
        ),
        row(
            "name-4096",
            directory_record(b"x" * 4096, 1),
            "a name of 4096 bytes",
            "a directory entry's name has 4096 bytes, one more than Linux shows of any",
        ),
        row(
            "name-length-huge",
            directory_record(b"x", 1, length=0xFFFFFFF8),
            "a name of 4294967288 bytes",
            "a directory entry says that its name has nearly 4 GiB",
        ),
        row(
            "name-leaves-reply",
            directory_record(b"x", 1, length=200),
            "leaves its buffer",
            "a directory entry's name goes on after the end of the reply",
        ),
        row(
            "name-slash",
            directory_record(b"../etc/passwd", 1),
            "a name that no directory can hold",
            "a directory entry's name has slashes",
        ),
        row(
            "name-is-slash",
            directory_record(b"/", 1),
            "a name that no directory can hold",
            "a directory entry's name is a slash",
        ),
        row(
            "name-nul",
            directory_record(b"Image\0.txt", 1),
            "a name that no directory can hold",
            "a directory entry's name has a NUL in it",
        ),
        row(
            "dot-with-node",
            entry(5) + GOOD + entry(6, 0o40755) + directory_record(b".", 2),
            "a node for '.'",
            "READDIRPLUS gives a node for `.`, in the middle of other entries",
            plus=True,
        ),
        row(
            "dot-dot-with-node",
            entry(6, 0o40755) + directory_record(b"..", 1),
            r"a node for '\.\.'",
            "READDIRPLUS gives a node for `..`",
            plus=True,
        ),
        row(
            "record-cut-in-head",
            GOOD + GOOD[:10],
            "10 bytes left",
            "a listing ends in the middle of an entry's head",
        ),
        row(
            "record-cut-in-entry",
            entry(5) + GOOD + entry(6),
            "128 bytes left",
            "a READDIRPLUS listing ends after an entry's attributes",
            plus=True,
        ),
        row(
            "plus-without-attributes",
            GOOD,
            "32 bytes left",
            "READDIRPLUS is answered as if it were READDIR",
            plus=True,
        ),
    ],
)
async def test_a_listing_that_cannot_be_ends_the_session(
    front: Front, listing: bytes, plus: bool, words: str
) -> None:
    front.tell(Opcode.READDIRPLUS if plus else Opcode.READDIR, Answer(listing))
    await front.breaks(entries if plus else names, words)


def listing_once(backend: FakeBackend, listing: bytes) -> Callable[[FuseRequest], Answer | None]:
    """Answer READDIR and READDIRPLUS with a listing, then with its end; count what it looks up."""

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode not in (Opcode.READDIR, Opcode.READDIRPLUS):
            return backend.serve_files(request)
        if struct.unpack_from("=QQ", request.body)[1]:
            return Answer()
        if request.opcode is Opcode.READDIRPLUS:
            [node] = struct.unpack_from("=Q", listing)
            if node not in (0, ROOT):
                backend.lookups[node] += 1
        return Answer(listing)

    return answer


@fault(
    "name-4095",
    done="a directory entry's name has 300 bytes, or 4095, the most that Linux shows of any",
    must=PASSED_ON,
)
@pytest.mark.parametrize("length", [256, 300, 4095])
async def test_a_name_that_only_some_file_systems_have(front: Front, length: int) -> None:
    name = b"x" * length
    front.backend.files[name] = front.backend.files[b"Image"]
    assert name in await names(front.files)
    assert name in await entries(front.files)
    if length < 4095:
        assert (await front.files.stat(b"/" + name, follow=True)).size == 4096
        [asked] = front.backend.named(Opcode.LOOKUP)
        assert asked.body == name + b"\0"
    await front.serves()


@pytest.mark.parametrize(
    ("spoilt", "field", "value"),
    [
        pytest.param(
            entry(1, 0o40755),
            "mode",
            0o40755,
            marks=fault(
                "plus-node-is-root",
                done="READDIRPLUS gives node id 1 for a name",
                must="It is shown; no reference to the root is given back.",
            ),
            id="plus-node-is-root",
        ),
        pytest.param(
            spoiled(entry(5), ENTRY_ATTRIBUTES + SIZE, "=q", -1),
            "size",
            2**64 - 1,
            marks=fault(
                "plus-size-negative",
                done="READDIRPLUS gives a node with a negative size",
                must=PASSED_ON,
            ),
            id="plus-size-negative",
        ),
        pytest.param(
            entry(5, 0o170644),
            "mode",
            0o170644,
            marks=fault(
                "plus-mode-impossible",
                done="READDIRPLUS gives a node of a type that does not exist",
                must=PASSED_ON,
            ),
            id="plus-mode-impossible",
        ),
        pytest.param(
            entry(5),
            "ino",
            0,
            marks=fault(
                "plus-ino-0", done="READDIRPLUS gives a node of inode number 0", must=PASSED_ON
            ),
            id="plus-ino-0",
        ),
        pytest.param(
            spoiled(entry(5), ENTRY_ATTRIBUTES + NANOSECONDS, "=I", 2**32 - 1),
            "atime_nsec",
            2**32 - 1,
            marks=fault(
                "plus-nanoseconds",
                done="READDIRPLUS gives a time with four seconds of nanoseconds",
                must=PASSED_ON,
            ),
            id="plus-nanoseconds",
        ),
    ],
)
async def test_odd_attributes_in_a_listing(
    front: Front, spoilt: bytes, field: str, value: int
) -> None:
    front.backend.answer = listing_once(front.backend, spoilt + GOOD)
    [found] = await page(front.files, attributes=True)
    assert found.name == b"Image"
    assert found.entry is not None
    assert getattr(found.entry.attributes, field) == value
    await front.serves()


@fault(
    "name-twice",
    done="a listing has one name twice, the entries of different types",
    must="Both are given: which one is there LOOKUP tells.",
)
async def test_a_name_that_is_there_twice(front: Front) -> None:
    listing = GOOD + directory_record(b"Image", 2, kind=modes.S_IFDIR >> 12)
    front.backend.answer = listing_once(front.backend, listing)
    assert [(one.name, one.type) for one in await page(front.files)] == [
        (b"Image", 8),
        (b"Image", 4),
    ]
    await front.serves()


@fault("offset-stands", done="a listing says that it goes on where it began", must=EIO)
@pytest.mark.parametrize("call", [names, entries])
async def test_a_listing_that_goes_on_where_it_began(front: Front, call: Call) -> None:
    front.tell(Opcode.READDIR, Answer(directory_record(b"Image", 0)))
    if call is entries:
        front.tell(Opcode.READDIRPLUS, Answer(NO_ENTRY + directory_record(b"Image", 0)))
    with pytest.raises(FileError, match="lead back") as raised:
        await call(front.files)
    assert raised.value.code == "EIO"
    await front.serves()


def going_on(*offsets: int, name: bytes | None = None) -> object:
    """Answer each READDIR with one entry that leads to the next offset; give up after ENOUGH."""
    asked = 0

    def answer(backend: FakeBackend, request: FuseRequest) -> Answer:
        nonlocal asked
        asked += 1
        if asked > ENOUGH:
            backend.die()
        offset = offsets[(asked - 1) % len(offsets)] if offsets else asked
        record = directory_record(name or b"name-%d" % asked, offset)
        return Answer(NO_ENTRY + record if request.opcode is Opcode.READDIRPLUS else record)

    return answer


@pytest.mark.parametrize(
    ("offsets", "name", "call"),
    [
        pytest.param(
            (7, 9),
            None,
            names,
            marks=fault(
                "offsets-circle",
                done="the offsets of a listing go A, B, A over its replies, with ever new names",
                must=EIO,
            ),
            id="offsets-circle",
        ),
        pytest.param(
            (7, 9, 0),
            b".",
            names,
            marks=fault(
                "offsets-circle-of-dots",
                done="the offsets of a listing go in a circle, and all replies are `.` only",
                must=EIO,
            ),
            id="offsets-circle-of-dots",
        ),
        pytest.param(
            (),
            b".",
            names,
            marks=fault(
                "listing-of-dots-without-end",
                done="a listing never ends: each reply is `.` only, with an offset that is new",
                must=EIO,
            ),
            id="listing-of-dots-without-end",
        ),
    ],
)
async def test_a_listing_without_an_end(
    front: Front, offsets: tuple[int, ...], name: bytes | None, call: Call
) -> None:
    front.tell(Opcode.READDIR, going_on(*offsets, name=name))  # type: ignore[arg-type]
    with pytest.raises(FileError, match="lead back") as raised:
        await call(front.files)
    assert raised.value.code == "EIO"
    assert len(front.backend.named(Opcode.READDIR)) <= ENOUGH
    await front.serves()


@fault(
    "offsets-circle-in-page",
    done="the first entry of a reply has the offset where the reply began, the last one another",
    must=EIO,
)
async def test_a_page_that_would_go_on_where_it_began(front: Front) -> None:
    listing = directory_record(b"one", 0) + directory_record(b"two", 5)
    front.tell(Opcode.READDIR, Answer(listing))
    with pytest.raises(FileError, match="lead back") as raised:
        await page(front.files, limit=1)
    assert raised.value.code == "EIO"
    await front.serves()


@fault(
    "listing-without-end",
    done="a directory has ever more entries, with ever new names",
    must="A call ends at its limit of entries, and says where it would go on.",
)
async def test_an_endless_directory_comes_in_pages(front: Front) -> None:
    front.tell(Opcode.READDIR, going_on())  # type: ignore[arg-type]
    listing = Listing(b"", attributes=False)
    for _ in range(2):
        assert len((await listing.next_page(front.files, 50)).names) == 50
        assert not listing.finished
    listing.close()
    asked = [struct.unpack_from("=QQ", one.body)[1] for one in front.backend.named(Opcode.READDIR)]
    assert asked == [*range(100)]  # as if it were one
    await front.serves()


async def _listing(front: Front) -> None:
    listing = Listing(b"", attributes=False)
    while not listing.finished:
        await listing.next_page(front.files, 1)


async def _walk(front: Front) -> None:
    walk = TreeWalk(b"", attributes=False)
    while not walk.finished:
        _, problems = await walk.next_page(front.files, 1)
        for problem in problems:
            raise problem.error


async def _tree(front: Front) -> None:
    pages = TreePages(b"")
    while not pages.finished:
        page = await pages.next_page(front.files, 1, 128 << 10)
        page.content.give_back()
        for _, error in page.problems:
            raise error


@fault(
    "offsets-circle-over-pages",
    done="the offsets of a directory go in a circle that is longer than a page",
    must=EIO,
)
@pytest.mark.parametrize("read", [_listing, _walk, _tree])
async def test_a_circle_that_is_longer_than_a_page(
    front: Front, read: Callable[[Front], Awaitable[None]]
) -> None:
    opcode = Opcode.READDIRPLUS if read is _tree else Opcode.READDIR
    front.tell(opcode, going_on(*range(1, 21)))  # type: ignore[arg-type]
    with pytest.raises(FileError, match="lead back") as raised:
        await read(front)
    assert raised.value.code == "EIO"
    await front.serves()


@fault(
    "dot-in-the-middle",
    done="`.` and `..` stand in the middle of a listing, without nodes",
    must="They are left out; the session goes on.",
)
async def test_dots_in_the_middle_are_left_out(front: Front) -> None:
    listing = b"".join(
        directory_record(name, at) for at, name in enumerate((b"a", b".", b"..", b"b"), 1)
    )

    def answer(_: FakeBackend, request: FuseRequest) -> Answer:
        offset = struct.unpack_from("=QQ", request.body)[1]
        return Answer(b"" if offset else listing)

    front.tell(Opcode.READDIR, answer)
    assert await names(front.files) == [b"a", b"b"]
    await front.serves()


@fault(
    "plus-more-than-asked",
    done="READDIRPLUS brings more entries than the call may have",
    must="Those over the limit are given back like the others.",
)
async def test_more_entries_than_wanted_are_given_back(front: Front) -> None:
    assert len(await page(front.files, attributes=True, limit=1)) == 1
    await front.serves()


@fault(
    "plus-late",
    done="READDIRPLUS is answered after its caller was cancelled",
    must="All lookup references that it brought are given back.",
)
async def test_a_late_listing_is_given_back(
    front: Front,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.READDIRPLUS, None)
    with trio.move_on_after(1):
        await entries(front.files)
    [request] = front.backend.named(Opcode.READDIRPLUS)
    answer = front.backend.serve_files(request)
    assert answer is not None
    front.backend.reply(request, answer)
    await front.serves()


@fault(
    "entry-type-contradicts",
    done="a listing says that a name is a directory, and LOOKUP says that it is a file",
    must="A walk shows the entry, does not go into it, and ends.",
)
async def test_an_entry_that_is_no_directory_after_all(front: Front) -> None:
    def answer(_: FakeBackend, request: FuseRequest) -> Answer:
        offset = struct.unpack_from("=QQ", request.body)[1]
        return Answer(b"" if offset else directory_record(b"Image", 1, kind=modes.S_IFDIR >> 12))

    front.tell(Opcode.READDIR, answer)
    walk = TreeWalk(b"", attributes=False)
    found, problems = await walk.next_page(front.files, 100)
    walk.close()
    assert found.names == [b"Image"]
    assert problems == []
    assert walk.finished
    await front.serves()


@fault("entry-type-unknown", done="a listing's entry has type 99, or none", must=UNHARMED)
async def test_an_entry_of_an_unknown_type(front: Front) -> None:
    listing = directory_record(b"a", 1, kind=99) + directory_record(b"b", 2, kind=0)

    def answer(_: FakeBackend, request: FuseRequest) -> Answer:
        return Answer(b"" if struct.unpack_from("=QQ", request.body)[1] else listing)

    front.tell(Opcode.READDIR, answer)
    assert await names(front.files) == [b"a", b"b"]
    await front.serves()


@fault(
    "directory-holds-itself",
    done="a directory has itself in it, for ever",
    must="A walk says so of the one inside with EIO, and ends.",
)
async def test_a_walk_down_a_directory_that_holds_itself(front: Front) -> None:
    record = directory_record(b"folder", 1, kind=modes.S_IFDIR >> 12)
    front.backend.answer = listing_once(front.backend, record)
    walk = TreeWalk(b"", attributes=False)
    found, problems = await walk.next_page(front.files, 10)
    assert walk.finished
    walk.close()
    assert found.names == [b"folder", b"folder/folder"]
    assert [(one.path, one.error.code) for one in problems] == [(b"folder/folder", "EIO")]
    await front.serves()


@fault(
    "directories-hold-each-other",
    done="every directory has another directory in it, for ever",
    must="A walk ends where paths are longer than Linux has them, with ENAMETOOLONG for the rest.",
)
async def test_a_walk_down_directories_that_hold_each_other(front: Front) -> None:
    one, other = b"d" * 255, b"e" * 255
    for name in (one, other):
        front.backend.files[name] = front.backend.files[b"folder"]
    node = [*front.backend.files].index(one) + 2

    def answer(_: FakeBackend, request: FuseRequest) -> Answer:
        offset = struct.unpack_from("=QQ", request.body)[1]
        name = other if request.node == node else one
        return Answer(b"" if offset else directory_record(name, 1, kind=modes.S_IFDIR >> 12))

    front.tell(Opcode.READDIR, answer)
    walk = TreeWalk(b"", attributes=False)
    found = 0
    refused: list[VuserdError] = []
    for _ in range(ENOUGH):
        here, problems = await walk.next_page(front.files, 10)
        found += len(here.names)
        refused += [problem.error for problem in problems]
        if walk.finished:
            break
    walk.close()
    assert found <= 4096 // 256 + 1
    assert [error.code for error in refused] == ["ENAMETOOLONG"]
    await front.serves()


@fault(
    "plus-refused",
    done="READDIRPLUS is answered with EIO, as it is where one entry cannot be looked up",
    must="READDIR tells of which: names are looked up one by one, and what cannot be comes without"
    " attributes.",
)
@pytest.mark.parametrize("begins", [0, 1])
@pytest.mark.parametrize("broken", [[], [b"secret"], [b"Image", b"secret", b"folder", b"link"]])
async def test_an_entry_that_cannot_be_looked_up(
    front: Front, begins: int, broken: list[bytes]
) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READDIRPLUS:
            if len(front.backend.named(Opcode.READDIRPLUS)) > begins:
                return Answer(error=errno.EIO)
            return front.backend.serve_files(request)
        if request.opcode is Opcode.LOOKUP and request.body.rstrip(b"\0") in broken:
            return Answer(error=errno.EIO)
        return front.backend.serve_files(request)

    front.backend.answer = answer
    listing = Listing(b"", attributes=True)
    found = await listing.next_page(front.files, 1)
    found.extend(await listing.next_page(front.files, 100))
    listing.close()
    assert found.names == [*front.backend.files]
    looked_up = {*compress(found.names[begins:], found.nodes[begins:])}
    assert looked_up == {*[*front.backend.files][begins:]} - {*broken}
    await front.serves()


@fault(
    "listing-refused-in-the-middle",
    done="the first READDIR of a listing is answered, all later ones with EIO",
    must=ERRNO,
)
@pytest.mark.parametrize("attributes", [False, True])
async def test_an_error_in_the_middle_of_a_listing(front: Front, attributes: bool) -> None:
    asked = 0

    def answer(request: FuseRequest) -> Answer | None:
        nonlocal asked
        if request.opcode in (Opcode.READDIR, Opcode.READDIRPLUS):
            asked += 1
            if asked > 1:
                return Answer(error=errno.EIO)
        return front.backend.serve_files(request)

    front.backend.answer = answer
    with pytest.raises(FileError, match="input/output error"):
        await page(front.files, attributes=attributes)
    await front.serves()


@fault(
    "plus-lookup-follow-up-lies",
    done="READDIRPLUS names an entry without a node, and the LOOKUP that follows gives the root",
    must="The entry comes without attributes; no reference to the root is given back.",
)
async def test_the_lookup_after_a_listing_is_checked(front: Front) -> None:
    once = listing_once(front.backend, NO_ENTRY + GOOD)

    def answer(request: FuseRequest) -> Answer | None:
        return Answer(entry(1, 0o40755)) if request.opcode is Opcode.LOOKUP else once(request)

    front.backend.answer = answer
    [found] = await page(front.files, attributes=True)
    assert (found.name, found.entry) == (b"Image", None)
    await front.serves()
