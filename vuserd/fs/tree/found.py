"""What was found of a tree: directories that are read, and entries that wait to be delivered."""

from typing import Final

from protocol.fuse import Attributes, FileHandle, NodeId, decode_attributes_at
from vuserd.errors import VuserdError
from vuserd.fs.directories.given import Given
from vuserd.fs.directories.offsets import Offsets

#: Bytes of memory for a directory.
_DIRECTORY: Final = 1024


class Branch:
    """A directory whose entries, or the rest of them, are still to be found."""

    def __init__(self, path: bytes, mount: int | None, ino: int | None) -> None:
        self.path = path
        #: What stands before the names in it.
        self.above = path + b"/" if path else b""
        #: On which of the mounts it is, counted from 0 where the tree begins; None if the backend
        #: does not mark mounts, or it was found anew by a way over one.
        self.mount = mount
        #: What it was when it was found.
        self.ino = ino
        self.node: NodeId | None = None
        #: How many names are looked up in it, and whether its node is given back after the last.
        self.lookups = 0
        self.is_left = False
        self.handle: FileHandle | None = None
        self.position = 0
        self.barren = 0
        self.offsets = Offsets()
        self.given = Given()

    @property
    def remembered(self) -> int:
        """Bytes of memory that it takes."""
        return _DIRECTORY + 2 * len(self.path) + self.given.remembered


class Found:
    """An entry of the tree, from when it is found until it is delivered.

    ``node`` is in use, and owed a lookup count, until :meth:`Tree.leave`; it is None for a
    directory, which its :class:`Branch` uses, and for what has to be looked up first.
    """

    __slots__ = (
        "attributes",
        "branch",
        "error",
        "is_old",
        "length",
        "mode",
        "name",
        "node",
        "place",
        "size",
        "target",
    )

    def __init__(
        self,
        branch: Branch,
        name: bytes,
        node: NodeId | None = None,
        attributes: bytes | None = None,
        mode: int = 0,
        size: int = 0,
        is_old: bool = False,  # noqa: FBT001, FBT002 - by name it takes twice as long
    ) -> None:
        self.branch = branch
        self.name = name
        self.node = node
        #: A ``struct fuse_attr``, and what it says; None where it was not looked up.
        self.attributes = attributes
        self.mode = mode
        self.size = size
        #: Whether it has not changed for so long that its version is settled.
        self.is_old = is_old
        #: Why it cannot be delivered.
        self.error: VuserdError | None = None
        #: Where a symlink leads to.
        self.target: bytes | None = None
        #: Where a file's bytes stand in the page (for the page to know), and how many they are;
        #: None without them.
        self.place: int | None = None
        self.length: int | None = None

    def now_has(self, attributes: bytes) -> Attributes:
        """Take the attributes that it has now, and return them decoded."""
        found = decode_attributes_at(attributes, 0)
        self.attributes, self.mode, self.size = attributes, found.mode, found.size
        self.is_old = False
        return found

    @property
    def path(self) -> bytes:
        """The path from where the tree begins."""
        return self.branch.above + self.name

    @property
    def mount(self) -> int | None:
        """On which of the mounts it is; see :class:`Branch`."""
        return self.branch.mount
