"""Nodes and attributes: what cannot be, and what contradicts what was said before."""

import errno

import pytest

from protocol.fuse import Opcode
from tests.fake.backend import FakeBackend
from tests.fake.files import Answer, File, FuseRequest
from tests.faults.catalogue import BROKEN, ERRNO, fault
from tests.faults.harness import (
    ATTR_ATTRIBUTES,
    CONTENT,
    ENTRY_ATTRIBUTES,
    ENTRY_NODE,
    MODE,
    NANOSECONDS,
    SIZE,
    Call,
    Front,
    Lie,
    read,
    spoil,
    stat,
    stat_root,
)
from vuserd.errors import CallError, FileError


def row(name: str, opcode: Opcode, lie: Lie, call: Call, words: str, done: str) -> object:
    return pytest.param(
        opcode, lie, call, words, marks=fault(name, done=done, must=BROKEN), id=name
    )


@pytest.mark.parametrize(
    ("opcode", "lie", "call", "words"),
    [
        row(
            "lookup-gives-root",
            Opcode.LOOKUP,
            spoil(ENTRY_NODE, "=Q", 1),
            stat,
            "the root as an entry",
            "LOOKUP of a name gives node id 1",
        ),
        row(
            "lookup-size-negative",
            Opcode.LOOKUP,
            spoil(ENTRY_ATTRIBUTES + SIZE, "=q", -4096),
            stat,
            "a node of 18446744073709547520 bytes",
            "LOOKUP gives a file of a negative size",
        ),
        row(
            "lookup-mode-0",
            Opcode.LOOKUP,
            spoil(ENTRY_ATTRIBUTES + MODE, "=I", 0),
            stat,
            "a node of mode 0o0",
            "LOOKUP gives a node without a type",
        ),
        row(
            "lookup-mode-impossible",
            Opcode.LOOKUP,
            spoil(ENTRY_ATTRIBUTES + MODE, "=I", 0xFFFFFFFF),
            stat,
            "a node of mode",
            "LOOKUP gives a mode of all ones",
        ),
        row(
            "lookup-nanoseconds",
            Opcode.LOOKUP,
            spoil(ENTRY_ATTRIBUTES + NANOSECONDS, "=I", 1_000_000_000),
            stat,
            "a time of a whole second in nanoseconds",
            "LOOKUP gives a time with a whole second of nanoseconds",
        ),
        row(
            "getattr-size-negative",
            Opcode.GETATTR,
            spoil(ATTR_ATTRIBUTES + SIZE, "=q", -1),
            stat_root,
            "a node of 18446744073709551615 bytes",
            "GETATTR gives a negative size",
        ),
        row(
            "getattr-mode-0",
            Opcode.GETATTR,
            spoil(ATTR_ATTRIBUTES + MODE, "=I", 0),
            stat_root,
            "a node of mode 0o0",
            "GETATTR gives a node without a type",
        ),
        row(
            "getattr-fails-after-read",
            Opcode.GETATTR,
            Answer(bytes(104)),
            read,
            "a node of mode 0o0",
            "the GETATTR after the READs of a file is malformed",
        ),
    ],
)
async def test_attributes_that_cannot_be_end_the_session(
    front: Front, opcode: Opcode, lie: Lie, call: Call, words: str
) -> None:
    front.tell(opcode, lie)
    await front.breaks(call, words)


@pytest.mark.parametrize(
    ("call", "mode"),
    [
        pytest.param(
            stat_root,
            0o100644,
            marks=[
                fault(
                    "root-no-directory",
                    done="GETATTR says that the root is a regular file",
                    must=BROKEN,
                ),
            ],
            id="root-no-directory",
        ),
        pytest.param(
            read,
            0o040755,
            marks=[
                fault(
                    "getattr-other-type",
                    done="GETATTR says that an open regular file is a directory",
                    must=BROKEN,
                ),
            ],
            id="getattr-other-type",
        ),
    ],
)
async def test_a_node_that_changes_its_type(front: Front, call: Call, mode: int) -> None:
    front.tell(Opcode.GETATTR, spoil(ATTR_ATTRIBUTES + MODE, "=I", mode))
    await front.breaks(call, "changed its type|another type")


@fault(
    "lookup-node-0",
    done="LOOKUP succeeds with node id 0 and garbage where the attributes belong",
    must="There is no such name: the caller has ENOENT, and nothing is given back.",
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
            lambda files: files.readdir(b"Image", attributes=False, limit=9, after=None),
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
    must="The caller has ELOOP after 40; the session goes on and owes nothing.",
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
    done="a symlink's target is `../../../Image`, or a name of 300 bytes",
    must="It is resolved inside the export; a name that Linux does not take is ENAMETOOLONG.",
)
async def test_a_target_outside_the_export(front: Front) -> None:
    front.tell(Opcode.READLINK, Answer(b"../../../Image"))
    assert (await front.files.stat(b"link", follow=True)).size == len(CONTENT)
    assert {request.body for request in front.backend.named(Opcode.LOOKUP)} == {
        b"link\0",
        b"Image\0",
    }
    front.tell(Opcode.READLINK, Answer(b"x" * 300))
    with pytest.raises(FileError) as raised:
        await front.files.stat(b"link", follow=True)
    assert raised.value.code == "ENAMETOOLONG"
    await front.serves()


@fault(
    "file-never-the-same",
    done="each GETATTR tells another size, mtime or ctime",
    must="The caller has CHANGED after three attempts; the session goes on and owes nothing.",
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
    assert asked == 3
    await front.serves()
