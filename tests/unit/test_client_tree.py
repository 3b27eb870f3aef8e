"""Trees with the bytes of their files, as each client gives them, and what no daemon may send."""

from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.fake.rpc_server import FakeDaemon, Node, directory
from tests.fake.tree_pages import columns, page, row
from tests.unit.faces import Connect
from vuserd.client import Client
from vuserd.client.errors import BadReply, NotTaken, RemoteError
from vuserd.client.files.tree_page import PAGE_BYTES, TreePage
from vuserd.wire.bin_head import encode_bin_response_head
from vuserd.wire.codec import Request


@pytest.fixture(autouse=True)
def _with_trees(fake_daemon: FakeDaemon) -> None:
    fake_daemon.unknown.clear()


@pytest.mark.parametrize("limit", [1, 2, 1000])
@pytest.mark.parametrize("piece", [None, 7])
def test_all_of_a_tree(
    client: Client, fake_daemon: FakeDaemon, limit: int, piece: int | None
) -> None:
    fake_daemon.tree_limit, fake_daemon.piece, fake_daemon.tree_most = limit, piece, 3
    fake_daemon.root = directory(
        a=Node(content=b"a's"),
        b=directory(empty=Node(), large=Node(content=b"larger"), pipe=Node("fifo")),
        link=Node("symlink", b"../some\xff"),
    )
    fake_daemon.root.children[b"\xff"] = Node(content=b"odd")
    found = [
        (entry.path, entry.content and bytes(entry.content), entry.target)
        for entry in client.tree("kernels", "/")
    ]
    assert found == [
        ("a", b"a's", None),
        ("b", None, None),
        ("b/empty", memoryview(b""), None),
        ("b/large", None, None),
        ("b/pipe", None, None),
        ("link", None, "../some\udcff"),
        ("\udcff", b"odd", None),
    ]


def test_attributes_are_those_of_a_stat(client: Client) -> None:
    for entry in client.tree("kernels", ""):
        assert entry.stat == client.stat("kernels", entry.path, follow=False)
        assert entry.name == entry.path.rpartition("/")[2]


def test_what_cannot_be_read_says_why(client: Client, fake_daemon: FakeDaemon) -> None:
    entries = [
        row("gone", "unknown", error="ENOENT"),
        row("kept", error="CHANGED"),
        row("no", error="EACCES"),
    ]
    problems = [
        {"path": b"d\xff", "code": "EACCES", "message": "permission denied", "errno": 13},
        {"path": "", "code": "CHANGED", "message": "the directory was replaced"},
    ]

    def answer(request: Request) -> bytes:
        content = page(columns(entries), b"", problems)
        return encode_bin_response_head(request.msgid, len(content)) + content

    fake_daemon.raw["tree"] = answer
    found = list(client.tree("kernels", ""))
    assert [(entry.path, entry.stat is None) for entry in found] == [
        ("gone", True),
        ("kept", False),
        ("no", False),
        ("d\udcff", True),
        ("", True),
    ]
    errors: list[Any] = [entry.error for entry in found]
    assert isinstance(errors[0], FileNotFoundError)
    assert isinstance(errors[2], PermissionError)
    assert isinstance(errors[3], PermissionError)
    assert [str(error) for error in errors] == [
        "no such file or directory (ENOENT)",
        "the file changed in each attempt to read it (CHANGED)",
        "permission denied (EACCES)",
        "permission denied (EACCES)",
        "the directory was replaced (CHANGED)",
    ]


def test_no_tree_of_a_file(client: Client) -> None:
    with pytest.raises(NotADirectoryError):
        next(client.tree("kernels", "image"))


def test_a_tree_does_not_go_on_with_another_daemon(client: Client, fake_daemon: FakeDaemon) -> None:
    fake_daemon.tree_limit = 1
    tree = client.tree("kernels", "boot")
    assert next(tree).path == "a"
    fake_daemon.wait_for_requests(2)
    assert next(tree).path == "b"
    fake_daemon.tree_limit = 2
    assert [entry.path for entry in client.tree("kernels", "boot")] == ["a", "b"]


def test_the_next_page_is_asked_for_before_one_is_decoded(
    client: Client, fake_daemon: FakeDaemon
) -> None:
    def answer(request: Request) -> bytes:
        content = page(columns([row("a/../b")]), b"", [], b"more")
        return encode_bin_response_head(request.msgid, len(content)) + content

    fake_daemon.raw["tree"] = answer
    with pytest.raises(BadReply):
        next(client.tree("kernels", ""))
    fake_daemon.wait_for_requests(2)
    assert [request.method for request in fake_daemon.requests] == ["tree", "tree"]


def test_a_tree_left_alone(connect: Connect, fake_daemon: FakeDaemon) -> None:
    """Its page comes all the same, to a buffer that is the tree's no more."""
    fake_daemon.tree_limit = 1
    with connect(fake_daemon.address) as client:
        tree = client.tree("kernels", "")
        assert next(tree).path == "image"
        fake_daemon.end_connections()
        assert isinstance(tree, Generator)
        with pytest.raises(NotTaken):
            for _ in tree:
                pass
        tree.close()
        assert client.exports()
        tree = client.tree("kernels", "")
        assert next(tree).path == "image"
        assert isinstance(tree, Generator)
        tree.close()
        assert client.stat("kernels", "image").type == "file"


# -- what no daemon may send -----------------------------------------------------------------------

FILE = row("a", size=3, offset=0, length=3)


def spoiled(**fields: object) -> bytes:
    return page(columns([FILE, {**FILE, "path": "b", **fields}]), b"abc")


def shortened_by(name: str) -> bytes:
    entries = columns([FILE, FILE | {"path": "b"}])
    entries[name].pop()
    return page(entries, b"abc")


WRONG_PATHS = ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b", b"a\0"]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\5\x80",
        b"\0\0\0\1\xc1",
        b"\0\0\0\2\x80\x80",
        b"\0\0\x10\0" + b"\x91" * 4096,
        b"\0\0\0\1\x90",
        b"\0\0\0\1\x80",
        page(None),
        page([]),
        page({"path": []}),
        page(columns([FILE]) | {"size": None}),
        page({}, b"", None),
        page({}, b"", [1]),
        page({}, b"", [{"code": "EIO"}]),
        page({}, b"", [{"path": "../a", "code": "EIO"}]),
        page({}, following=1),
        *(spoiled(path=path) for path in WRONG_PATHS),
        *(spoiled(**{name: 1.5}) for name in FILE if name != "problems"),
        *(spoiled(**{name: True}) for name in FILE if name != "submount"),
        *(shortened_by(name) for name in FILE),
        spoiled(size=-1, length=-1),
        *(spoiled(**{name: -1}) for name in ("mode", "ino", "nlink", "uid", "gid", "rdev")),
        *(spoiled(**{name: 1 << 32}) for name in ("mode", "nlink", "uid", "gid", "blksize")),
        spoiled(offset=1),
        spoiled(offset=-1),
        spoiled(offset=1 << 63),
        spoiled(length=2),
        spoiled(size=4),
        spoiled(offset=None),
        spoiled(length=None),
        spoiled(type="dir"),
        spoiled(type="symlink", target="x"),
        spoiled(error="EIO"),
        spoiled(link=bytes(65)),
        spoiled(target=3),
    ],
)
def test_a_page_that_is_none(sent: bytes) -> None:
    with pytest.raises(BadReply):
        TreePage.from_wire(memoryview(sent))


def test_a_page_without_entries() -> None:
    without: list[dict[str, list[object]]] = [{}, {name: [] for name in FILE}]
    for entries in without:
        assert TreePage.from_wire(memoryview(page(entries))) == ([], None)


def test_what_a_later_daemon_adds_is_ignored() -> None:
    entries = columns([FILE | {"later": 1}])
    [entry] = TreePage.from_wire(memoryview(page(entries, b"abc"))).entries
    assert entry.content is not None
    assert bytes(entry.content) == b"abc"


@pytest.mark.parametrize("size", [PAGE_BYTES + 1, 64 << 20])
def test_a_page_that_is_larger_than_was_asked_for(
    client: Client, fake_daemon: FakeDaemon, size: int
) -> None:
    raw: Callable[..., bytes] = lambda request: (  # noqa: E731
        encode_bin_response_head(request.msgid, size) + bytes(size)
    )
    fake_daemon.raw["tree"] = raw
    with pytest.raises(BadReply, match="more bytes than were asked for"):
        next(client.tree("kernels", ""))
    assert client.exports()


def test_an_error_in_place_of_a_page(client: Client, fake_daemon: FakeDaemon) -> None:
    fake_daemon.unknown.add("tree")
    with pytest.raises(RemoteError) as refused:
        next(client.tree("kernels", ""))
    assert refused.value.code == "UNKNOWN_METHOD"
