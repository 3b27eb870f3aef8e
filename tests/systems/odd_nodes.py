"""Files that no sound file system has: one of each kind, and any mixture for hypothesis."""

import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from hypothesis import strategies as st

from tests.systems.oddtree import Entry, Node, Time, directory

_DIRECTORY: Final = stat.S_IFDIR | 0o755
_SYMLINK: Final = stat.S_IFLNK | 0o777
_CONTENT: Final = b"odd content\n"
_ENOSYS: Final = 38
#: Python asks again for ever where a system call says so: the tests' own look would not end.
_EINTR: Final = 4

#: What may be answered with an error; ENTRY is a look-up of the node's own name.
_OPERATIONS: Final = (
    *("ENTRY", "LOOKUP", "GETATTR", "READLINK", "OPEN", "READ", "RELEASE", "FLUSH"),
    *("OPENDIR", "READDIR", "RELEASEDIR", "STATFS"),
)
#: With ENOSYS to these the kernel asks for them no more, for as long as it is mounted.
_ASKED_ONCE: Final = frozenset({"OPEN", "OPENDIR"})
#: The kernel's own limit for what a server may answer.
MOST_ERRNO: Final = 511


def _each(nodes: Iterable[Node]) -> list[Entry]:
    return [Entry(f"odd {number}".encode(), node) for number, node in enumerate(nodes)]


def _file(**fields: object) -> Node:
    return replace(Node(content=_CONTENT), **fields)  # type: ignore[arg-type]


_SIZES: Final = tuple(
    value
    for bound in (1 << 31, 1 << 32, 1 << 40, 1 << 62, 1 << 63, 1 << 64)
    for value in (bound - 1, bound)
    if value < 1 << 64
)
_SECONDS: Final = (-1, -(1 << 31), 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_NANOSECONDS: Final = (999_999_999, 10**9, 10**9 + 1, (1 << 31) - 1, (1 << 32) - 1)
_NO_TYPES: Final = (0, 0o030000, 0o070000, 0o110000, 0o150000, 0o160000, 0o170000)
_TYPES: Final = (0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000)
#: Offsets of a directory's entries that do not grow: equal, falling, none, and as far as they go.
_OFFSETS: Final = ((0,), (5,), (9, 8, 7, 6, 5, 4, 3, 2, 1), (1, 2), (1 << 62, 3), ((1 << 63) - 1,))
_OTHER: Final = Entry(b"odd other", _file())

_ERRNOS: Final = (1, 2, 5, 11, 12, 18, 20, 24, 40, 116, 133, 134, 300, MOST_ERRNO)

#: Kinds of oddity by name: what is in a directory beside ordinary files.
KINDS: Final[Mapping[str, list[Entry]]] = {
    **{f"name of {length}": [Entry(b"N" * length, _file())] for length in (255, 256, 1024, 4095)},
    "many long names": [Entry(b"%04d" % n + b"L" * (n * 200 + 300), _file()) for n in range(15)],
    "link targets": _each(
        Node(_SYMLINK, b"x" * length) for length in (0, 1, 255, 1023, 1024, 2048, 4000, 4095)
    ),
    "inode number 0": [Entry(b"odd 0", _file(ino=0)), Entry(b"odd 1", directory({}, ino=0))],
    "inode number 0 in a listing": [Entry(b"odd", _file(), ino=0)],
    "the largest inode number": [Entry(b"odd", _file(ino=(1 << 64) - 1), ino=(1 << 64) - 1)],
    "types": _each(_file(mode=mode | 0o644) for mode in _TYPES),
    "no types": _each(_file(mode=mode | 0o644) for mode in _NO_TYPES),
    "listed types": [
        Entry(b"odd %d" % kind, _file(), kind) for kind in (0, 3, 4, 10, 12, 14, 15, 255)
    ],
    "changing types": _each(_file(later_modes=(mode | 0o644,)) for mode in (*_TYPES, 0o170000)),
    "sizes": _each(_file(size=size) for size in _SIZES),
    "sizes, and direct I/O": _each(_file(size=size, direct=True) for size in _SIZES),
    "seconds": _each(_file(times=(Time(number),) * 3) for number in _SECONDS),
    "nanoseconds": _each(_file(times=(Time(1, number),) * 3) for number in _NANOSECONDS),
    "the same name twice": [Entry(b"odd", _file()), Entry(b"odd", _file(content=b"another"))],
    "the same name of two types": [Entry(b"odd", _file()), Entry(b"odd", directory({}))],
    "offsets that do not grow": _each(
        directory({b"in it": _file(), b"too": _file()}, offsets=offsets) for offsets in _OFFSETS
    ),
    "missing dots": [Entry(b"odd", directory({b"in it": _file()}, dots=False)), _OTHER],
    "a directory without anything": [Entry(b"odd", directory({}, dots=False)), _OTHER],
    "block sizes": _each(_file(blksize=size) for size in (0, 1, 3, 511, 65536)),
    "numbers of links": _each(_file(nlink=number) for number in (0, 1 << 31, (1 << 32) - 1)),
    "the largest owner": [Entry(b"odd", _file(owner=((1 << 32) - 1, (1 << 32) - 1)))],
    "the largest blocks": [Entry(b"odd", _file(blocks=(1 << 64) - 1))],
    **{
        f"errors of {operation}": [
            *_each(replace(node, errors={operation: number}) for number in _ERRNOS),
            _OTHER,
        ]
        for operation, node in (
            *((operation, _file()) for operation in ("ENTRY", "GETATTR", "OPEN", "READ", "FLUSH")),
            ("READLINK", Node(_SYMLINK, b"odd other")),
            *((name, directory({b"in it": _file()})) for name in ("OPENDIR", "READDIR", "LOOKUP")),
        )
    },
}

#: Inode numbers that every node may have: of none, and of the mount's root. The others are drawn as
#: one of these, and get numbers of their own.
_SHARED: Final = (0, 1)
_MIDDLE: Final = 1 << 32
_LARGEST: Final = (1 << 64) - 1


def told_apart(entries: tuple[Entry, ...], fresh: Iterator[int]) -> tuple[Entry, ...]:
    """Return the entries with inode numbers that no other file has, nor had in a tree before.

    A backend takes files of one number for one file as long as it knows either of them.

    Args:
        entries: what is in a directory.
        fresh: integers from 1 on, each once for a mount.

    """

    def renumbered(node: Node) -> Node:
        below = told_apart(node.entries, fresh)
        if node.ino is None or node.ino in _SHARED:
            return replace(node, entries=below)
        number = next(fresh)
        ino = _LARGEST - number if node.ino == _LARGEST else _MIDDLE + number
        return replace(node, ino=ino, entries=below)

    return tuple(entry._replace(node=renumbered(entry.node)) for entry in entries)


_perms = st.integers(0, 0o7777)
_times = st.builds(
    Time,
    st.one_of(st.integers(0, 1 << 33), st.sampled_from(_SECONDS)),
    st.one_of(st.integers(0, 10**9), st.sampled_from(_NANOSECONDS)),
)


def names(longest: int) -> st.SearchStrategy[bytes]:
    """Return names that FUSE lets through: not those of the ordinary files, "p..."."""
    short = st.binary(min_size=1, max_size=12)
    long = st.builds(
        bytes.__mul__, st.sampled_from([b"L", b"\xff", b"\n"]), st.integers(200, longest)
    )
    return st.one_of(short, long).filter(
        lambda name: (
            not (b"/" in name or b"\0" in name or name in (b".", b"..") or name[:1] == b"p")
        )
    )


_errors = st.dictionaries(
    st.sampled_from(_OPERATIONS),
    st.integers(1, MOST_ERRNO).filter(lambda number: number != _EINTR),
    max_size=2,
).filter(lambda errors: all(errors.get(name) != _ENOSYS for name in _ASKED_ONCE))


def _nodes(types: tuple[int, ...], content: st.SearchStrategy[bytes]) -> st.SearchStrategy[Node]:
    return st.builds(
        Node,
        mode=st.builds(int.__or__, st.sampled_from(types), _perms),
        content=content,
        size=st.one_of(st.none(), st.none(), st.integers(0, 100), st.sampled_from(_SIZES)),
        ino=st.one_of(st.none(), st.sampled_from([*_SHARED, _MIDDLE, _LARGEST])),
        times=st.tuples(_times, _times, _times),
        nlink=st.sampled_from([1, 1, 0, 2, (1 << 32) - 1]),
        owner=st.tuples(*[st.sampled_from([0, 1000, 65534, (1 << 32) - 1])] * 2),
        blocks=st.sampled_from([0, 8, 1 << 32, (1 << 64) - 1]),
        blksize=st.sampled_from([0, 1, 3, 512, 4096, 65536]),
        direct=st.booleans(),
        errors=st.one_of(st.just({}), _errors),
        later_modes=st.one_of(
            st.just(()),
            st.lists(st.sampled_from(_TYPES + _NO_TYPES), min_size=1, max_size=2).map(tuple),
        ),
    )


def _entries(longest: int, nodes: st.SearchStrategy[Node], most: int) -> st.SearchStrategy[object]:
    kinds = st.one_of(st.none(), st.none(), st.integers(0, 255))
    numbers = st.one_of(st.none(), st.none(), st.sampled_from([0, 5, (1 << 64) - 1]))
    entries = st.builds(Entry, names(longest), nodes, kinds, numbers)
    return st.lists(entries, max_size=most).map(tuple)


def odd_entries(longest: int) -> st.SearchStrategy[tuple[Entry, ...]]:
    """Return what may be in a directory, directories included; names have ``longest`` bytes."""
    content = st.one_of(
        st.binary(max_size=40),
        st.builds(bytes.__mul__, st.just(b"content "), st.integers(1, 1500)),
    )
    files = _nodes((*_TYPES, 0o100000, 0o100000, *_NO_TYPES), content)
    links = _nodes((0o120000,), st.builds(bytes.__mul__, st.just(b"t"), st.integers(0, 4095)))
    leaves = st.one_of(files, files, links)
    offsets = st.one_of(
        st.none(),
        st.lists(st.integers(0, 20) | st.sampled_from([1 << 40, (1 << 63) - 1]), min_size=1).map(
            tuple
        ),
    )
    folders = st.builds(
        lambda node, entries, dots, offsets: replace(
            node, entries=entries, dots=dots, offsets=offsets
        ),
        _nodes((0o040000,), st.just(b"")),
        _entries(longest, leaves, 4),
        st.booleans(),
        offsets,
    )
    return _entries(longest, st.one_of(leaves, leaves, folders), 6)  # type: ignore[return-value]
