"""FUSE's codec: bytes worked out by hand from include/uapi/linux/fuse.h, version 7.38."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol import MalformedError, fuse
from protocol.fuse import (
    AttributeFlag,
    Attributes,
    Credentials,
    Entry,
    FileHandle,
    FileSystemStatistics,
    Forget,
    InitFlag,
    InitReply,
    NodeId,
    Opcode,
    Request,
    Whence,
)

FUSE_HEADER = Path("/usr/include/linux/fuse.h")

little_endian = pytest.mark.skipif(
    sys.byteorder != "little", reason="the expected bytes are those of a little-endian machine"
)


def header_minor() -> int:
    """Return the minor version of the installed header, 0 if there is none."""
    if not FUSE_HEADER.exists():
        return 0
    found = re.search(r"#define FUSE_KERNEL_MINOR_VERSION (\d+)", FUSE_HEADER.read_text())
    return int(found[1]) if found else 0


needs_header = pytest.mark.skipif(
    header_minor() < 38, reason=f"no {FUSE_HEADER} of version 7.38 or later (linux-libc-dev)"
)

WHO = Credentials(uid=1000, gid=100, pid=4242)
UNIQUE = 0x1122334455667788
NODE = NodeId(0x0A0B)
HANDLE = FileHandle(0x0C0D)
LAST_NODE = NodeId(2**64 - 1)
LAST_HANDLE = FileHandle(2**64 - 1)

# What follows len and opcode in the header of every request of these tests:
# unique | nodeid | uid 1000, gid 100, pid 4242 | no extensions
HEADER_OF_NODE = "8877665544332211 0b0a000000000000 e8030000 64000000 92100000 00000000"
HEADER_OF_NONE = "8877665544332211 0000000000000000 e8030000 64000000 92100000 00000000"
HEADER_OF_ROOT = "8877665544332211 0100000000000000 e8030000 64000000 92100000 00000000"

# "enum fuse_opcode" of the header; the numbers between them were never given.
OPCODES = {
    "LOOKUP": 1,
    "FORGET": 2,
    "GETATTR": 3,
    "SETATTR": 4,
    "READLINK": 5,
    "SYMLINK": 6,
    "MKNOD": 8,
    "MKDIR": 9,
    "UNLINK": 10,
    "RMDIR": 11,
    "RENAME": 12,
    "LINK": 13,
    "OPEN": 14,
    "READ": 15,
    "WRITE": 16,
    "STATFS": 17,
    "RELEASE": 18,
    "FSYNC": 20,
    "SETXATTR": 21,
    "GETXATTR": 22,
    "LISTXATTR": 23,
    "REMOVEXATTR": 24,
    "FLUSH": 25,
    "INIT": 26,
    "OPENDIR": 27,
    "READDIR": 28,
    "RELEASEDIR": 29,
    "FSYNCDIR": 30,
    "GETLK": 31,
    "SETLK": 32,
    "SETLKW": 33,
    "ACCESS": 34,
    "CREATE": 35,
    "INTERRUPT": 36,
    "BMAP": 37,
    "DESTROY": 38,
    "IOCTL": 39,
    "POLL": 40,
    "NOTIFY_REPLY": 41,
    "BATCH_FORGET": 42,
    "FALLOCATE": 43,
    "READDIRPLUS": 44,
    "RENAME2": 45,
    "LSEEK": 46,
    "COPY_FILE_RANGE": 47,
    "SETUPMAPPING": 48,
    "REMOVEMAPPING": 49,
    "SYNCFS": 50,
    "TMPFILE": 51,
}

ATTRIBUTES = bytes.fromhex(
    "0807060504030201"  # 0: ino
    "0010000000000000"  # 8: size 4096
    "0800000000000000"  # 16: 8 blocks of 512 bytes
    "01e1f50500000000"  # 24: atime 100,000,001
    "02c2eb0b00000000"  # 32: mtime 200,000,002
    "03a3e11100000000"  # 40: ctime 300,000,003
    "ffc99a3b 01000000 02000000"  # 48: nanoseconds 999,999,999, 1 and 2
    "a4810000"  # 60: mode 0100644
    "02000000"  # 64: two links
    "e8030000 64000000"  # 68: uid 1000, gid 100
    "05010000"  # 76: rdev 0x105
    "00020000"  # 80: blksize 512
    "01000000"  # 84: flags: a submount
)
DECODED_ATTRIBUTES = Attributes(
    ino=0x0102030405060708,
    size=4096,
    blocks=8,
    atime=100_000_001,
    mtime=200_000_002,
    ctime=300_000_003,
    atime_nsec=999_999_999,
    mtime_nsec=1,
    ctime_nsec=2,
    mode=0o100644,
    nlink=2,
    uid=1000,
    gid=100,
    rdev=0x105,
    blksize=512,
    flags=1,
)

ENTRY = (
    bytes.fromhex(
        "0b0a000000000000"  # 0: nodeid
        "0700000000000000"  # 8: generation
        "0100000000000000 0200000000000000"  # 16: entry and attributes valid, seconds
        "03000000 04000000"  # 32: the same, nanoseconds
    )
    + ATTRIBUTES  # 40
)

ATTR_OUT = bytes.fromhex("0100000000000000 02000000 00000000") + ATTRIBUTES

INIT_OUT = bytes.fromhex(
    "07000000 26000000"  # 0: version 7.38
    "00000200"  # 8: max_readahead 128 KiB
    "21004048"  # 12: INIT_EXT, SUBMOUNTS, MAX_PAGES, BIG_WRITES, ASYNC_READ
    "0c00 0900"  # 16: max_background 12, congestion_threshold 9
    "00001000"  # 20: max_write 1 MiB
    "01000000"  # 24: time_gran
    "0001 0000"  # 28: max_pages 256, map_alignment 0
    "02000000" + "00000000" * 7  # 32: flags2: bit 33  # 36: unused
)

STATFS_OUT = bytes.fromhex(
    "0100000000000000 0200000000000000 0300000000000000"  # 0: blocks, bfree, bavail
    "0400000000000000 0500000000000000"  # 24: files, ffree
    "00100000 ff000000 00020000"  # 40: bsize 4096, namelen 255, frsize 512
    "00000000" + "00000000" * 6  # 52: padding, spare
)


def patched(good: bytes, offset: int, replacement: str) -> bytes:
    """Return ``good`` with the bytes at ``offset`` replaced."""
    patch = bytes.fromhex(replacement)
    assert offset + len(patch) <= len(good)
    return good[:offset] + patch + good[offset + len(patch) :]


class TestPublishedNumbers:
    def test_version_and_root(self) -> None:
        assert (fuse.MAJOR, fuse.MINOR) == (7, 38)
        assert fuse.OLDEST_MINOR == 27
        assert fuse.ROOT_ID == 1

    def test_linux_limits(self) -> None:
        assert fuse.NAME_MAX == 4095
        assert fuse.PAGE_SIZE == 4096
        assert fuse.MAX_ERRNO == 4095

    def test_sizes_of_headers_and_entry(self) -> None:
        assert fuse.IN_HEADER_SIZE == 40
        assert fuse.OUT_HEADER_SIZE == 16
        assert fuse.ENTRY_SIZE == 128

    def test_opcodes_have_the_published_numbers(self) -> None:
        assert {name: opcode.value for name, opcode in Opcode.__members__.items()} == OPCODES

    def test_flags_have_the_published_bits(self) -> None:
        assert {flag.name: flag.value for flag in InitFlag} == {
            "ASYNC_READ": 0x1,
            "BIG_WRITES": 0x20,
            "DO_READDIRPLUS": 0x2000,
            "READDIRPLUS_AUTO": 0x4000,
            "PARALLEL_DIROPS": 0x40000,
            "MAX_PAGES": 0x400000,
            "SUBMOUNTS": 0x8000000,
            "INIT_EXT": 0x40000000,
        }
        assert AttributeFlag.SUBMOUNT.value == 1

    @needs_header
    def test_version_and_root_are_those_of_the_kernels_header(self) -> None:
        published = dict(re.findall(r"#define\s+(FUSE_\w+)\s+(\d+)\b", FUSE_HEADER.read_text()))
        assert int(published["FUSE_KERNEL_VERSION"]) == fuse.MAJOR
        assert int(published["FUSE_ROOT_ID"]) == fuse.ROOT_ID

    @needs_header
    def test_opcodes_are_those_of_the_kernels_header(self) -> None:
        enum = re.search(r"enum fuse_opcode \{(.*?)\};", FUSE_HEADER.read_text(), re.DOTALL)
        assert enum is not None
        published = {
            name: int(value) for name, value in re.findall(r"\bFUSE_(\w+)\s*=\s*(\d+)", enum[1])
        }
        # A newer header has newer opcodes, and one that tells a swapped byte order.
        assert {opcode.name: opcode.value for opcode in Opcode} == {
            name: value for name, value in published.items() if value <= Opcode.TMPFILE
        }

    @needs_header
    def test_flags_are_those_of_the_kernels_header(self) -> None:
        published = {
            name: 1 << int(bit)
            for name, bit in re.findall(
                r"#define\s+FUSE_(\w+)\s+\(1(?:ULL)? << (\d+)\)", FUSE_HEADER.read_text()
            )
        }
        for flag in InitFlag:
            assert published[str(flag.name)] == flag
        assert published["ATTR_SUBMOUNT"] == AttributeFlag.SUBMOUNT
        assert published["GETATTR_FH"] == fuse._GETATTR_FH

    @needs_header
    @pytest.mark.parametrize(
        ("struct", "size"),
        [
            ("fuse_in_header", fuse.IN_HEADER_SIZE),
            ("fuse_out_header", fuse.OUT_HEADER_SIZE),
            ("fuse_init_in", 64),
            ("fuse_init_out", 64),
            ("fuse_attr", 88),
            ("fuse_entry_out", fuse.ENTRY_SIZE),
            ("fuse_attr_out", 104),
            ("fuse_forget_in", 8),
            ("fuse_forget_one", 16),
            ("fuse_batch_forget_in", 8),
            ("fuse_getattr_in", 16),
            ("fuse_open_in", 8),
            ("fuse_open_out", 16),
            ("fuse_read_in", 40),
            ("fuse_release_in", 24),
            ("fuse_kstatfs", 80),
            ("fuse_lseek_in", 24),
            ("fuse_lseek_out", 8),
            ("fuse_interrupt_in", 8),
        ],
    )
    def test_structs_of_the_kernels_header_have_the_size_in_use(
        self, struct: str, size: int
    ) -> None:
        assert size_in_header(struct, FUSE_HEADER.read_text()) == size


def size_in_header(struct: str, header: str) -> int:
    """Add up the fields of a struct; FUSE pads them all by hand."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = re.search(rf"struct {struct} \{{(.*?)\}};", header, re.DOTALL)
    assert found is not None
    total = 0
    for field in filter(None, map(str.strip, found[1].split(";"))):
        number = re.fullmatch(r"u?int(\d+)_t\s+\w+(?:\[(\d+)\])?", field)
        if number is not None:
            total += int(number[1]) // 8 * int(number[2] or 1)
        else:
            nested = re.fullmatch(r"struct (\w+)\s+\w+", field)
            assert nested is not None, field
            total += size_in_header(nested[1], header)
    return total


@little_endian
class TestRequests:
    """Each request: len | opcode | the rest of the header | body, and the size of its reply."""

    @pytest.mark.parametrize(
        ("request_", "reply_size", "wire"),
        [
            pytest.param(
                fuse.init(
                    InitFlag.ASYNC_READ
                    | InitFlag.BIG_WRITES
                    | InitFlag.MAX_PAGES
                    | InitFlag.SUBMOUNTS
                    | InitFlag(1 << 33),
                    128 * 1024,
                ),
                64,
                # version 7.38 | max_readahead | flags with INIT_EXT | flags2 | unused
                f"68000000 1a000000 {HEADER_OF_NONE}"
                " 07000000 26000000 00000200 21004048 02000000" + "00000000" * 11,
                id="INIT",
            ),
            pytest.param(
                fuse.lookup(fuse.ROOT_ID, b"etc"),
                128,
                f"2c000000 01000000 {HEADER_OF_ROOT} 65746300",  # "etc" and its NUL
                id="LOOKUP",
            ),
            pytest.param(
                fuse.batch_forget([Forget(NODE, 3), Forget(NodeId(2), 1)]),
                None,
                f"50000000 2a000000 {HEADER_OF_NONE}"
                "02000000 00000000"  # count | dummy
                "0b0a000000000000 0300000000000000"  # nodeid | nlookup
                "0200000000000000 0100000000000000",
                id="BATCH_FORGET",
            ),
            pytest.param(
                fuse.getattr(NODE),
                104,
                f"38000000 03000000 {HEADER_OF_NODE} 00000000 00000000 0000000000000000",
                id="GETATTR of a node",
            ),
            pytest.param(
                fuse.getattr(NODE, HANDLE),
                104,
                f"38000000 03000000 {HEADER_OF_NODE} 01000000 00000000 0d0c000000000000",
                id="GETATTR of an open file",
            ),
            pytest.param(
                fuse.getattr(NODE, FileHandle(0)),
                104,
                f"38000000 03000000 {HEADER_OF_NODE} 01000000 00000000 0000000000000000",
                id="GETATTR of an open file with handle 0",
            ),
            pytest.param(
                fuse.readlink(NODE), 4096, f"28000000 05000000 {HEADER_OF_NODE}", id="READLINK"
            ),
            pytest.param(
                fuse.open(NODE),
                16,
                f"30000000 0e000000 {HEADER_OF_NODE} 00000000 00000000",  # O_RDONLY | no flags
                id="OPEN",
            ),
            pytest.param(
                fuse.open(NODE, 0o400000),
                16,
                f"30000000 0e000000 {HEADER_OF_NODE} 00000200 00000000",
                id="OPEN with O_NOFOLLOW",
            ),
            pytest.param(
                fuse.opendir(NODE),
                16,
                f"30000000 1b000000 {HEADER_OF_NODE} 00000000 00000000",
                id="OPENDIR",
            ),
            pytest.param(
                fuse.read(NODE, HANDLE, 0x0102030405060708, 0x100000),
                0x100000,
                f"50000000 0f000000 {HEADER_OF_NODE}"
                "0d0c000000000000 0807060504030201"  # fh | offset
                "00001000 00000000"  # size | read_flags
                "0000000000000000 00000000 00000000",  # lock_owner | flags | padding
                id="READ",
            ),
            pytest.param(
                fuse.readdir(NODE, HANDLE, 2, 4096),
                4096,
                f"50000000 1c000000 {HEADER_OF_NODE}"
                "0d0c000000000000 0200000000000000 00100000 00000000"
                "0000000000000000 00000000 00000000",
                id="READDIR",
            ),
            pytest.param(
                fuse.readdirplus(NODE, HANDLE, 0, 4096),
                4096,
                f"50000000 2c000000 {HEADER_OF_NODE}"
                "0d0c000000000000 0000000000000000 00100000 00000000"
                "0000000000000000 00000000 00000000",
                id="READDIRPLUS",
            ),
            pytest.param(
                fuse.release(NODE, HANDLE),
                0,
                # fh | flags | release_flags | lock_owner
                f"40000000 12000000 {HEADER_OF_NODE}"
                "0d0c000000000000 00000000 00000000 0000000000000000",
                id="RELEASE",
            ),
            pytest.param(
                fuse.releasedir(NODE, HANDLE),
                0,
                f"40000000 1d000000 {HEADER_OF_NODE}"
                "0d0c000000000000 00000000 00000000 0000000000000000",
                id="RELEASEDIR",
            ),
            pytest.param(
                fuse.statfs(fuse.ROOT_ID), 80, f"28000000 11000000 {HEADER_OF_ROOT}", id="STATFS"
            ),
            pytest.param(
                fuse.lseek(NODE, HANDLE, 0x0102030405060708, Whence.DATA),
                8,
                # fh | offset | whence | padding
                f"40000000 2e000000 {HEADER_OF_NODE}"
                "0d0c000000000000 0807060504030201 03000000 00000000",
                id="LSEEK to data",
            ),
            pytest.param(
                fuse.lseek(NODE, HANDLE, 0, Whence.HOLE),
                8,
                f"40000000 2e000000 {HEADER_OF_NODE}"
                "0d0c000000000000 0000000000000000 04000000 00000000",
                id="LSEEK to a hole",
            ),
            pytest.param(
                fuse.interrupt(0x0102030405060708),
                None,
                f"30000000 24000000 {HEADER_OF_NONE} 0807060504030201",
                id="INTERRUPT",
            ),
        ],
    )
    def test_bytes_and_reply_size(
        self, request_: Request, reply_size: int | None, wire: str
    ) -> None:
        expected = bytes.fromhex(wire)
        assert request_.encode(UNIQUE, WHO) == expected
        assert request_.size == len(expected)
        assert request_.reply_size == reply_size


class TestRequestsThatCannotBe:
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(b"", id="an empty name"),
            pytest.param(b".", id="the directory itself"),
            pytest.param(b"..", id="its parent"),
            pytest.param(b"a/b", id="a path"),
            pytest.param(b"a\0", id="a NUL"),
            pytest.param(b"x" * 4096, id="4096 bytes"),
        ],
    )
    def test_lookup_refuses_what_is_no_name(self, name: bytes) -> None:
        with pytest.raises(ValueError, match="not the name of a directory entry"):
            fuse.lookup(fuse.ROOT_ID, name)

    @pytest.mark.parametrize("name", [b"...", b"..a", b"\xff\xfe", b"x" * 256, b"x" * 4095])
    def test_lookup_takes_every_other_name(self, name: bytes) -> None:
        assert fuse.lookup(fuse.ROOT_ID, name).body == name + b"\0"

    @pytest.mark.parametrize(
        ("node", "lookups"),
        [
            pytest.param(0, 1, id="no node"),
            pytest.param(1, 1, id="the root"),
            pytest.param(2, 0, id="no lookup"),
            pytest.param(2, -1, id="less than none"),
        ],
    )
    def test_what_was_never_given_is_never_forgotten(self, node: int, lookups: int) -> None:
        with pytest.raises(ValueError, match=f"FORGET of {lookups} lookups of node {node}"):
            fuse.batch_forget([Forget(NodeId(2), 1), Forget(NodeId(node), lookups)])

    def test_refusal_names_the_one_that_is_wrong(self) -> None:
        with pytest.raises(ValueError, match="FORGET of 0 lookups of node 5"):
            fuse.batch_forget([Forget(NodeId(2), 3), Forget(NodeId(5), 0), Forget(NodeId(1), 1)])

    def test_one_lookup_of_each_is_what_it_says(self) -> None:
        nodes = [NodeId(2), NODE, NodeId(2)]
        assert fuse.batch_forget_each(nodes) == fuse.batch_forget([(node, 1) for node in nodes])
        assert fuse.batch_forget_each([]) == fuse.batch_forget([])

    @pytest.mark.parametrize("node", [0, 1])
    def test_nor_among_those_of_each(self, node: int) -> None:
        with pytest.raises(ValueError, match=f"FORGET of node {node}"):
            fuse.batch_forget_each([NodeId(2), NodeId(node)])

    @pytest.mark.parametrize(("size", "count"), [(48, 0), (63, 0), (64, 1), (79, 1), (4096, 253)])
    def test_as_many_forgets_as_fit_after_header_and_count(self, size: int, count: int) -> None:
        assert fuse.batch_forget_capacity(size) == count
        assert fuse.batch_forget([Forget(NODE, 1)] * count).size <= size
        assert fuse.batch_forget([Forget(NODE, 1)] * (count + 1)).size > size


@little_endian
class TestLargestNumbers:
    """No field has a sign: each holds a number with all of its bits set."""

    # unique | nodeid | uid, gid, pid | no extensions
    HEADER = "ff" * 8 + "ff" * 8 + "ff" * 12 + "00000000"
    HEADER_OF_NONE = "ff" * 8 + "00" * 8 + "ff" * 12 + "00000000"

    @pytest.mark.parametrize(
        ("request_", "wire"),
        [
            pytest.param(
                fuse.init(InitFlag(2**64 - 1), 2**32 - 1),
                f"68000000 1a000000 {HEADER_OF_NONE}"
                " 07000000 26000000 ffffffff ffffffff ffffffff" + "00000000" * 11,
                id="INIT",
            ),
            pytest.param(
                fuse.batch_forget([Forget(LAST_NODE, 2**64 - 1)]),
                f"40000000 2a000000 {HEADER_OF_NONE}"
                " 01000000 00000000 ffffffffffffffff ffffffffffffffff",
                id="BATCH_FORGET",
            ),
            pytest.param(
                fuse.getattr(LAST_NODE, LAST_HANDLE),
                f"38000000 03000000 {HEADER} 01000000 00000000 ffffffffffffffff",
                id="GETATTR",
            ),
            pytest.param(
                fuse.open(LAST_NODE, 2**32 - 1),
                f"30000000 0e000000 {HEADER} ffffffff 00000000",
                id="OPEN",
            ),
            pytest.param(
                fuse.read(LAST_NODE, LAST_HANDLE, 2**64 - 1, 2**32 - 1),
                f"50000000 0f000000 {HEADER}"
                "ffffffffffffffff ffffffffffffffff ffffffff 00000000"
                "0000000000000000 00000000 00000000",
                id="READ",
            ),
            pytest.param(
                fuse.release(LAST_NODE, LAST_HANDLE),
                f"40000000 12000000 {HEADER} ffffffffffffffff 00000000 00000000 0000000000000000",
                id="RELEASE",
            ),
            pytest.param(
                fuse.lseek(LAST_NODE, LAST_HANDLE, 2**64 - 1, Whence.DATA),
                f"40000000 2e000000 {HEADER} ffffffffffffffff ffffffffffffffff 03000000 00000000",
                id="LSEEK",
            ),
            pytest.param(
                fuse.interrupt(2**64 - 1),
                f"30000000 24000000 {HEADER_OF_NONE} ffffffffffffffff",
                id="INTERRUPT",
            ),
        ],
    )
    def test_request(self, request_: Request, wire: str) -> None:
        who = Credentials(2**32 - 1, 2**32 - 1, 2**32 - 1)
        assert request_.encode(2**64 - 1, who).hex() == bytes.fromhex(wire).hex()

    def test_reply_header(self) -> None:
        # len | error | unique
        header = bytes.fromhex("000000f0 00000000 ffffffffffffffff")
        assert fuse.decode_reply_header(header, 2**64 - 1, 0xF000_0000) == 0

    def test_init(self) -> None:
        reply = fuse.decode_init(bytes.fromhex("07000000" + "ff" * 60))
        assert reply == InitReply(2**32 - 1, InitFlag(2**64 - 1), 2**32 - 1, 2**16 - 1)

    def test_attributes(self) -> None:
        body = ATTR_OUT
        for offset in (0, 16):  # ino, blocks
            body = patched(body, 16 + offset, "ffffffffffffffff")
        body = patched(body, 16 + 64, "ff" * 24)  # nlink, uid, gid, rdev, blksize, flags
        words = ("nlink", "uid", "gid", "rdev", "blksize", "flags")
        assert fuse.decode_attributes(body) == DECODED_ATTRIBUTES._replace(
            ino=2**64 - 1, blocks=2**64 - 1, **dict.fromkeys(words, 2**32 - 1)
        )

    def test_entry(self) -> None:
        entry = fuse.decode_lookup(patched(ENTRY, 0, "ff" * 40))  # all before the attributes
        assert entry == Entry(LAST_NODE, DECODED_ATTRIBUTES)

    def test_handle(self) -> None:
        assert fuse.decode_open(b"\xff" * 16) == LAST_HANDLE

    def test_statistics(self) -> None:
        longs, words = (2**64 - 1,) * 5, (2**32 - 1,) * 3
        assert fuse.decode_statfs(b"\xff" * 80) == FileSystemStatistics(*longs, *words)


@little_endian
class TestReplyHeader:
    @pytest.mark.parametrize(
        ("header", "used", "errno"),
        [
            # len | error | unique
            pytest.param("10000000 00000000 8877665544332211", 16, 0, id="success, no body"),
            pytest.param("90000000 00000000 8877665544332211", 144, 0, id="success, a body"),
            pytest.param("10000000 feffffff 8877665544332211", 16, 2, id="ENOENT"),
            pytest.param("10000000 01f0ffff 8877665544332211", 16, 4095, id="the largest errno"),
        ],
    )
    def test_errno_is_told(self, header: str, used: int, errno: int) -> None:
        assert fuse.decode_reply_header(bytes.fromhex(header), UNIQUE, used) == errno

    def test_header_is_read_with_its_body_behind_it(self) -> None:
        reply = bytes.fromhex("14000000 00000000 8877665544332211") + b"body"
        assert fuse.decode_reply_header(reply, UNIQUE, 20) == 0

    @pytest.mark.parametrize(
        ("header", "used", "complaint"),
        [
            pytest.param("", 16, "a reply of 0 bytes", id="nothing"),
            pytest.param(
                "10000000 00000000 88776655443322", 16, "a reply of 15 bytes", id="a byte short"
            ),
            pytest.param(
                "10000000 00000000 8977665544332211", 16, "in the buffers of", id="another unique"
            ),
            pytest.param(
                "10000000 00000000 0000000000000000", 16, "to request 0", id="a notification"
            ),
            pytest.param(
                "11000000 00000000 8877665544332211", 16, "17 bytes in 16", id="more than used"
            ),
            pytest.param(
                "10000000 00000000 8877665544332211", 17, "16 bytes in 17", id="less than used"
            ),
            pytest.param(
                "10000000 01000000 8877665544332211", 16, "error 1 in", id="a positive error"
            ),
            pytest.param(
                "10000000 00f0ffff 8877665544332211", 16, "error -4096", id="an error too low"
            ),
            pytest.param(
                "10000000 00000080 8877665544332211", 16, "error -2147483648", id="the lowest error"
            ),
            pytest.param(
                "18000000 feffffff 8877665544332211", 24, "^8 bytes after", id="a body after error"
            ),
            pytest.param(
                "28000000 feffffff 8877665544332211", 40, "^24 bytes after", id="a longer one"
            ),
        ],
    )
    def test_malformed_header_is_refused(self, header: str, used: int, complaint: str) -> None:
        with pytest.raises(MalformedError, match=complaint):
            fuse.decode_reply_header(bytes.fromhex(header), UNIQUE, used)

    @pytest.mark.parametrize("used", [0, 8, 15])
    def test_reply_shorter_than_its_header_is_refused(self, used: int) -> None:
        header = used.to_bytes(4, "little") + bytes.fromhex("00000000 8877665544332211")
        with pytest.raises(MalformedError, match=f"{used} bytes used where an out-header belongs"):
            fuse.decode_reply_header(header, UNIQUE, used)


@little_endian
class TestReplies:
    def test_init(self) -> None:
        flags = (
            InitFlag.ASYNC_READ
            | InitFlag.BIG_WRITES
            | InitFlag.MAX_PAGES
            | InitFlag.SUBMOUNTS
            | InitFlag.INIT_EXT
            | InitFlag(1 << 33)
        )
        reply = fuse.decode_init(INIT_OUT)
        assert reply == InitReply(38, flags, 1 << 20, 256)
        assert reply.max_read == 1 << 20

    def test_init_without_init_ext_has_no_second_word_of_flags(self) -> None:
        reply = fuse.decode_init(patched(INIT_OUT, 12, "20004008"))
        assert reply.flags == 0x0840_0020
        # bit 31, which means nothing, is not bit 30
        reply = fuse.decode_init(patched(INIT_OUT, 12, "20004088"))
        assert reply.flags == 0x8840_0020

    def test_init_without_max_pages_has_32_pages(self) -> None:
        reply = fuse.decode_init(patched(INIT_OUT, 12, "21000048"))
        assert reply.max_pages == 32
        assert reply.max_read == 128 * 1024

    def test_init_keeps_flags_that_nobody_knows(self) -> None:
        reply = fuse.decode_init(patched(INIT_OUT, 12, "ffffffff"))
        assert reply.flags == 0x2_FFFF_FFFF

    def test_oldest_version_is_accepted(self) -> None:
        assert fuse.decode_init(patched(INIT_OUT, 4, "1b000000")).minor == 27

    def test_attributes(self) -> None:
        assert fuse.decode_attributes(ATTR_OUT) == DECODED_ATTRIBUTES
        attributes = fuse.attributes_of(ATTR_OUT)
        assert fuse.decode_attributes_at(attributes, 0) == DECODED_ATTRIBUTES
        assert fuse.encode_attributes(DECODED_ATTRIBUTES) == attributes

    @pytest.mark.parametrize("field", Attributes._fields)
    def test_what_makes_a_version(self, field: str) -> None:
        other = DECODED_ATTRIBUTES._replace(**{field: 77})
        before = fuse.version_bytes(fuse.encode_attributes(DECODED_ATTRIBUTES))
        is_same = fuse.version_bytes(fuse.encode_attributes(other)) == before
        assert is_same == (
            field not in ("ino", "size", "mtime", "ctime", "mtime_nsec", "ctime_nsec")
        )

    def test_each_byte_of_a_version_counts_and_no_other(self) -> None:
        raw = fuse.encode_attributes(DECODED_ATTRIBUTES)
        counts = {
            *range(16),
            *range(32, 48),
            *range(52, 60),
        }  # ino, size | mtime, ctime | both's ns
        for place in range(len(raw)):
            changed = raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :]
            is_other = fuse.version_bytes(changed) != fuse.version_bytes(raw)
            assert is_other is (place in counts)

    @pytest.mark.parametrize(("offset", "field"), [(24, "atime"), (32, "mtime"), (40, "ctime")])
    def test_time_before_1970_is_negative(self, offset: int, field: str) -> None:
        body = patched(ATTR_OUT, 16 + offset, "feffffffffffffff")
        assert fuse.decode_attributes(body) == DECODED_ATTRIBUTES._replace(**{field: -2})

    @pytest.mark.parametrize(
        ("offset", "replacement", "field", "value"),
        [
            pytest.param(0, "0000000000000000", "ino", 0, id="no inode number"),
            pytest.param(8, "ffffffffffffff7f", "size", 2**63 - 1, id="the largest size"),
            pytest.param(8, "0000000000000080", "size", 2**63, id="size 2**63"),
            pytest.param(8, "ffffffffffffffff", "size", 2**64 - 1, id="size -1"),
            pytest.param(16, "ffffffffffffffff", "blocks", 2**64 - 1, id="blocks of all ones"),
            pytest.param(24, "0000000000000080", "atime", -(2**63), id="the earliest atime"),
            pytest.param(32, "ffffffffffffff7f", "mtime", 2**63 - 1, id="the latest mtime"),
            pytest.param(48, "00ca9a3b", "atime_nsec", 10**9, id="atime of a second"),
            pytest.param(48, "ffffffff", "atime_nsec", 2**32 - 1, id="atime of four seconds"),
            pytest.param(52, "00ca9a3b", "mtime_nsec", 10**9, id="mtime of a second"),
            pytest.param(52, "ffffffff", "mtime_nsec", 2**32 - 1, id="mtime of four seconds"),
            pytest.param(56, "00ca9a3b", "ctime_nsec", 10**9, id="ctime of a second"),
            pytest.param(56, "ffffffff", "ctime_nsec", 2**32 - 1, id="ctime of four seconds"),
            pytest.param(60, "a4010000", "mode", 0o644, id="no type"),
            pytest.param(60, "00000000", "mode", 0, id="no mode"),
            pytest.param(60, "a4310000", "mode", 0o30644, id="a type that is none"),
            pytest.param(60, "a4f10000", "mode", 0o170644, id="all bits of the type"),
            pytest.param(60, "ffffffff", "mode", 2**32 - 1, id="all bits of the mode"),
            pytest.param(64, "00000000", "nlink", 0, id="no link"),
            pytest.param(80, "00000000", "blksize", 0, id="block size 0"),
            pytest.param(84, "ffffffff", "flags", 2**32 - 1, id="all flags"),
        ],
    )
    def test_attributes_are_what_the_file_system_says(
        self, offset: int, replacement: str, field: str, value: int
    ) -> None:
        odd = DECODED_ATTRIBUTES._replace(**{field: value})
        assert fuse.decode_attributes(patched(ATTR_OUT, 16 + offset, replacement)) == odd
        body = patched(ENTRY, 40 + offset, replacement)
        assert fuse.decode_lookup(body) == Entry(NODE, odd)

    @pytest.mark.parametrize(
        ("mode", "kind"),
        [
            ("00100000", 0o010000),
            ("00200000", 0o020000),
            ("00400000", 0o040000),
            ("00600000", 0o060000),
            ("00800000", 0o100000),
            ("00a00000", 0o120000),
            ("00c00000", 0o140000),
        ],
        ids=["fifo", "character device", "directory", "block device", "file", "symlink", "socket"],
    )
    def test_every_type_of_file_is_accepted(self, mode: str, kind: int) -> None:
        assert fuse.decode_attributes(patched(ATTR_OUT, 16 + 60, mode)).mode == kind

    def test_lookup(self) -> None:
        assert fuse.decode_lookup(ENTRY) == Entry(NODE, DECODED_ATTRIBUTES)

    def test_lookup_of_node_0_is_no_entry_whatever_follows(self) -> None:
        assert fuse.decode_lookup(patched(ENTRY, 0, "0000000000000000")) is None
        assert fuse.decode_lookup(bytes(128)) is None

    @pytest.mark.parametrize("offset", [7, 8, 40])
    def test_entry_within_a_buffer(self, offset: int) -> None:
        buffer = b"\xff" * offset + ENTRY + b"\xff"
        assert fuse.decode_entry_at(buffer, offset) == Entry(NODE, DECODED_ATTRIBUTES)

    def test_root_as_an_entry(self) -> None:
        body = patched(ENTRY, 0, "0100000000000000")
        assert fuse.decode_lookup(body) == Entry(fuse.ROOT_ID, DECODED_ATTRIBUTES)

    @pytest.mark.parametrize(
        "target",
        [
            pytest.param(b"../a", id="a path"),
            pytest.param(b"", id="an empty target"),
            pytest.param(b"a\0", id="a NUL"),
            pytest.param(b"x" * 4095, id="the longest that is followed"),
            pytest.param(b"x" * 4096, id="a whole page"),
        ],
    )
    def test_readlink(self, target: bytes) -> None:
        assert fuse.decode_readlink(target) == target

    @pytest.mark.parametrize(
        ("wire", "offset"),
        [
            ("0000000000000000", 0),
            ("0807060504030201", 0x0102030405060708),
            ("ffffffffffffffff", 2**64 - 1),
        ],
    )
    def test_lseek(self, wire: str, offset: int) -> None:
        assert fuse.decode_lseek(bytes.fromhex(wire)) == offset

    def test_open(self) -> None:
        # fh | open_flags | padding
        reply = bytes.fromhex("0d0c000000000000 02000000 00000000")
        assert fuse.decode_open(reply) == HANDLE

    def test_statfs(self) -> None:
        assert fuse.decode_statfs(STATFS_OUT) == FileSystemStatistics(
            blocks=1, bfree=2, bavail=3, files=4, ffree=5, bsize=4096, namelen=255, frsize=512
        )


@little_endian
class TestMalformedReplies:
    @pytest.mark.parametrize(
        ("decode", "good"),
        [
            pytest.param(fuse.decode_init, INIT_OUT, id="INIT"),
            pytest.param(fuse.decode_lookup, ENTRY, id="LOOKUP"),
            pytest.param(fuse.decode_attributes, ATTR_OUT, id="GETATTR"),
            pytest.param(fuse.attributes_of, ATTR_OUT, id="GETATTR, undecoded"),
            pytest.param(fuse.decode_open, bytes(16), id="OPEN"),
            pytest.param(fuse.decode_statfs, STATFS_OUT, id="STATFS"),
            pytest.param(fuse.decode_lseek, bytes(8), id="LSEEK"),
        ],
    )
    @pytest.mark.parametrize("cut", ["nothing", "a byte short", "a byte too long"])
    def test_reply_of_another_size_is_refused(
        self, decode: Callable[[bytes], object], good: bytes, cut: str
    ) -> None:
        body = {"nothing": b"", "a byte short": good[:-1], "a byte too long": good + b"\0"}[cut]
        with pytest.raises(MalformedError, match=f"a reply .*of {len(body)} bytes"):
            decode(body)

    @pytest.mark.parametrize(
        ("version", "complaint"),
        [
            pytest.param("06000000 26000000", r"FUSE 6\.38", id="major 6"),
            pytest.param("08000000 26000000", r"FUSE 8\.38", id="major 8"),
            pytest.param("07000000 1a000000", r"FUSE 7\.26", id="minor 26"),
            pytest.param("ffffffff 26000000", r"FUSE 4294967295\.38", id="major of all ones"),
            pytest.param("00000007 00000026", "FUSE", id="another byte order"),
        ],
    )
    def test_version_that_is_not_spoken_is_refused(self, version: str, complaint: str) -> None:
        with pytest.raises(MalformedError, match=complaint):
            fuse.decode_init(patched(INIT_OUT, 0, version))

    def test_requests_of_no_pages_are_refused(self) -> None:
        with pytest.raises(MalformedError, match="no pages"):
            fuse.decode_init(patched(INIT_OUT, 28, "0000"))

    def test_number_of_pages_means_nothing_without_max_pages(self) -> None:
        body = patched(patched(INIT_OUT, 12, "21000048"), 28, "0000")
        assert fuse.decode_init(body).max_pages == 32

    @pytest.mark.parametrize(("offset", "left"), [(1, 127), (128, 0), (200, -72)])
    def test_entry_that_leaves_its_buffer_is_refused(self, offset: int, left: int) -> None:
        with pytest.raises(MalformedError, match=f"^{left} bytes where an entry of 128 belongs"):
            fuse.decode_entry_at(ENTRY, offset)


def test_requests_for_many_files_differ_in_some_words_only() -> None:
    who, unique, node = Credentials(1, 2, 3), 1 << 63, NodeId((1 << 64) - 2)
    none, handle, size = FileHandle(0), FileHandle((1 << 63) + 1), 9000
    common = {fuse.UNIQUE_WORD: unique, fuse.NODE_WORD: node}
    with_handle = {**common, fuse.HANDLE_WORD: handle}
    for one, other, differing in (
        (fuse.open(fuse.ROOT_ID), fuse.open(node), common),
        (fuse.getattr(fuse.ROOT_ID), fuse.getattr(node), common),
        (fuse.release(fuse.ROOT_ID, none), fuse.release(node, handle), with_handle),
        (
            fuse.read(fuse.ROOT_ID, none, 0, 0),
            fuse.read(node, handle, 0, size),
            {**with_handle, fuse.READ_SIZE_WORD: size},
        ),
    ):
        words = memoryview(bytearray(one.encode(0, who))).cast("Q")
        for place, word in differing.items():
            words[place] = word
        assert words.tobytes() == other.encode(unique, who)
