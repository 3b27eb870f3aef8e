"""Nodes and attributes: what cannot be, and what contradicts what was said before."""

import errno

import pytest

from protocol.fuse import Opcode
from tests.fake.backend import FakeBackend
from tests.fake.files import Answer, File, FuseRequest
from tests.faults.catalogue import CHANGED, EIO, ERRNO, PASSED_ON, fault
from tests.faults.harness import (
    ATIME,
    ATTR_ATTRIBUTES,
    BLOCK_SIZE,
    CONTENT,
    ENTRY_ATTRIBUTES,
    ENTRY_NODE,
    INO,
    MODE,
    NANOSECONDS,
    SIZE,
    Call,
    Front,
    names,
    read,
    spoil,
    spoiled,
    stat,
    stat_root,
)
from tests.listings import page
from vuserd.errors import CallError, FileError


def told(opcode: Opcode) -> tuple[Call, int]:
    """Return a call that has a node's attributes from this request, and where those are."""
    return (stat, ENTRY_ATTRIBUTES) if opcode is Opcode.LOOKUP else (stat_root, ATTR_ATTRIBUTES)


def row(name: str, where: int, layout: str, value: int, field: str, done: str) -> object:
    return pytest.param(
        where, layout, value, field, marks=fault(name, done=done, must=PASSED_ON), id=name
    )


@pytest.mark.parametrize("opcode", [Opcode.LOOKUP, Opcode.GETATTR])
@pytest.mark.parametrize(
    ("where", "layout", "value", "field"),
    [
        row(
            "size-negative",
            SIZE,
            "=Q",
            2**64 - 4096,
            "size",
            "LOOKUP or GETATTR gives a file of a negative size",
        ),
        row("mode-0", MODE, "=I", 0, "mode", "LOOKUP or GETATTR gives a node without a type"),
        row(
            "mode-impossible",
            MODE,
            "=I",
            0xFFFFFFFF,
            "mode",
            "LOOKUP or GETATTR gives a mode of all ones",
        ),
        row(
            "nanoseconds",
            NANOSECONDS,
            "=I",
            1_000_000_000,
            "atime_nsec",
            "LOOKUP or GETATTR gives a time with a whole second of nanoseconds",
        ),
        row("time-far", ATIME, "=q", 2**63 - 1, "atime", "LOOKUP or GETATTR gives a time far away"),
        row("ino-0", INO, "=Q", 0, "ino", "LOOKUP or GETATTR gives a node of inode number 0"),
        row("block-size-0", BLOCK_SIZE, "=I", 0, "blksize", "LOOKUP or GETATTR gives block size 0"),
    ],
)
async def test_odd_attributes_are_passed_on(
    front: Front, opcode: Opcode, where: int, layout: str, value: int, field: str
) -> None:
    call, attributes = told(opcode)
    front.tell(opcode, spoil(attributes + where, layout, value))
    assert getattr(await call(front.files), field) == value
    await front.serves()


@pytest.mark.parametrize(
    ("where", "layout", "value", "code"),
    [
        pytest.param(
            SIZE,
            "=Q",
            2**63,
            "EOVERFLOW",
            marks=fault(
                "read-size-negative",
                done="a file that is to be read has a negative size",
                must="The caller gets EOVERFLOW; the session goes on and owes nothing.",
            ),
            id="read-size-negative",
        ),
        pytest.param(
            MODE,
            "=I",
            0,
            "EINVAL",
            marks=fault(
                "read-mode-0",
                done="what is to be read is of no type",
                must="The caller gets EINVAL; the session goes on and owes nothing.",
            ),
            id="read-mode-0",
        ),
        pytest.param(
            INO,
            "=Q",
            0,
            "EIO",
            marks=fault(
                "read-ino-0",
                done="what is to be read has inode number 0, as all of its file system may have:"
                " the backend takes those for one file",
                must=EIO,
            ),
            id="read-ino-0",
        ),
    ],
)
async def test_what_cannot_be_read(
    front: Front, where: int, layout: str, value: int, code: str
) -> None:
    front.tell(Opcode.LOOKUP, spoil(ENTRY_ATTRIBUTES + where, layout, value))
    with pytest.raises(FileError) as raised:
        await read(front.files)
    assert raised.value.code == code
    assert front.backend.named(Opcode.OPEN) == []
    await front.serves()


@pytest.mark.parametrize("call", [stat, read])
@fault("lookup-gives-root", done="LOOKUP of a name gives node id 1", must=EIO)
async def test_a_name_that_is_the_root(front: Front, call: Call) -> None:
    def answer(backend: FakeBackend, _: FuseRequest) -> Answer:
        return Answer(spoiled(backend.entry(2), ENTRY_NODE, "=Q", 1))

    front.tell(Opcode.LOOKUP, answer)
    with pytest.raises(FileError, match="no inode number of its own") as raised:
        await call(front.files)
    assert raised.value.code == "EIO"
    await front.serves()


@fault(
    "lookup-gives-directory",
    done="LOOKUP of a name in a directory gives that directory",
    must=EIO,
)
async def test_a_name_that_is_its_directory(front: Front) -> None:
    with pytest.raises(FileError, match="no inode number of its own") as raised:
        await front.files.stat(b"folder/folder/Image", follow=True)
    assert raised.value.code == "EIO"
    await front.serves()


@fault(
    "getattr-fails-after-read",
    done="the GETATTR after the READs of a file tells of nothing but zeros",
    must=CHANGED,
)
async def test_zeros_after_a_read(front: Front) -> None:
    front.tell(Opcode.GETATTR, Answer(bytes(104)))
    with pytest.raises(CallError) as raised:
        await read(front.files)
    assert raised.value.code == "CHANGED"
    await front.serves()


@fault(
    "root-no-directory",
    done="GETATTR says that the root is a regular file",
    must="It is passed on; what is in it is looked up all the same.",
)
async def test_a_root_that_is_no_directory(front: Front) -> None:
    front.tell(Opcode.GETATTR, spoil(ATTR_ATTRIBUTES + MODE, "=I", 0o100644))
    assert (await stat_root(front.files)).mode == 0o100644
    assert (await stat(front.files)).size == len(CONTENT)
    with pytest.raises(FileError) as raised:
        await names(front.files)
    assert raised.value.code == "ENOTDIR"
    await front.serves()


@fault(
    "getattr-other-type",
    done="GETATTR says that an open regular file is a directory",
    must=CHANGED,
)
async def test_a_file_that_becomes_a_directory(front: Front) -> None:
    front.tell(Opcode.GETATTR, spoil(ATTR_ATTRIBUTES + MODE, "=I", 0o040755))
    with pytest.raises(CallError) as raised:
        await read(front.files)
    assert raised.value.code == "CHANGED"
    await front.serves()


@fault(
    "lookup-node-0",
    done="LOOKUP succeeds with node id 0 and garbage where the attributes belong",
    must="There is no such name: the caller gets ENOENT, and nothing is given back.",
)
async def test_node_0_is_no_entry(front: Front) -> None:
    front.tell(Opcode.LOOKUP, Answer(bytes(8) + b"\xff" * 120))
    with pytest.raises(FileError) as raised:
        await stat(front.files)
    assert raised.value.code == "ENOENT"
    await front.serves()


@pytest.mark.parametrize(
    ("says", "opcode", "number", "call"),
    [
        pytest.param(
            0o040755,
            Opcode.OPENDIR,
            errno.ENOTDIR,
            lambda files: page(files, b"Image", limit=9),
            marks=fault(
                "directory-not-opened",
                done="LOOKUP says that a name is a directory, OPENDIR gives ENOTDIR",
                must=ERRNO,
            ),
            id="directory-not-opened",
        ),
        pytest.param(
            0o100644,
            Opcode.OPEN,
            errno.EISDIR,
            lambda files: read(files, b"folder"),
            marks=fault(
                "file-not-opened",
                done="LOOKUP says that a name is a regular file, OPEN gives EISDIR",
                must=ERRNO,
            ),
            id="file-not-opened",
        ),
        pytest.param(
            0o120777,
            Opcode.READLINK,
            errno.EINVAL,
            lambda files: files.readlink(b"Image"),
            marks=fault(
                "symlink-not-read",
                done="LOOKUP says that a name is a symlink, READLINK gives EINVAL",
                must=ERRNO,
            ),
            id="symlink-not-read",
        ),
    ],
)
async def test_a_type_that_is_not_kept(
    front: Front, says: int, opcode: Opcode, number: int, call: Call
) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.LOOKUP:
            lie = spoil(ENTRY_ATTRIBUTES + MODE, "=I", says)
            assert callable(lie)
            return lie(front.backend, request)
        if request.opcode is opcode:
            return Answer(error=number)
        return front.backend.serve_files(request)

    front.backend.answer = answer
    with pytest.raises(FileError) as raised:
        await call(front.files)
    assert raised.value.number == number
    await front.serves()


@fault(
    "node-without-generation",
    done="two names have one node id, one of them as a file and one as a directory",
    must="Each call goes by its own LOOKUP; both references are given back.",
)
async def test_one_node_with_two_types(front: Front) -> None:
    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        node = [*backend.files].index(b"Image") + 2
        backend.lookups[node] += 1
        backend.files[b"Image"] = File(CONTENT, 0o040755 if b"folder" in request.body else 0o100644)
        return Answer(backend.entry(node))

    front.tell(Opcode.LOOKUP, answer)
    assert (await front.files.stat(b"Image", follow=True)).mode == 0o100644
    assert (await front.files.stat(b"folder", follow=True)).mode == 0o040755
    assert (await front.files.stat(b"Image", follow=True)).mode == 0o100644
    await front.owes_nothing()


@fault(
    "symlinks-without-end",
    done="every name is a symlink to the next one",
    must="The caller gets ELOOP after 40; the session goes on and owes nothing.",
)
async def test_symlinks_without_an_end(front: Front) -> None:
    front.tell(Opcode.READLINK, Answer(b"link"))
    with pytest.raises(FileError) as raised:
        await front.files.stat(b"link", follow=True)
    assert raised.value.code == "ELOOP"
    assert len(front.backend.named(Opcode.READLINK)) == 40
    await front.serves()


@fault(
    "symlink-out-of-export",
    done="a symlink's target is `../../../Image`, or a path of 4096 bytes, or empty, or has a NUL",
    must="It is resolved inside the export; what Linux does not follow is ENAMETOOLONG, ENOENT or"
    " EINVAL, and READLINK passes it on.",
)
async def test_a_target_outside_the_export(front: Front) -> None:
    front.tell(Opcode.READLINK, Answer(b"../../../Image"))
    assert (await front.files.stat(b"link", follow=True)).size == len(CONTENT)
    assert {request.body for request in front.backend.named(Opcode.LOOKUP)} == {
        b"link\0",
        b"Image\0",
    }
    for target, code in (
        (b"x" * 300, "ENOENT"),
        (b"x" * 4096, "ENAMETOOLONG"),
        (b"", "ENOENT"),
        (b"ima\0ge", "EINVAL"),
    ):
        front.tell(Opcode.READLINK, Answer(target))
        with pytest.raises(FileError) as raised:
            await front.files.stat(b"link", follow=True)
        assert raised.value.code == code
        assert await front.files.readlink(b"link") == target
    await front.serves()


@fault(
    "file-never-the-same",
    done="each GETATTR tells another size, mtime or ctime",
    must=CHANGED,
)
async def test_a_file_that_is_never_the_same(front: Front) -> None:
    asked = 0

    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        nonlocal asked
        asked += 1
        lie = spoil(ATTR_ATTRIBUTES + SIZE, "=Q", asked)
        assert callable(lie)
        return lie(backend, request)

    front.tell(Opcode.GETATTR, answer)
    with pytest.raises(CallError) as raised:
        await read(front.files)
    assert raised.value.code == "CHANGED"
    assert asked == 1 + 3  # one attempt of a few requests, and three of a task's
    await front.serves()
