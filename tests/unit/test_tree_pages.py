"""Pages of a tree: which bytes are in them, what is only named, and what is left in the backend."""

import errno
import gc
import stat
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fuse import Attributes, NodeId, Opcode, decode_attributes_at
from tests.delivered import tree_delivered
from tests.fake.backend import Answer, FakeBackend, File, FuseRequest, cancelled_when
from tests.fake.files import ROOT, coarse_now, directory_record
from tests.faults.harness import until
from vuserd.delivery.page import Page, Place
from vuserd.delivery.pages import TreePage, TreePages
from vuserd.device.request import SMALL_READ
from vuserd.device.session import Session
from vuserd.device.shared_buffer import BufferPart
from vuserd.errors import BackendError, CallError, FileError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.tree.found import Found
from vuserd.users.asker import ASKER, Asker

SIZE = 1 << 20
MIB = 1 << 20
FOLDER = File(mode=stat.S_IFDIR | 0o755)
LINK = stat.S_IFLNK | 0o777


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend({b"one": b"1", b"two": b"22", b"none": b""})


@pytest.fixture
def files(session: Session) -> Iterator[FileSystem]:
    files = FileSystem(session, idle_nodes=0)
    yield files
    files.close()


@pytest.fixture
async def pages(backend: FakeBackend, files: FileSystem) -> AsyncIterator[TreePages]:
    async with tree_delivered(backend, files) as pages:
        yield pages


def decoded(found: Found) -> Attributes:
    assert found.attributes is not None
    return decode_attributes_at(found.attributes, 0)


Shown = dict[bytes, bytes | str | None]


def shown(page: TreePage) -> Shown:
    """Give a page back; return the bytes of its entries, or the error in their place."""
    content = b"".join(page.content.views())
    page.content.give_back()
    found: Shown = {}
    for each in page.found:
        if each.error is not None:
            assert each.place is each.length is None
            found[each.path] = str(each.error.code)
        elif each.place is not None:
            assert each.length is not None
            found[each.path] = content[each.place : each.place + each.length]
        else:
            found[each.path] = each.target
    return found


async def all_of(pages: TreePages, files: FileSystem, limit: int = 1000, size: int = SIZE) -> Shown:
    found: Shown = {}
    while not pages.finished:
        page = await pages.next_page(files, limit, size)
        assert not page.problems
        each = shown(page)
        assert not each.keys() & found.keys()
        found |= each
    return found


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_files_come_with_their_bytes(
    files: FileSystem, pages: TreePages, limit: int, backend: FakeBackend
) -> None:
    found = await all_of(pages, files, limit)
    assert found == {b"one": b"1", b"two": b"22", b"none": b""}
    assert not backend.named(Opcode.LOOKUP)  # READDIRPLUS is the look-up
    assert pages.remembered == 0


async def test_what_has_no_bytes_is_named(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    for name, kind in {
        b"fifo": stat.S_IFIFO,
        b"socket": stat.S_IFSOCK,
        b"disk": stat.S_IFBLK,
    }.items():
        backend.files[name] = File(mode=kind | 0o600)
    backend.files[b"link"] = File(b"../somewhere", LINK)
    backend.files[b"what"] = File(mode=0o644)
    backend.files[b"large"] = File(size=MIB)
    found = await all_of(pages, files)
    assert found.pop(b"link") == b"../somewhere"
    assert [name for name, value in found.items() if value is None] == [
        b"fifo",
        b"socket",
        b"disk",
        b"what",
        b"large",
    ]
    assert len(backend.named(Opcode.OPEN)) == 3


@pytest.mark.parametrize("size", [0, 1, 7, 8, 4096, MIB - 2, MIB - 1, MIB, MIB + 1])
async def test_sizes_around_a_buffers(
    backend: FakeBackend, files: FileSystem, pages: TreePages, size: int
) -> None:
    content = bytes(range(256)) * 4097
    backend.files = {b"of this size": File(content[:size]), b"after it": File(b"more")}
    found = await all_of(pages, files, size=4 * MIB)
    assert found == {
        b"of this size": content[:size] if size < MIB else None,
        b"after it": b"more",
    }


async def test_a_file_that_has_no_room_comes_with_the_next_page(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    backend.files = {b"%d" % n: File(bytes([n]) * 300_000) for n in range(5)}
    page = await pages.next_page(files, 1000, SIZE)
    assert [each.path for each in page.found] == [b"0", b"1", b"2"]
    first = shown(page)
    assert first | await all_of(pages, files) == {
        name: file.content for name, file in backend.files.items()
    }


async def test_bytes_that_stood_in_the_buffer_before_are_not_delivered(
    backend: FakeBackend, files: FileSystem, pages: TreePages, session: Session
) -> None:
    """Between two files, and in the place of one that cannot be read, or that is another's now."""
    for buffer in await session.payloads.take(32):
        buffer.view[:] = b"S" * len(buffer.view)
        buffer.give_back()
    backend.files[b"shorter"] = File(b"s", size=5000)
    backend.files[b"proc"] = File(b"content", most=3)

    def refuse(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ and request.node == 3:
            return Answer(error=errno.EIO)
        return backend.serve_files(request)

    backend.answer = refuse
    page = await pages.next_page(files, 1000, SIZE)
    content = b"".join(page.content.views())
    assert b"S" not in content
    assert shown(page) == {
        b"one": b"1",
        b"two": "EIO",
        b"none": b"",
        b"shorter": None,
        b"proc": None,
    }


async def test_a_file_that_is_a_link_by_now_leaves_no_bytes(
    backend: FakeBackend, files: FileSystem, pages: TreePages, session: Session
) -> None:
    """It was replaced while it was read: in its place are a former version's bytes, or others'."""
    for buffer in await session.payloads.take(32):
        buffer.view[:] = b"S" * len(buffer.view)
        buffer.give_back()
    backend.files[b"two"] = File(b"", size=5000)

    def answer(request: FuseRequest) -> Answer | None:
        answered = backend.serve_files(request)
        if request.opcode is Opcode.READ and request.node == 3:
            backend.files[b"two"] = File(b"one", LINK)
        return answered

    backend.answer = answer
    page = await pages.next_page(files, 1000, SIZE)
    assert b"S" not in b"".join(page.content.views())
    assert shown(page) == {b"one": b"1", b"two": b"one", b"none": b""}


def replaced(backend: FakeBackend, name: bytes, times: int) -> None:
    """Have a file change after each of so many READs of it."""
    node, left = [*backend.files].index(name) + 2, times

    def answer(request: FuseRequest) -> Answer | None:
        nonlocal left
        answered = backend.serve_files(request)
        if request.opcode is Opcode.READ and request.node == node and left:
            left -= 1
            file = backend.files[name]
            backend.files[name] = file._replace(
                content=file.content[:1] * 2, mtime=file.mtime + left + 1
            )
        return answered

    backend.answer = answer


async def test_a_file_that_changes_is_read_again(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    replaced(backend, b"two", 2)
    found = await all_of(pages, files)
    assert found == {b"one": b"1", b"two": b"22", b"none": b""}
    assert len(backend.named(Opcode.READ)) == 5


@pytest.mark.parametrize("in_order", [False, True])
async def test_whoever_looks_by_himself_has_each_file_read_once(
    backend: FakeBackend, files: FileSystem, pages: TreePages, session: Session, in_order: bool
) -> None:
    """What changes meanwhile shows in the attributes that came with its bytes."""
    session.lane.answers_in_order = in_order
    replaced(backend, b"two", 1)
    page = await pages.next_page(files, 1000, SIZE, look_again=False)
    times = {each.path: decoded(each).mtime for each in page.found}
    assert shown(page) == {b"one": b"1", b"two": b"22", b"none": b""}
    assert len(backend.named(Opcode.READ)) == 3
    assert {each.node for each in backend.named(Opcode.GETATTR)} <= {1}  # the root
    now = {name: file.mtime for name, file in backend.files.items()}
    assert [name for name in times if times[name] != now[name]] == [b"two"]


@pytest.mark.parametrize("size", [2, SMALL_READ])  # of one that has a job of its own
@pytest.mark.parametrize("behaves", ["in order", "the look first", "threads by now"])
async def test_one_round_shows_a_version_where_requests_are_done_in_order(
    backend: FakeBackend,
    files: FileSystem,
    pages: TreePages,
    session: Session,
    behaves: str,
    size: int,
) -> None:
    """The file changes after its READ: only a look that was made later has to show it."""
    session.lane.answers_in_order = True
    backend.files[b"two"] = File(bytes(size))
    reads: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READ and request.node == 3:
            reads.append(request)
            if len(reads) == 1:
                return None  # until the look that came with it
        if request.opcode is Opcode.GETATTR and request.node == 3 and len(reads) == 1:
            session.lane.answers_in_order = behaves != "threads by now"
            looked, read = backend.serve_files(request), backend.serve_files(reads[0])
            assert looked is not None
            assert read is not None
            first = [(reads[0], read), (request, looked)]
            for each, answered in first[:: -1 if behaves == "the look first" else 1]:
                backend.reply(each, answered)
            if behaves == "in order":
                return None
            reads.append(request)
            backend.files[b"two"] = File(b"33", mtime=9)
            return None
        return backend.serve_files(request)

    backend.answer = answer
    found = await all_of(pages, files)
    assert found == {
        b"one": b"1",
        b"two": bytes(size) if behaves == "in order" else b"33",
        b"none": b"",
    }


async def test_a_file_that_keeps_changing_is_told_to_be(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    replaced(backend, b"two", 100)
    found = await all_of(pages, files)
    assert found == {b"one": b"1", b"two": "CHANGED", b"none": b""}


async def test_a_file_that_grows_out_of_its_place_is_only_named(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    replaced(backend, b"one", 1)  # to two bytes
    backend.files[b"one"] = File(b"")
    backend.files = {b"one": File(b"1234567"), b"two": File(b"22")}

    def answer(request: FuseRequest) -> Answer | None:
        answered = backend.serve_files(request)
        if request.opcode is Opcode.READ and request.node == 2:
            backend.files[b"one"] = File(bytes(100), mtime=5)
        return answered

    backend.answer = answer
    assert await all_of(pages, files) == {b"one": None, b"two": b"22"}


async def test_a_file_that_has_just_changed_is_only_named_where_times_are_coarse(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    """Its bytes could change again without a trace: the client's own read compares two looks."""
    backend.files[b"two"] = File(b"22", mtime=coarse_now())
    assert await all_of(pages, files) == {b"one": b"1", b"two": None, b"none": b""}


async def test_a_file_that_has_just_changed_is_read_once_its_times_would_tell(
    backend: FakeBackend, files: FileSystem, pages: TreePages, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.files[b"two"] = File(b"22", mtime=coarse_now())
    looks = iter([5.0])
    monkeypatch.setattr("vuserd.delivery.file_reads.time_to_settle", lambda _: next(looks, 0.0))
    assert await all_of(pages, files) == {b"one": b"1", b"two": b"22", b"none": b""}
    assert len(backend.named(Opcode.READ)) == 4
    assert len(backend.named(Opcode.LOOKUP)) == 1


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.READ, Opcode.GETATTR])
async def test_a_file_that_cannot_be_read_is_an_entry_with_an_error(
    backend: FakeBackend, files: FileSystem, pages: TreePages, opcode: Opcode
) -> None:
    def refuse(request: FuseRequest) -> Answer | None:
        if request.opcode is opcode and request.node == 3:
            return Answer(error=errno.EACCES)
        return backend.serve_files(request)

    backend.answer = refuse
    assert await all_of(pages, files) == {b"one": b"1", b"two": "EACCES", b"none": b""}


async def test_an_entry_that_vanishes_takes_no_other_with_it(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    """As QEMU's virtiofsd has it: ENOENT for the READDIRPLUS, and READDIR still has the name."""

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READDIRPLUS:
            return Answer(error=errno.ENOENT)
        if request.opcode is Opcode.LOOKUP and request.body == b"two\0":
            return Answer(error=errno.ENOENT)
        return backend.serve_files(request)

    backend.answer = answer
    backend.files[b"link"] = File(b"target", LINK)
    assert await all_of(pages, files) == {
        b"one": b"1",
        b"two": "ENOENT",
        b"none": b"",
        b"link": b"target",
    }


async def test_a_directory_is_known_to_the_backend_as_long_as_a_name_is_looked_up_in_it(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    """Though it was read to its end: forgets go on a queue of their own, and may come first."""
    backend.files = {b"folder": FOLDER, b"odd": File(b"odd"), b"one": File(b"1")}
    folder, one = 2, 4
    looked_up: list[FuseRequest] = []

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP:
            looked_up.append(request)
            return None
        if request.opcode is not Opcode.READDIRPLUS:
            return backend.serve_files(request)
        if int.from_bytes(request.body[8:16], "little"):
            return Answer()
        if request.node == ROOT:
            backend.lookups[folder] += 1
            return Answer(backend.entry(folder) + directory_record(b"folder", 1))
        backend.lookups[one] += 1
        found = bytes(128) + directory_record(b"odd", 1)
        return Answer(found + backend.entry(one) + directory_record(b"one", 2))

    backend.answer = answer
    found: Shown = {}

    async def deliver() -> None:
        found.update(await all_of(pages, files))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver)
        await wait_all_tasks_blocked()
        files.nodes.flush()  # as where there are more to forget
        await wait_all_tasks_blocked()
        [request] = looked_up
        assert len(backend.named(Opcode.RELEASEDIR)) == 2
        assert backend.lookups[request.node] == 1
        answered = backend.serve_files(request)
        assert answered is not None
        backend.reply(request, answered)
    assert found == {b"folder": None, b"folder/odd": b"odd", b"folder/one": b"1"}


@pytest.mark.parametrize("is_cancelled", [False, True])  # before the page that they come with
async def test_files_without_a_number_of_their_own_are_not_read(
    backend: FakeBackend, files: FileSystem, pages: TreePages, *, is_cancelled: bool
) -> None:
    backend.files[b"two"] = File(b"22", ino=0)
    backend.files[b"folder"] = FOLDER._replace(ino=0)
    backend.files[b"pipe"] = File(mode=stat.S_IFIFO | 0o644, ino=0)
    backend.files[b"link"] = File(b"target", LINK, ino=0)
    if is_cancelled:
        backend.answer_to(Opcode.READ, None)
        await cancelled_when(
            lambda: bool(backend.named(Opcode.READ)), partial(pages.next_page, files, 1000, SIZE)
        )
        backend.answer = backend.serve_files
        for request in backend.named(Opcode.READ):
            backend.reply(request, Answer())
    assert await all_of(pages, files) == {
        b"one": b"1",
        b"two": "EIO",
        b"none": b"",
        b"folder": "EIO",
        b"pipe": "EIO",
        b"link": "EIO",
    }


async def test_a_directory_that_cannot_be_read_is_a_problem(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    backend.files[b"folder"] = FOLDER

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.OPENDIR and request.node != ROOT:
            return Answer(error=errno.EACCES)
        return backend.serve_files(request)

    backend.answer = answer
    page = await pages.next_page(files, 1000, SIZE)
    assert [(path, error.code) for path, error in page.problems] == [(b"folder", "EACCES")]
    assert shown(page)[b"folder"] is None
    assert pages.finished


async def test_a_directory_whose_offsets_lead_back_is_a_problem(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        answered = backend.serve_files(request)
        if request.opcode is Opcode.READDIRPLUS and answered is not None and not answered.body:
            begin = bytearray(request.body)
            begin[8:16] = bytes(8)
            return backend.serve_files(request._replace(body=bytes(begin)))
        return answered

    backend.answer = answer
    page = await pages.next_page(files, 1000, SIZE)
    page.content.give_back()
    assert [error.code for _, error in page.problems] == ["EIO"]


async def test_a_directory_that_holds_itself_is_not_entered_again(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    backend.files[b"folder"] = FOLDER
    found = await all_of(pages, files)
    assert len(found) == 8
    assert found[b"folder/folder"] == "EIO"


async def test_a_tree_without_an_end_ends_where_paths_do(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    name, other = b"n" * 250, b"m" * 250
    backend.files = {name: FOLDER, other: FOLDER}

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is not Opcode.READDIRPLUS:
            return backend.serve_files(request)
        if request.body[8:16] != bytes(8):
            return Answer()
        node = 3 if request.node == 2 else 2
        backend.lookups[node] += 1
        record = directory_record(name if node == 2 else other, 1)
        return Answer(backend.entry(node) + record)

    backend.answer = answer
    found, problems = 0, []
    while not pages.finished:
        page = await pages.next_page(files, 3, SIZE)
        problems += [(len(path), error.code) for path, error in page.problems]
        page.content.give_back()
        found += len(page.found)
        assert pages.remembered < 70_000
    assert found == 17
    assert problems == [(17 * 250 + 16, "ENAMETOOLONG")]


async def test_what_lapsed_is_looked_up_anew(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    backend.files[b"folder"] = FOLDER
    backend.files[b"link"] = File(b"target", LINK)

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode in (Opcode.OPENDIR, Opcode.LOOKUP) and request.node not in (ROOT, 5):
            return Answer(error=errno.ENOTDIR)
        if request.opcode is Opcode.LOOKUP and request.node != ROOT and b"folder" in request.body:
            return Answer(error=errno.ENOENT)
        answered = backend.serve_files(request)
        if request.opcode is Opcode.READDIRPLUS and request.node != ROOT:
            assert answered is not None
            for node in range(2, 7):
                backend.lookups[node] -= bool(answered.body)
            return Answer()
        return answered

    backend.answer = answer
    found: Shown = {}
    while not pages.finished:
        found |= shown(await pages.next_page(files, 1, SIZE))
        pages.lapse()
        files.nodes.flush()
        await wait_all_tasks_blocked()
        assert +backend.lookups == {}
        assert not backend.open_handles
    assert found == {
        b"one": b"1",
        b"two": b"22",
        b"none": b"",
        b"folder": None,
        b"link": b"target",
    }


async def test_a_cancelled_page_leaves_nothing_and_can_be_asked_again(
    backend: FakeBackend, files: FileSystem, pages: TreePages, session: Session
) -> None:
    held: list[FuseRequest] = []
    backend.files[b"link"] = File(b"target", LINK)

    def hold(request: FuseRequest) -> Answer | None:
        names = {Opcode.OPEN: 2, Opcode.READ: 3, Opcode.READLINK: 5}
        if names.get(request.opcode) == request.node:
            held.append(request)
            path = files.nodes.path(NodeId(request.node))
            assert path == b"/" + [*backend.files][request.node - 2]
            return None
        return backend.serve_files(request)

    backend.answer = hold
    await cancelled_when(lambda: len(held) == 3, partial(pages.next_page, files, 1000, SIZE))
    assert files.nodes.path(NodeId(3)) is None
    assert session.payloads.taken == 1  # the device writes to it still
    backend.answer = backend.serve_files
    for request in held:
        answered = backend.serve_files(request)
        assert answered is not None
        backend.reply(request, answered)
    await wait_all_tasks_blocked()
    assert session.payloads.taken == 0
    assert not backend.open_handles
    assert await all_of(pages, files) == {
        b"one": b"1",
        b"two": b"22",
        b"none": b"",
        b"link": b"target",
    }


@pytest.mark.parametrize("opcode", [Opcode.OPENDIR, Opcode.READDIRPLUS, Opcode.READ])
async def test_a_tree_goes_on_with_the_next_backend(backend: FakeBackend, opcode: Opcode) -> None:
    backend.files |= {b"%d" % number: File(b"x" * number) for number in range(100)}
    pages = TreePages(b"")
    found: Shown = {}

    def die(request: FuseRequest) -> Answer | None:
        if request.opcode is opcode and found:
            backend.die()
            return None
        return backend.serve_files(request)

    backend.answer = die
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=0)
        found |= shown(await pages.next_page(files, 10, SIZE))
        if opcode is Opcode.READ:
            with pytest.raises(BackendError):
                await pages.next_page(files, 10, SIZE)
        files.close()
    backend.answer = backend.serve_files
    backend.forget_everything()
    async with backend.session() as session:
        files = FileSystem(session, idle_nodes=0)
        found |= await all_of(pages, files, 10)
        pages.close()
        files.nodes.flush()
        await wait_all_tasks_blocked()
        assert +backend.lookups == {}
        assert not backend.open_handles
        files.close()
    assert found == {name: file.content for name, file in backend.files.items()}


@pytest.mark.parametrize("opcode", [Opcode.OPENDIR, Opcode.OPEN, Opcode.READDIRPLUS])
async def test_a_backend_without_descriptors_is_asked_again(
    backend: FakeBackend, files: FileSystem, pages: TreePages, opcode: Opcode
) -> None:
    is_exhausted = True

    def answer(request: FuseRequest) -> Answer | None:
        is_refused = request.opcode is opcode or (
            request.opcode is Opcode.OPENDIR and backend.named(opcode)
        )
        if is_exhausted and is_refused:
            return Answer(error=errno.EMFILE)
        return backend.serve_files(request)

    backend.answer = answer
    for _ in range(2):
        with pytest.raises(FileError) as refused:
            await pages.next_page(files, 1000, SIZE)
        assert refused.value.code == "EMFILE"
        if opcode is not Opcode.OPENDIR:
            break
    is_exhausted = False
    assert await all_of(pages, files) == {b"one": b"1", b"two": b"22", b"none": b""}


async def test_an_error_of_the_file_systems_own_is_no_lack_of_descriptors(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    backend.files[b"folder"] = FOLDER

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.OPEN and request.node == 2:
            return Answer(error=errno.EMFILE)
        if request.opcode is Opcode.OPENDIR and request.node != ROOT:
            return Answer(error=errno.ENFILE)
        return backend.serve_files(request)

    backend.answer = answer
    page = await pages.next_page(files, 1000, SIZE)
    assert [error.code for _, error in page.problems] == ["ENFILE"]
    assert shown(page) == {b"one": "EMFILE", b"two": b"22", b"none": b"", b"folder": None}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (FOLDER._replace(ino=77), FOLDER._replace(ino=78)),
        (FOLDER._replace(ino=77), FOLDER._replace(ino=77, flags=1)),
        (FOLDER._replace(ino=77, flags=1), FOLDER._replace(ino=77)),
    ],
)
async def test_another_directory_at_its_place_is_not_gone_on_with(
    backend: FakeBackend, files: FileSystem, before: File, now: File
) -> None:
    backend.files[b"folder"] = before
    pages = TreePages(b"folder")
    shown(await pages.next_page(files, 1, SIZE))
    pages.lapse()
    backend.files[b"folder"] = now
    with pytest.raises(CallError) as refused:
        await pages.next_page(files, 1, SIZE)
    assert refused.value.code == "CHANGED"
    pages.close()


@pytest.mark.parametrize(("names", "limit"), [(1, 2), (1, 3), (300, 310)])
async def test_what_a_mount_covers_by_now_is_no_other_name_of_what_was_there(
    backend: FakeBackend, files: FileSystem, names: int, limit: int
) -> None:
    """Of a directory nothing was read, or all, or a part: on a mount inode numbers come again."""
    folder = FOLDER._replace(ino=7)
    backend.files = {b"folder": folder} | dict.fromkeys([b"%03d" % n for n in range(names)], File())
    pages = TreePages(b"")
    first = await pages.next_page(files, limit, SIZE)
    assert {each.mount for each in first.found} == {0}
    shown(first)
    pages.lapse()
    backend.files[b"folder"] = folder._replace(flags=1)
    rest = await pages.next_page(files, 1000, SIZE)
    assert b"folder/%03d" % (names - 1) in {each.path for each in rest.found} or rest.problems
    assert {each.mount for each in rest.found} == {None}
    assert [(path, str(error.code)) for path, error in rest.problems] == (
        [(b"folder", "CHANGED")] if names > 1 else []
    )
    shown(rest)
    pages.close()


@pytest.mark.parametrize(("clients", "most"), [(1, 60), (2, 8)])
async def test_few_files_are_read_at_once_while_another_client_asks(
    backend: FakeBackend, files: FileSystem, pages: TreePages, clients: int, most: int
) -> None:
    """Whose requests wait behind all that the backend has of them."""
    backend.files = {b"%d" % number: File(b"x") for number in range(100)}
    for _ in range(clients):
        ASKER.set(Asker(1000, None))
        await files.stat(b"", follow=True)
    held = backend.hold(lambda request: request.opcode is Opcode.OPEN)

    async def all_found() -> None:
        assert len(await all_of(pages, files)) == len(backend.files)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(all_found)
        await until(lambda: len(held) >= most)
        await wait_all_tasks_blocked()
        assert len(held) == most
        backend.let_go(held)


async def test_a_page_leaves_nothing_to_the_collector(files: FileSystem, pages: TreePages) -> None:
    """What it was filled with would keep the memory of a lost session mapped."""
    gc.collect()
    gc.disable()
    try:
        shown(await pages.next_page(files, 1000, SIZE))
        await wait_all_tasks_blocked()  # until its files are released
        assert not [each for each in gc.get_objects() if isinstance(each, Place | BufferPart)]
    finally:
        gc.enable()


async def test_where_no_directory_is_there_is_no_tree(files: FileSystem) -> None:
    for path, code in ((b"one", "ENOTDIR"), (b"nothing", "ENOENT")):
        pages = TreePages(path)
        with pytest.raises(FileError) as refused:
            await pages.next_page(files, 1, SIZE)
        assert refused.value.code == code
        pages.close()


async def test_a_page_is_no_larger_than_was_asked_for(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    target = b"t" * 4095
    backend.files = {b"%0200d" % n: File(target, LINK) for n in range(100)}
    backend.files |= {b"x%0200d" % n: File(bytes(3000)) for n in range(100)}
    size = 128 << 10
    while not pages.finished:
        page = await pages.next_page(files, 4096, size)
        index = sum(len(each.path) + len(each.target or b"") + 256 for each in page.found)
        assert index + page.content.length <= size
        assert page.found
        page.content.give_back()


async def test_a_reading_that_ends_out_of_order_is_no_mixture(
    backend: FakeBackend, files: FileSystem, pages: TreePages
) -> None:
    """Answers of many files at once, in reverse: each READ has a place of its own."""
    backend.files = {b"%d" % n: File(bytes([n]) * (n * 37)) for n in range(60)}
    held: list[FuseRequest] = []

    def hold(request: FuseRequest) -> Answer | None:
        if request.opcode is not Opcode.READ:
            return backend.serve_files(request)
        held.append(request)
        if len(held) == 60:
            for each in reversed(held):
                answered = backend.serve_files(each)
                assert answered is not None
                if each is not request:
                    backend.reply(each, answered)
            return backend.serve_files(request)
        return None

    backend.answer = hold
    assert await all_of(pages, files) == {
        name: file.content for name, file in backend.files.items()
    }


async def test_places_of_a_page(session: Session) -> None:
    buffers = await session.payloads.take(2)
    page = Page(buffers, 4 * MIB, 100)
    first, second = page.place(MIB - 8), page.place(9)
    assert first is not None
    assert second is not None
    assert (first.offset, second.offset) == (0, MIB - 8)
    assert second.address == buffers[1].address
    assert page.place(MIB) is None
    content = page.take_content(buffers)
    assert (buffers, content.length) == ([], MIB - 8 + 16)
    content.give_back()
