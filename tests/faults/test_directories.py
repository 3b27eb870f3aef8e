"""Directories: entries that no directory has, and listings without an end."""

import stat as modes
import struct

import pytest
import trio
from trio.testing import MockClock

from protocol.fuse import Opcode
from tests.fake.backend import FakeBackend
from tests.fake.files import Answer, FuseRequest, directory_record
from tests.faults.catalogue import BROKEN, ERRNO, UNHARMED, fault
from tests.faults.harness import (
    ENTRY_ATTRIBUTES,
    MODE,
    SIZE,
    Call,
    Front,
    entries,
    names,
    spoiled,
)
from vuserd.errors import BackendBroken, FileError
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
            "name-256",
            directory_record(b"x" * 256, 1),
            "a name of 256 bytes",
            "a directory entry's name has 256 bytes",
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
        row(
            "plus-node-is-root",
            entry(1, 0o40755) + GOOD,
            "the root as an entry",
            "READDIRPLUS gives node id 1 for a name",
            plus=True,
        ),
        row(
            "plus-size-negative",
            spoiled(entry(5), ENTRY_ATTRIBUTES + SIZE, "=q", -1) + GOOD,
            "a node of 18446744073709551615 bytes",
            "READDIRPLUS gives a node with a negative size",
            plus=True,
        ),
        row(
            "plus-mode-impossible",
            entry(5, 0o170644) + GOOD,
            "a node of mode 0o170644",
            "READDIRPLUS gives a node of a type that does not exist",
            plus=True,
        ),
        row(
            "offset-stands",
            directory_record(b"Image", 0),
            "goes on where it began",
            "a listing says that it goes on where it began",
        ),
    ],
)
async def test_a_listing_that_cannot_be_ends_the_session(
    front: Front, listing: bytes, plus: bool, words: str
) -> None:
    front.tell(Opcode.READDIRPLUS if plus else Opcode.READDIR, Answer(listing))
    await front.breaks(entries if plus else names, words)


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
    ("offsets", "name", "call", "words"),
    [
        pytest.param(
            (7, 9),
            None,
            names,
            "round in a circle|nothing but",
            marks=fault(
                "offsets-circle",
                done="the offsets of a listing go A, B, A over its replies, with ever new names",
                must=BROKEN,
            ),
            id="offsets-circle",
        ),
        pytest.param(
            (7, 9, 0),
            b".",
            names,
            "round in a circle|nothing but",
            marks=fault(
                "offsets-circle-of-dots",
                done="the offsets of a listing go in a circle, and all replies are `.` only",
                must=BROKEN,
            ),
            id="offsets-circle-of-dots",
        ),
        pytest.param(
            (),
            b".",
            names,
            "nothing but",
            marks=[
                fault(
                    "listing-of-dots-without-end",
                    done="a listing never ends: each reply is `.` only, with an offset that is new",
                    must=BROKEN,
                ),
            ],
            id="listing-of-dots-without-end",
        ),
    ],
)
async def test_a_listing_without_an_end_ends_the_session(
    front: Front, offsets: tuple[int, ...], name: bytes | None, call: Call, words: str
) -> None:
    front.tell(Opcode.READDIR, going_on(*offsets, name=name))  # type: ignore[arg-type]
    await front.breaks(call, words)
    assert len(front.backend.named(Opcode.READDIR)) <= ENOUGH


@fault(
    "offsets-circle-in-page",
    done="the first entry of a reply has the offset where the reply began, the last one another",
    must=BROKEN,
)
async def test_a_page_that_would_go_on_where_it_began(front: Front) -> None:
    listing = directory_record(b"one", 0) + directory_record(b"two", 5)
    front.tell(Opcode.READDIR, Answer(listing))
    await front.breaks(
        lambda files: files.readdir(b"", attributes=False, limit=1, after=None),
        "goes on where it began|round in a circle",
    )


@fault(
    "listing-without-end",
    done="a directory has ever more entries, with ever new names",
    must="A call ends at its limit of entries, and says where it would go on.",
)
async def test_an_endless_directory_comes_in_pages(front: Front) -> None:
    front.tell(Opcode.READDIR, going_on())  # type: ignore[arg-type]
    page = await front.files.readdir(b"", attributes=False, limit=50, after=None)
    assert len(page.entries) == page.next == 50
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
    page = await front.files.readdir(b"", attributes=True, limit=1, after=None)
    assert len(page.entries) == 1
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
    assert [one.path for one in found] == [b"Image"]
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
    done="every directory has a directory in it, for ever",
    must="A walk ends where paths are longer than Linux has them, with ENAMETOOLONG for the rest.",
)
async def test_a_walk_down_a_directory_that_holds_itself(front: Front) -> None:
    name = b"d" * 255
    front.backend.files[name] = front.backend.files[b"folder"]

    def answer(_: FakeBackend, request: FuseRequest) -> Answer:
        offset = struct.unpack_from("=QQ", request.body)[1]
        return Answer(b"" if offset else directory_record(name, 1, kind=modes.S_IFDIR >> 12))

    front.tell(Opcode.READDIR, answer)
    walk = TreeWalk(b"", attributes=False)
    found = 0
    refused: list[FileError] = []
    for _ in range(ENOUGH):
        page, problems = await walk.next_page(front.files, 10)
        found += len(page)
        refused += [problem.error for problem in problems]
        if walk.finished:
            break
    walk.close()
    assert found <= 4096 // 256 + 1
    assert [error.code for error in refused] == ["ENAMETOOLONG"]
    await front.serves()


@fault(
    "listing-refused-in-the-middle",
    done="the first READDIRPLUS of a call is answered, the second with EIO",
    must=ERRNO,
)
async def test_an_error_in_the_middle_of_a_listing(front: Front) -> None:
    asked = 0

    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        nonlocal asked
        asked += 1
        return backend.serve_files(request) if asked == 1 else Answer(error=5)

    front.tell(Opcode.READDIRPLUS, answer)
    with pytest.raises(FileError, match="input/output error"):
        await entries(front.files)
    await front.serves()


@fault(
    "plus-lookup-follow-up-lies",
    done="READDIRPLUS names an entry without a node, and the LOOKUP that follows gives the root",
    must=BROKEN,
)
async def test_the_lookup_after_a_listing_is_checked(front: Front) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READDIRPLUS:
            return Answer(NO_ENTRY + GOOD)
        if request.opcode is Opcode.LOOKUP:
            return Answer(entry(1, 0o40755))
        return front.backend.serve_files(request)

    front.backend.answer = answer
    await front.breaks(entries, "the root as an entry", BackendBroken)
