"""Path resolution on a file system of a few lines: where limits lie, and what is never asked."""

import errno
import stat
from collections.abc import Mapping

import pytest

from protocol.fuse import Entry, NodeId
from vuserd.device.procedure import Procedure
from vuserd.errors import FileError
from vuserd.fs.nodes import Node, root_node
from vuserd.fs.paths import MAX_SYMLINKS, components, resolve

#: A directory is a mapping, a symlink bytes, a file None.
Tree = Mapping[bytes, "Tree | bytes | None"]


class Files:
    """Looks names up in a tree, and remembers which."""

    def __init__(self, tree: Tree) -> None:
        self.root = root_node()
        self.asked: list[bytes] = []
        self._content: dict[int, Tree | bytes | None] = {self.root.id: tree}

    def lookup(self, directory: Node, name: bytes) -> Procedure[Node]:
        yield []
        self.asked.append(name)
        inside = self._content[directory.id]
        assert isinstance(inside, Mapping)
        if name not in inside:
            raise FileError(errno.ENOENT)
        found = inside[name]
        mode = stat.S_IFREG
        if found is not None:
            mode = stat.S_IFLNK if isinstance(found, bytes) else stat.S_IFDIR
        node = NodeId(len(self._content) + 1)
        self._content[node] = found
        return Node(Entry(node, self.root.attributes._replace(mode=mode, ino=node)))

    def readlink(self, node: Node) -> Procedure[bytes]:
        yield []
        target = self._content[node.id]
        assert isinstance(target, bytes)
        return target

    def find(self, path: bytes, *, follow: bool = True) -> Tree | bytes | None:
        finding = resolve(
            [self.root], components(path), follow=follow, lookup=self.lookup, readlink=self.readlink
        )
        try:
            while True:
                next(finding)
        except StopIteration as end:
            return self._content[end.value.id]


def chain(links: int) -> Tree:
    """Return a directory in which ``0`` leads over so many links to a file."""
    names = {b"%d" % number: b"%d" % (number + 1) for number in range(links)}
    return {**names, b"%d" % links: None}


def test_as_many_symlinks_as_linux_follows() -> None:
    assert MAX_SYMLINKS == 40
    assert Files(chain(40)).find(b"0") is None
    with pytest.raises(FileError) as refused:
        Files(chain(41)).find(b"0")
    assert refused.value.code == "ELOOP"


def test_nothing_but_names_reaches_the_backend() -> None:
    files = Files({b"a": {b"b": {b"file": None}}, b"up": b"/../../a/./b//"})
    assert files.find(b"//a/./b/.././/../..//up/file") is None
    assert set(files.asked) <= {b"a", b"b", b"up", b"file"}


def test_dot_dot_forgets_the_directory_whatever_its_name_means_now() -> None:
    """The way up is the way that was walked: a directory moved meanwhile opens no way out."""
    files = Files({b"a": {b"link": b"../../../../etc"}, b"etc": {b"passwd": None}})
    assert files.find(b"a/link/passwd") is None
    assert files.asked == [b"a", b"link", b"etc", b"passwd"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (b"file/", "ENOTDIR"),
        (b"file/.", "ENOTDIR"),
        (b"file/..", "ENOTDIR"),
        (b"file/x", "ENOTDIR"),
        (b"empty/x", "ENOENT"),
        (b"dangling", "ENOENT"),
        (b"self", "ELOOP"),
        (b"x" * 4096, "ENAMETOOLONG"),
        (b"x" * 256, "ENOENT"),  # how long a name may be is the file system's to say
        (b"empty", "ENOENT"),
        (b"long", "ENAMETOOLONG"),
        (b"nul", "EINVAL"),
        (b"x/" * 2048, "ENAMETOOLONG"),
        (b"a\0b", "EINVAL"),
    ],
)
def test_errors_are_the_kernels(path: bytes, code: str) -> None:
    files = Files(
        {
            b"file": None,
            b"dangling": b"nowhere",
            b"self": b"self",
            b"empty": b"",
            b"long": b"x" * 4096,
            b"nul": b"fi\0le",
        }
    )
    with pytest.raises(FileError) as refused:
        files.find(path)
    assert refused.value.code == code


def test_a_symlink_at_the_end_is_followed_when_asked_or_named_with_a_slash() -> None:
    files = Files({b"link": b"directory", b"directory": {}})
    assert files.find(b"link", follow=False) == b"directory"
    assert files.find(b"link", follow=True) == {}
    assert files.find(b"link/", follow=False) == {}


def test_the_longest_path_is_linuxs() -> None:
    assert len(components(b"x/" * 2047 + b"x")) == 2048
