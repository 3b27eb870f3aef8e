"""FUSE replies: headers and bodies that are not those of the request."""

import errno

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.fake.backend import FakeBackend
from tests.fake.files import Answer, File, FuseRequest
from tests.faults.catalogue import BROKEN, ERRNO, PASSED_ON, TIMED_OUT, UNHARMED, fault
from tests.faults.harness import (
    CONTENT,
    FOR_EVER,
    Call,
    Front,
    Lie,
    entries,
    names,
    read,
    readlink,
    stat,
    stat_root,
    statfs,
)
from vuserd.errors import BackendTimeout, FileError


def says_nothing(backend: FakeBackend, request: FuseRequest) -> None:
    """Use the chain as if the reply were there; what stands in the buffers is an older one."""
    backend.use(request, request.chain.capacity)


def row(name: str, opcode: Opcode, lie: Lie, call: Call, words: str, done: str) -> object:
    return pytest.param(
        opcode, lie, call, words, marks=fault(name, done=done, must=BROKEN), id=name
    )


ATTR = bytes(104)


@pytest.mark.parametrize(
    ("opcode", "lie", "call", "words"),
    [
        row(
            "reply-unique-unknown",
            Opcode.GETATTR,
            Answer(ATTR, unique=1 << 60),
            stat_root,
            "a reply to request 1152921504606846976 in the buffers of request",
            "a reply has a `unique` that no request ever had",
        ),
        row(
            "reply-unique-0",
            Opcode.GETATTR,
            Answer(ATTR, unique=0),
            stat_root,
            "a reply to request 0 in the buffers",
            "a reply has `unique` 0, which is a notification's",
        ),
        row(
            "reply-stale",
            Opcode.STATFS,
            says_nothing,
            statfs,
            "a reply to request",
            "a chain is used with nothing written: an older reply stands in its buffer",
        ),
        row(
            "reply-length-short",
            Opcode.GETATTR,
            Answer(ATTR, length=119),
            stat_root,
            "a reply of 119 bytes in 120 bytes used",
            "the out-header's length is less than the used length",
        ),
        row(
            "reply-length-long",
            Opcode.GETATTR,
            Answer(ATTR, length=4096),
            stat_root,
            "a reply of 4096 bytes in 120 bytes used",
            "the out-header's length is more than the used length",
        ),
        row(
            "reply-length-less-than-header",
            Opcode.GETATTR,
            Answer(ATTR, length=8),
            stat_root,
            "a reply of 8 bytes in 120 bytes used",
            "the out-header's length is less than an out-header's",
        ),
        row(
            "reply-used-short",
            Opcode.GETATTR,
            Answer(ATTR, used=60),
            stat_root,
            "a reply of 120 bytes in 60 bytes used",
            "the used length ends in the middle of the body",
        ),
        row(
            "error-positive",
            Opcode.GETATTR,
            Answer(error=-5),
            stat_root,
            "error 5 in a reply",
            "a reply's error is positive",
        ),
        row(
            "error-out-of-range",
            Opcode.GETATTR,
            Answer(error=4096),
            stat_root,
            "error -4096 in a reply",
            "a reply's error is below -4095",
        ),
        row(
            "error-least-number",
            Opcode.GETATTR,
            Answer(error=1 << 31),
            stat_root,
            "error -2147483648 in a reply",
            "a reply's error is the least 32-bit number",
        ),
        row(
            "error-with-body",
            Opcode.GETATTR,
            Answer(ATTR, error=errno.EIO),
            stat_root,
            "104 bytes after an error",
            "a reply has an error and a body",
        ),
        row(
            "body-short-lookup",
            Opcode.LOOKUP,
            Answer(bytes(100)),
            stat,
            "a reply to LOOKUP of 100 bytes",
            "the reply to LOOKUP ends in the middle of its entry",
        ),
        row(
            "body-empty-lookup",
            Opcode.LOOKUP,
            Answer(),
            stat,
            "a reply to LOOKUP of 0 bytes",
            "LOOKUP succeeds with no body",
        ),
        row(
            "body-short-getattr",
            Opcode.GETATTR,
            Answer(bytes(103)),
            stat_root,
            "a reply to GETATTR of 103 bytes",
            "the reply to GETATTR is a byte short",
        ),
        row(
            "body-short-open",
            Opcode.OPEN,
            Answer(bytes(8)),
            read,
            "8 bytes where 16 belong",
            "the reply to OPEN has a handle and no flags",
        ),
        row(
            "body-short-opendir",
            Opcode.OPENDIR,
            Answer(),
            names,
            "0 bytes where 16 belong",
            "OPENDIR succeeds with no handle",
        ),
        row(
            "body-short-statfs",
            Opcode.STATFS,
            Answer(bytes(48)),
            statfs,
            "48 bytes where 80 belong",
            "the reply to STATFS is that of an old version",
        ),
        row(
            "read-header-shorter",
            Opcode.READ,
            Answer(CONTENT, length=16 + 100),
            read,
            "a reply of 116 bytes in 4112",
            "the reply to READ brings more than its length says",
        ),
        row(
            "read-more-than-asked",
            Opcode.READ,
            Answer(CONTENT, length=16 + (1 << 20) + 1, used=16 + (1 << 20) + 1),
            read,
            r"used length 1048593 of 1048592 writable",
            "the reply to READ says that it is longer than what was asked for",
        ),
        row(
            "read-header-only-claims",
            Opcode.READ,
            Answer(b"", length=16 + 4096),
            read,
            "a reply of 4112 bytes in 16",
            "the out-header of READ promises bytes that the used length does not have",
        ),
    ],
)
async def test_a_reply_that_lies_ends_the_session(
    front: Front, opcode: Opcode, lie: Lie, call: Call, words: str
) -> None:
    front.tell(opcode, lie)
    await front.breaks(call, words)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(
            b"",
            marks=fault("readlink-empty", done="a symlink's target is empty", must=PASSED_ON),
            id="readlink-empty",
        ),
        pytest.param(
            b"ima\0ge",
            marks=fault("readlink-nul", done="a symlink's target has a NUL in it", must=PASSED_ON),
            id="readlink-nul",
        ),
        pytest.param(
            b"x" * 4096,
            marks=fault(
                "readlink-overlong", done="a symlink's target has 4096 bytes", must=PASSED_ON
            ),
            id="readlink-overlong",
        ),
    ],
)
async def test_a_target_that_linux_does_not_follow(front: Front, target: bytes) -> None:
    front.tell(Opcode.READLINK, Answer(target))
    assert await readlink(front.files) == target
    await front.serves()


@fault(
    "replies-swapped",
    done="two requests are outstanding, and each one's reply stands in the buffers of the other",
    must=BROKEN,
)
async def test_replies_that_were_swapped(front: Front) -> None:
    held: list[FuseRequest] = []

    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        held.append(request)
        if len(held) == 2:
            for mine, other in (held, held[::-1]):
                honest = backend.serve_files(mine)
                assert honest is not None
                backend.reply(mine, honest._replace(unique=other.unique))
        return None

    async def other_call() -> None:
        with pytest.raises(Exception, match="a reply to request"):
            await front.files.statfs()

    front.tell(Opcode.STATFS, answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other_call)
        await wait_all_tasks_blocked()
        await front.breaks(statfs, "a reply to request")


@pytest.mark.parametrize(
    ("opcode", "call"),
    [
        (Opcode.LOOKUP, stat),
        (Opcode.GETATTR, stat_root),
        (Opcode.OPEN, read),
        (Opcode.READ, read),
        (Opcode.OPENDIR, names),
        (Opcode.READDIR, names),
        (Opcode.READLINK, readlink),
        (Opcode.STATFS, statfs),
    ],
)
@fault("errno-at-each-step", done="a request of any kind is answered with EIO", must=ERRNO)
async def test_an_errno_is_the_callers(front: Front, opcode: Opcode, call: Call) -> None:
    front.tell(opcode, Answer(error=errno.EIO))
    with pytest.raises(FileError) as raised:
        await call(front.files)
    assert raised.value.code == "EIO"
    await front.serves()


@fault(
    "errno-unknown",
    done="a reply's error is one that Linux keeps to itself (512) or has no name (4095)",
    must="The caller gets the code ERRNO_512 or ERRNO_4095; the session goes on.",
)
async def test_an_errno_without_a_name_is_the_callers_too(front: Front) -> None:
    for number in (512, 4095):
        front.tell(Opcode.STATFS, Answer(error=number))
        with pytest.raises(FileError) as raised:
            await front.files.statfs()
        assert raised.value.code == f"ERRNO_{number}"
    await front.serves()


@fault(
    "release-refused",
    done="RELEASE and RELEASEDIR, for which no caller waits, are answered with an error",
    must=UNHARMED,
)
async def test_a_release_that_is_refused(front: Front) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        honest = front.backend.serve_files(request)
        if request.opcode in (Opcode.RELEASE, Opcode.RELEASEDIR):
            return Answer(error=errno.EBADF)
        return honest

    front.backend.answer = answer
    assert await read(front.files) == CONTENT
    assert b"Image" in await names(front.files)
    await front.serves()


@fault(
    "read-short",
    done="a READ in the middle of a file brings less than was asked for, the later ones all of it",
    must="It is read on from there, one READ after the other: no later byte is put in the place of"
    " a missing one.",
)
async def test_a_short_read_does_not_end_the_file(front: Front) -> None:
    front.backend.max_pages = 64
    front.backend.files[b"Image"] = front.backend.files[b"Image"]._replace(content=CONTENT * 512)
    first = True

    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        nonlocal first
        if first:
            first = False
            return Answer(CONTENT[:100])
        return backend.serve_files(request)

    front.tell(Opcode.READ, answer)
    assert await read(front.files) == (CONTENT * 512)[: 1 << 20]
    await front.owes_nothing()


@fault(
    "read-ends-early",
    done="every READ behind some byte of a file brings nothing, though its size says more",
    must="The file ends there for the caller.",
)
@pytest.mark.parametrize("end", [0, 100, 70_000])
async def test_a_file_that_ends_before_its_size_says(front: Front, end: int) -> None:
    content = CONTENT * 64
    front.backend.files[b"Image"] = File(content[:end], size=len(content))
    assert await read(front.files) == content[:end]
    await front.owes_nothing()


@fault(
    "read-goes-on",
    done="a file has more bytes than its size says",
    must="All of them are given, up to where a READ brings nothing.",
)
@pytest.mark.parametrize("size", [0, 1, 100, 70_000])
async def test_a_file_that_goes_on_behind_its_size(front: Front, size: int) -> None:
    content = CONTENT * 64
    front.backend.files[b"Image"] = File(content, size=size)
    assert await read(front.files) == content
    await front.owes_nothing()


@fault(
    "late-reply-malformed",
    done="a LOOKUP is answered after its caller gave up, with an entry that is none",
    must="The session is declared broken with this cause; nothing is forgotten that was not given.",
)
async def test_a_late_reply_is_checked_as_well(
    front: Front,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    front.tell(Opcode.LOOKUP, None)
    with pytest.raises(BackendTimeout):
        await stat(front.files)
    [request] = front.backend.named(Opcode.LOOKUP)
    front.backend.reply(request, Answer(bytes(7)))
    with trio.fail_after(FOR_EVER):
        assert "LOOKUP of 7 bytes" in str(await front.session.wait_lost())
    await front.is_over()


@fault(
    "late-reply",
    done="a request is answered after its caller's deadline, and not before",
    must=TIMED_OUT,
)
async def test_late_replies_owe_nothing(
    front: Front,
    autojump_clock: MockClock,  # noqa: ARG001 - deadlines pass at once
) -> None:
    for opcode, call in ((Opcode.LOOKUP, stat), (Opcode.OPEN, read), (Opcode.READDIRPLUS, entries)):
        front.tell(opcode, None)
        begun = trio.current_time()
        with pytest.raises(BackendTimeout) as raised:
            await call(front.files)
        assert raised.value.code == "TIMEOUT"
        assert trio.current_time() - begun < 10.05
        late = front.backend.named(opcode)[-1]
        answer = front.backend.serve_files(late)
        assert answer is not None
        front.backend.reply(late, answer)
        await wait_all_tasks_blocked()
    await front.serves()


@fault(
    "look-ahead-malformed",
    done="a name is looked up ahead in a directory that has become another one, and this answer,"
    " which is not needed, is malformed",
    must=BROKEN,
)
async def test_an_answer_that_is_not_needed_is_checked_as_well(front: Front) -> None:
    front.backend.files[b"other"] = front.backend.files[b"folder"]
    await front.files.stat(b"folder/Image", follow=True)
    folder = [*front.backend.files].index(b"folder") + 2
    other = [*front.backend.files].index(b"other") + 2

    def answer(backend: FakeBackend, request: FuseRequest) -> Answer | None:
        if request.body == b"folder\0":
            backend.lookups[other] += 1
            return Answer(backend.entry(other))  # the directory was replaced
        if request.node == folder:
            return Answer(bytes(7))
        return backend.serve_files(request)

    front.tell(Opcode.LOOKUP, answer)
    await front.breaks(
        lambda files: files.stat(b"folder/Image", follow=True), "a reply to LOOKUP of 7 bytes"
    )
