"""The methods on an export of the fake backend: listings in pages, open files."""

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.fuse import Opcode
from tests.fake.backend import CONFIGURE_MEM_SLOTS, MAX_PAGES, Answer, FakeBackend, File
from tests.fake.bare_daemon import NoManager
from tests.fake.files import ROOT, FuseRequest, coarse_now
from tests.faults.harness import exported
from tests.unit.test_owners import proc
from vuserd.config.model import ClientLimits
from vuserd.delivery.attached import Loaded
from vuserd.delivery.images import ImageStore
from vuserd.delivery.inline import FileContent
from vuserd.device.procedure import carry_out
from vuserd.errors import CallError, FileError
from vuserd.exports.export import Export
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.owners import owners_of
from vuserd.rpc.access import Peer, Rights
from vuserd.rpc.accounts import Account
from vuserd.rpc.caller import Caller
from vuserd.rpc.methods.files import EXTENTS_MAX
from vuserd.rpc.methods.signature import TIMEOUT
from vuserd.rpc.methods.table import API_COMPATIBLE, API_LEVEL, Methods
from vuserd.rpc.results.answers import Listing, Tree
from vuserd.tasks.turns import Turns
from vuserd.wire.codec import MessageDecoder, Response, decode_value

CONTENT = bytes(range(251)) * 40
NAMES = [f"file-{number}" for number in range(20)]


class Client:
    """A client of the methods, without a socket between."""

    def __init__(self, methods: Methods, limits: ClientLimits) -> None:
        self._methods = methods
        self.account = account = Account(os.geteuid(), None, limits, Turns())
        rights = Rights(Peer(os.getpid(), os.geteuid(), frozenset()))
        self.caller = Caller(rights, account, limits)

    async def call(self, name: str, *params: Any) -> Any:
        """Make a call; return its result as it is on the wire."""
        method = self._methods.find(name)
        arguments, options = method.bind(params)
        options.pop(TIMEOUT, None)
        result = await method.handler(self.caller, *arguments, **options)
        if isinstance(result, FileContent):
            content = b"".join(result.views())
            result.give_back()
            return content
        if isinstance(result, Listing):
            decoder = MessageDecoder()
            decoder.feed(b"".join(result.pieces(1)))
            message = decoder.next_message()
            assert isinstance(message, Response)
            return message.result
        return result

    async def refused(self, name: str, *params: Any) -> str:
        """Make a call that is refused; return the code."""
        with pytest.raises((CallError, FileError)) as error:
            await self.call(name, *params)
        return str(error.value.code)


@pytest.fixture
def backend() -> FakeBackend:
    files: dict[bytes, File | bytes] = {name.encode(): b"x" for name in NAMES}
    backend = FakeBackend({b"Image": CONTENT, b"folder": File(mode=stat.S_IFDIR | 0o755), **files})
    backend.orders_differ = True
    backend.protocol_features |= CONFIGURE_MEM_SLOTS
    return backend


@pytest.fixture
async def methods(backend: FakeBackend, tmp_path: Path) -> AsyncIterator[Methods]:
    path = str(tmp_path / "backend.sock")
    async with exported(backend, path) as export, trio.open_nursery() as nursery:
        yield Methods({"files": export}, ImageStore(0, 1, nursery), NoManager())


@pytest.fixture
async def client(methods: Methods, backend: FakeBackend) -> AsyncIterator[Client]:
    """Yield a client, and check that its end closes all that it had open in the backend."""
    client = Client(methods, ClientLimits(files=3, listings=2))
    yield client
    await client.caller.close()
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()
    assert (client.account.holdings.count, client.account.holdings.size) == (0, 0)


# --- what there is --------------------------------------------------------------------------------


async def test_what_is_new_says_since_when(client: Client) -> None:
    info = await client.call("api_info")
    assert (info["api_level"], info["api_compatible"]) == (API_LEVEL, API_COMPATIBLE) == (5, 1)
    methods = {method["name"]: method for method in info["methods"]}
    since_2 = {name for name, method in methods.items() if method["since"] == 2}
    assert since_2 == {"open", "close", "extents"}
    for name in ("stat", "read", "load"):
        options = methods[name]["params"][-1]["options"]
        assert {"name": "file", "type": "int or nil", "default": None} in options
    for name in ("readdir", "walk"):
        options = methods[name]["params"][-1]["options"]
        assert {"name": "columns", "type": "bool", "default": False} in options
    for name in ("stat", "open", "readdir", "walk", "tree"):
        options = methods[name]["params"][-1]["options"]
        assert {"name": "split_times", "type": "bool", "default": False} in options
    assert methods["errors_as"]["since"] == 4


# --- listings in columns --------------------------------------------------------------------------

STAT_FIELDS = (
    "mode", "size", "nlink", "uid", "gid", "rdev", "blocks", "blksize",
    "atime_ns", "mtime_ns", "ctime_ns",
)  # fmt: skip


def as_maps(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Make a map of each entry, as a page without columns has them."""
    entries = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    for entry in entries:
        for key in [key for key, value in entry.items() if value is None]:
            del entry[key]
        if not entry.get("submount", True):
            del entry["submount"]
    return entries


@pytest.mark.parametrize("attrs", [False, True])
@pytest.mark.parametrize("method", ["readdir", "walk"])
async def test_columns_have_what_maps_have(
    client: Client, backend: FakeBackend, method: str, attrs: bool
) -> None:
    far, ago = File(mtime=1 << 40, nanoseconds=5), File(b"12", mtime=-(1 << 40))
    odd = {b"\xff\xfe": File(b"odd", mode=0o170000), "\u00e4".encode(): far, b"mount": ago}
    backend.files |= odd | {b"root": File(mode=stat.S_IFDIR | 0o755, flags=1)}
    backend.orders_differ = False

    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode in (Opcode.READDIR, Opcode.READDIRPLUS) and request.node != ROOT:
            return Answer()
        return backend.serve_files(request)

    backend.answer = answer
    maps = await client.call(method, "files", "", {"attrs": attrs})
    page = await client.call(method, "files", "", {"attrs": attrs, "columns": True})
    assert page.keys() == maps.keys()
    key = {"readdir": "name", "walk": "path"}[method]
    expected = [key, "type", "ino", *(STAT_FIELDS if attrs else ())]
    assert [*page["entries"]] == [*expected, *(["submount"] if attrs else [])]
    assert as_maps(page["entries"]) == maps["entries"]
    assert b"\xff\xfe" in page["entries"][key]
    assert ("unknown" in page["entries"]["type"]) is attrs  # as its mode has it


TIMES = ("atime", "mtime", "ctime")


def split(shown: dict[str, Any]) -> dict[str, Any]:
    """Return the same with the times in seconds and nanoseconds."""
    others = {name: value for name, value in shown.items() if not name.endswith("_ns")}
    for name in TIMES:
        others[name], others[f"{name}_nsec"] = divmod(shown[f"{name}_ns"], 10**9)
    return others


async def test_times_in_seconds_and_nanoseconds(client: Client, backend: FakeBackend) -> None:
    now, ago = File(mtime=1_700_000_001, nanoseconds=123_456_789), File(mtime=-5)
    backend.files.clear()
    backend.files |= {b"now": now, b"ago": ago}
    backend.orders_differ = False
    for name in ("now", "ago"):
        stat = await client.call("stat", "files", name)
        assert await client.call("stat", "files", name, {"split_times": True}) == split(stat)
    opened = await client.call("open", "files", "now", {"split_times": True})
    assert (opened["mtime"], opened["mtime_nsec"]) == (1_700_000_001, 123_456_789)
    for method in ("readdir", "walk"):
        options = {"attrs": True}
        entries = (await client.call(method, "files", "", options))["entries"]
        page = await client.call(method, "files", "", options | {"split_times": True})
        assert page["entries"] == [*map(split, entries)]
        options |= {"split_times": True, "columns": True}
        page = await client.call(method, "files", "", options)
        assert as_maps(page["entries"]) == [*map(split, entries)]


@pytest.mark.parametrize("attrs", [False, True])
async def test_columns_of_an_empty_page_are_empty_lists(
    client: Client, backend: FakeBackend, attrs: bool
) -> None:
    backend.files.clear()
    page = await client.call("readdir", "files", "", {"attrs": attrs, "columns": True})
    assert page["entries"] == {
        name: [] for name in ("name", "type", "ino", *(STAT_FIELDS if attrs else ()))
    }


async def test_columns_of_what_cannot_be_looked_up_are_nil(
    client: Client, backend: FakeBackend
) -> None:
    def answer(request: FuseRequest) -> Answer | None:
        if request.opcode is Opcode.READDIRPLUS:
            return Answer(error=errno.EIO)
        if request.opcode is Opcode.LOOKUP and request.body == b"folder\0":
            return Answer(error=errno.EIO)
        return backend.serve_files(request)

    backend.answer = answer
    backend.orders_differ = False
    options = {"attrs": True, "columns": True}
    entries = (await client.call("readdir", "files", "", options))["entries"]
    place = entries["name"].index("folder")
    named = (await client.call("readdir", "files", "", {"columns": True}))["entries"]
    assert all(entries[field][place] == named[field][place] for field in named)
    assert {entries[field][place] for field in STAT_FIELDS} == {None}
    assert all(None not in row[:place] + row[place + 1 :] for row in entries.values())
    maps = (await client.call("readdir", "files", "", {"attrs": True}))["entries"]
    assert as_maps(entries) == maps


async def test_pages_of_columns_and_of_maps_follow_each_other(
    client: Client, backend: FakeBackend
) -> None:
    found: list[str] = []
    after = None
    for columns in (False, True, False, True, True):
        options = {"limit": 20, "after": after, "columns": columns}
        page = await client.call("readdir", "files", "", options)
        entries = page["entries"]
        found += entries["name"] if columns else [entry["name"] for entry in entries]
        if (after := page["next"]) is None:
            break
    assert sorted(found) == sorted(name.decode() for name in backend.files)


# --- files that are open --------------------------------------------------------------------------


async def test_open_tells_what_was_opened(client: Client, backend: FakeBackend) -> None:
    opened = await client.call("open", "files", "Image")
    shown = await client.call("stat", "files", "Image")
    assert {name: opened[name] for name in shown} == shown
    assert opened["settled"] is True
    assert opened["by_attributes"] is True
    assert {*opened} - {*shown} == {"file", "settled", "by_attributes"}
    await client.call("close", opened["file"])
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()


async def test_open_tells_of_coarse_timestamps(client: Client, backend: FakeBackend) -> None:
    now = coarse_now()
    backend.files[b"Image"] = File(CONTENT, mtime=now, ctime=now)
    assert (await client.call("open", "files", "Image"))["settled"] is False


async def test_open_tells_of_mounts(backend: FakeBackend, client: Client) -> None:
    backend.files[b"Image"] = File(CONTENT, flags=1)
    opened = await client.call("open", "files", "Image")
    assert (opened["by_attributes"], opened["submount"]) == (False, True)


async def test_open_where_mounts_are_not_told(backend: FakeBackend, tmp_path: Path) -> None:
    backend.flags = MAX_PAGES
    path = str(tmp_path / "backend.sock")
    async with exported(backend, path) as export, trio.open_nursery() as nursery:
        methods = Methods({"files": export}, ImageStore(0, 1, nursery), NoManager())
        client = Client(methods, ClientLimits())
        assert (await client.call("open", "files", "Image"))["by_attributes"] is False
        await client.caller.close()


@pytest.mark.parametrize(
    ("path", "code"), [("folder", "EISDIR"), ("missing", "ENOENT"), ("Image/", "ENOTDIR")]
)
async def test_what_is_no_file_is_not_opened(client: Client, path: str, code: str) -> None:
    assert await client.refused("open", "files", path) == code
    for _ in range(3):
        await client.call("open", "files", "Image")
    assert await client.refused("open", "files", "Image") == "TOO_LARGE"


async def test_an_open_file_is_read_whatever_its_path_is_now(
    client: Client, backend: FakeBackend
) -> None:
    file = (await client.call("open", "files", "Image"))["file"]
    backend.answer_to(Opcode.LOOKUP, Answer(error=errno.ENOENT))
    of_file = {"file": file}
    assert await client.call("read", "files", "Image", 0, 1 << 20, of_file) == CONTENT
    assert await client.call("read", "files", "Image", 251, 10, of_file) == CONTENT[:10]
    assert (await client.call("stat", "files", "Image", of_file))["size"] == len(CONTENT)
    assert await client.call("extents", "files", "Image", file, 0) == {
        "extents": [[0, len(CONTENT)]],
        "next": None,
    }
    assert await client.refused("read", "files", "Image", 0, 1 << 20) == "ENOENT"


async def test_an_open_file_is_loaded(client: Client) -> None:
    file = (await client.call("open", "files", "Image"))["file"]
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 1 << 16)
    mine = os.dup(descriptor)
    method = await client.caller.memories.attach(descriptor, 1 << 16)
    options = {"file": file, "offset": 7}
    loaded = await client.call("load", method, 100, "files", "Image", options)
    assert loaded == Loaded(len(CONTENT) - 7)
    assert os.pread(mine, len(CONTENT) - 7, 100) == CONTENT[7:]
    options = {"file": file, "length": 5}
    assert await client.call("load", method, 0, "files", "Image", options) == Loaded(5)
    options = {"file": file + 1}
    assert await client.refused("load", method, 0, "files", "Image", options) == "BAD_REQUEST"
    os.close(mine)


async def test_stat_of_an_open_file_is_what_it_is_now(client: Client, backend: FakeBackend) -> None:
    file = (await client.call("open", "files", "Image"))["file"]
    backend.files[b"Image"] = File(b"shorter", ctime=1_000_000_001)
    shown = await client.call("stat", "files", "Image", {"file": file})
    assert (shown["size"], shown["ctime_ns"]) == (7, 1_000_000_001 * 10**9)


async def test_numbers_that_are_not_the_clients(client: Client, methods: Methods) -> None:
    file = (await client.call("open", "files", "Image"))["file"]
    other = Client(methods, ClientLimits())
    for asking, number in ((client, file + 1), (other, file), (client, 0)):
        of_file = {"file": number}
        for call in (
            ("read", "files", "Image", 0, 10, of_file),
            ("stat", "files", "Image", of_file),
            ("extents", "files", "Image", number, 0),
            ("close", number),
        ):
            assert await asking.refused(*call) == "BAD_REQUEST"
    assert await client.refused("read", "nowhere", "Image", 0, 10, {"file": file}) == (
        "UNKNOWN_EXPORT"
    )
    await client.call("close", file)
    assert await client.refused("read", "files", "Image", 0, 10, {"file": file}) == "BAD_REQUEST"


async def test_files_that_are_opened_at_once_are_no_more_than_allowed(
    client: Client, backend: FakeBackend
) -> None:
    codes: list[str] = []

    async def open_one() -> None:
        try:
            await client.call("open", "files", "Image")
            codes.append("OK")
        except CallError as error:
            codes.append(str(error.code))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(open_one)
    await wait_all_tasks_blocked()
    assert sorted(codes) == ["OK", "OK", "OK", "TOO_LARGE", "TOO_LARGE"]
    assert len(backend.open_handles) == 3


async def test_an_open_file_outlives_its_backend(client: Client, backend: FakeBackend) -> None:
    file = (await client.call("open", "files", "Image"))["file"]
    backend.die()
    await wait_all_tasks_blocked()
    assert await client.call("read", "files", "Image", 0, 10, {"file": file}) == CONTENT[:10]
    backend.files[b"Image"] = File(CONTENT, ctime=1_000_000_001)
    backend.die()
    await wait_all_tasks_blocked()
    assert await client.refused("read", "files", "Image", 0, 10, {"file": file}) == "CHANGED"
    assert await client.call("read", "files", "Image", 0, 10) == CONTENT[:10]


async def test_a_file_that_nobody_reads_for_a_minute_is_closed_and_opened_anew(
    client: Client,
    backend: FakeBackend,
    autojump_clock: MockClock,  # noqa: ARG001 - minutes pass at once
) -> None:
    file = (await client.call("open", "files", "Image"))["file"]
    await trio.sleep(50)
    assert len(backend.open_handles) == 1
    await client.call("read", "files", "Image", 0, 10, {"file": file})
    await trio.sleep(50)
    assert len(backend.open_handles) == 1
    await trio.sleep(11)
    assert backend.open_handles == set()
    assert await client.call("read", "files", "Image", 0, 10, {"file": file}) == CONTENT[:10]
    assert len(backend.named(Opcode.OPEN)) == 2


# --- extents --------------------------------------------------------------------------------------


async def test_extents_come_some_at_a_time(client: Client, backend: FakeBackend) -> None:
    data = tuple((at * 8192 + 4096, at * 8192 + 8192) for at in range(5))
    backend.files[b"disk"] = File(bytes(5 * 8192), data=data)
    file = (await client.call("open", "files", "disk"))["file"]
    found: list[list[int]] = []
    position: int | None = 0
    while position is not None:
        page = await client.call("extents", "files", "disk", file, position, {"limit": 2})
        assert len(page["extents"]) <= 2
        found += page["extents"]
        position = page["next"]
    assert found == [[begin, end - begin] for begin, end in data]


@pytest.mark.parametrize("limit", [0, EXTENTS_MAX + 1])
async def test_extents_have_a_limit(client: Client, limit: int) -> None:
    file = (await client.call("open", "files", "Image"))["file"]
    call = ("extents", "files", "Image", file, 0, {"limit": limit})
    assert await client.refused(*call) == "BAD_REQUEST"


# --- listings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attrs", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 22, 100])
async def test_pages_of_a_directory(
    client: Client, backend: FakeBackend, attrs: bool, limit: int
) -> None:
    found: list[str] = []
    after = None
    while True:
        options = {"attrs": attrs, "limit": limit, "after": after}
        page = await client.call("readdir", "files", "", options)
        assert all(("size" in entry) == attrs for entry in page["entries"])
        found += [entry["name"] for entry in page["entries"]]
        after = page["next"]
        if after is None:
            break
    assert sorted(found) == sorted(["Image", "folder", *NAMES])
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()


async def test_a_token_is_good_once_and_for_its_own_listing(client: Client) -> None:
    page = await client.call("readdir", "files", "folder", {"limit": 5})
    after = page["next"]
    for path, attrs in (("", False), ("folder", True), ("/folder", False)):
        options = {"attrs": attrs, "after": after}
        assert await client.refused("readdir", "files", path, options) == "BAD_REQUEST"
    following = await client.call("readdir", "files", "folder", {"limit": 5, "after": after})
    assert following["next"] != after
    assert await client.refused("readdir", "files", "folder", {"after": after}) == "CHANGED"
    assert await client.refused("readdir", "files", "folder", {"after": b"x"}) == "BAD_REQUEST"
    rest = await client.call("readdir", "files", "folder", {"after": following["next"]})
    assert len(rest["entries"]) == len(NAMES) + 2 - 10


async def test_the_oldest_of_too_many_listings_is_changed(
    client: Client, backend: FakeBackend
) -> None:
    tokens = [(await client.call("readdir", "files", "", {"limit": 5}))["next"] for _ in range(3)]
    await wait_all_tasks_blocked()
    assert len(backend.open_handles) == 2
    assert await client.refused("readdir", "files", "", {"after": tokens[0]}) == "CHANGED"
    for token in tokens[1:]:
        page = await client.call("readdir", "files", "", {"after": token})
        assert len(page["entries"]) == len(NAMES) + 2 - 5


async def test_a_page_that_failed_can_be_asked_for_with_its_token(
    client: Client, backend: FakeBackend
) -> None:
    first = await client.call("readdir", "files", "", {"limit": 5})
    options = {"after": first["next"]}
    backend.answer_to(Opcode.READDIR, Answer(error=errno.EIO))
    for _ in range(2):
        assert await client.refused("readdir", "files", "", options) == "EIO"
    backend.answer = backend.serve_files
    rest = await client.call("readdir", "files", "", options)
    names = [entry["name"] for entry in (*first["entries"], *rest["entries"])]
    assert sorted(names) == sorted(["Image", "folder", *NAMES])


async def test_a_page_of_a_tree_that_took_too_long_can_be_asked_for_with_its_token(
    client: Client, backend: FakeBackend
) -> None:
    """TIMEOUT is what the backend's time is over with, and the time that a call is given."""
    backend.files[b"folder"] = File(mode=stat.S_IFIFO)
    found: list[str] = []

    async def take(after: bytes | None) -> bytes | None:
        page = await client.call("tree", "files", "", {"limit": 5, "after": after})
        page.content.give_back()
        index = decode_value(page.head[4:])
        found.extend(index["entries"]["path"])
        following: bytes | None = index["next"]
        return following

    after = await take(None)
    held = backend.hold(lambda request: request.opcode is Opcode.READ)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, after)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()  # as the option does
    backend.let_go(held)
    while after is not None:
        after = await take(after)
    assert sorted(found) == sorted(["Image", "folder", *NAMES])


async def test_a_first_page_that_failed_leaves_nothing(
    client: Client, backend: FakeBackend
) -> None:
    backend.answer_to(Opcode.READDIR, Answer(error=errno.EIO))
    assert await client.refused("readdir", "files", "") == "EIO"
    await wait_all_tasks_blocked()
    assert backend.open_handles == set()


async def test_a_directory_that_was_replaced_ends_the_listing(
    client: Client, backend: FakeBackend
) -> None:
    first = await client.call("readdir", "files", "folder", {"limit": 5})
    backend.files[b"another"] = backend.files[b"folder"]
    backend.answer_to(
        Opcode.LOOKUP,
        lambda request: backend.serve_files(request._replace(body=b"another\0")),
    )
    for _ in range(2):
        options = {"after": first["next"]}
        assert await client.refused("readdir", "files", "folder", options) == "CHANGED"
        await wait_all_tasks_blocked()
        assert backend.open_handles == set()


async def test_a_listing_goes_on_with_the_next_backend(
    client: Client, backend: FakeBackend
) -> None:
    first = await client.call("readdir", "files", "folder", {"limit": 5})
    backend.die()
    await wait_all_tasks_blocked()
    rest = await client.call("readdir", "files", "folder", {"after": first["next"]})
    names = [entry["name"] for entry in (*first["entries"], *rest["entries"])]
    assert sorted(names) == sorted(["Image", "folder", *NAMES])
    assert rest["next"] is None


@pytest.mark.parametrize("method", ["readdir", "walk"])
@pytest.mark.parametrize("attrs", [False, True])
async def test_a_page_that_goes_on_has_the_attributes_that_the_first_had(
    client: Client, method: str, attrs: bool
) -> None:
    """What was found without them has none to show, and a walk has found more than it gave."""
    first = await client.call(method, "files", "", {"limit": 2, "attrs": attrs})
    options = {"after": first["next"], "attrs": not attrs}
    assert await client.refused(method, "files", "", options) == "BAD_REQUEST"
    options |= {"limit": 2, "attrs": attrs}
    rest = await client.call(method, "files", "", options)
    assert {"size" in entry for entry in rest["entries"]} == {attrs}


async def test_a_listing_goes_on_after_a_while(
    client: Client,
    backend: FakeBackend,
    autojump_clock: MockClock,  # noqa: ARG001 - minutes pass at once
) -> None:
    first = await client.call("readdir", "files", "folder", {"limit": 5})
    await trio.sleep(60)
    assert backend.open_handles == set()
    assert not +backend.lookups
    rest = await client.call("readdir", "files", "folder", {"after": first["next"]})
    names = [entry["name"] for entry in (*first["entries"], *rest["entries"])]
    assert sorted(names) == sorted(["Image", "folder", *NAMES])


# --- odd attributes -------------------------------------------------------------------------------


async def test_odd_attributes_are_shown(client: Client, backend: FakeBackend) -> None:
    backend.files[b"odd"] = File(
        mode=0o170644, size=2**64 - 1, ino=0, mtime=2**63 - 1, ctime=-(2**63), nanoseconds=2**32 - 1
    )
    shown = await client.call("stat", "files", "odd")
    assert (shown["type"], shown["mode"], shown["ino"]) == ("unknown", 0o170644, 0)
    assert shown["size"] == 2**64 - 1
    assert (shown["mtime_ns"], shown["ctime_ns"]) == (2**63 - 1, -(2**63))
    page = await client.call("readdir", "files", "", {"attrs": True})
    [entry] = [entry for entry in page["entries"] if entry["name"] == "odd"]
    assert {name: entry[name] for name in shown} == shown
    assert await client.refused("read", "files", "odd", 0, 10) == "EINVAL"
    assert await client.refused("open", "files", "odd") == "EINVAL"
    assert await client.refused("fetch", "files", "odd") == "EINVAL"


@pytest.mark.parametrize("call", [("read", 0, 10), ("open",), ("fetch",), ("readdir",)])
async def test_content_of_what_has_no_identity(
    client: Client, backend: FakeBackend, call: tuple[Any, ...]
) -> None:
    name, *params = call
    backend.files[b"folder"] = File(mode=stat.S_IFDIR | 0o755, ino=0)
    backend.files[b"Image"] = File(CONTENT, ino=0)
    path = "folder" if name == "readdir" else "Image"
    assert await client.refused(name, "files", path, *params) == "EIO"
    assert await client.refused(name, "files", f"folder/{path}", *params) == "EIO"
    assert (await client.call("stat", "files", path))["ino"] == 0


# --- what one user's clients keep together --------------------------------------------------------


def memfd(size: int) -> int:
    descriptor = os.memfd_create("memory", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.truncate(descriptor, size)
    return descriptor


async def test_what_a_user_keeps_is_counted_together(methods: Methods) -> None:
    client = Client(methods, ClientLimits(user_kept=4))
    holdings = client.account.holdings
    opened = await client.call("open", "files", "Image")
    await client.call("readdir", "files", "", {"limit": 1})
    walk = await client.call("walk", "files", "", {"limit": 1})
    memory = await client.caller.memories.attach(memfd(4096), 4096)
    assert holdings.count == 4
    assert holdings.size > 0
    full = "as many as one user may have: close some"
    with pytest.raises(CallError, match=full):
        await client.call("open", "files", "Image")
    with pytest.raises(CallError, match=full):
        await client.call("trace", "files", {"wait": 0.0})
    with pytest.raises(CallError, match=full):
        await client.caller.memories.attach(memfd(4096), 4096)
    await client.call("readdir", "files", "", {"limit": 1})  # the one before made room
    await client.call("readdir", "files", "", {"limit": 1000})  # and a whole one needs none
    with pytest.raises(CallError, match="no attached memory 9"):
        await client.call("detach", 9)
    await client.call("detach", memory)
    await client.call("trace", "files", {"wait": 0.0})
    await client.call("trace", "files", {"wait": 0.0})  # goes on
    assert holdings.count == 4
    await client.call("trace", "files", {"wait": 0.0, "end": True})
    await client.call("trace", "files", {"wait": 0.0, "end": True})
    await client.call("close", opened["file"])
    with pytest.raises(CallError, match="no open file"):
        await client.call("close", opened["file"])
    assert holdings.count == 2
    await client.call("walk", "files", "", {"limit": 1000, "after": walk["next"]})
    assert holdings.count == 1
    await client.caller.close()
    assert (holdings.count, holdings.size) == (0, 0)


async def test_a_page_that_failed_keeps_nothing_that_counts(
    methods: Methods, backend: FakeBackend
) -> None:
    client = Client(methods, ClientLimits())
    holdings = client.account.holdings
    page = await client.call("readdir", "files", "", {"limit": 1})
    walk = await client.call("walk", "files", "", {"limit": 1})
    counted = holdings.count, holdings.size
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.call("walk", "files", "", {"limit": 1000, "after": walk["next"]})
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.call("readdir", "files", "", {"limit": 1, "after": page["next"]})
    assert counted[0] == 2
    assert (holdings.count, holdings.size) == (0, 0)
    page = await client.call("readdir", "files", "", {"limit": 1})
    backend.answer_to(Opcode.READDIR, lambda _: Answer(error=errno.EIO))
    assert await client.refused("readdir", "files", "", {"limit": 1, "after": page["next"]})
    assert holdings.count == 1
    await client.caller.close()
    assert (holdings.count, holdings.size) == (0, 0)


@pytest.mark.parametrize("method", ["readdir", "walk"])
async def test_a_page_that_is_not_packed_in_time_keeps_nothing(
    client: Client, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know its token."""

    async def never_packed(*_: Any, **__: Any) -> Listing:
        await trio.sleep_forever()

    monkeypatch.setattr("vuserd.rpc.methods.pages.pack_listing", never_packed)
    with trio.move_on_after(0.05) as scope:
        await client.call(method, "files", "", {"limit": 1})
    assert scope.cancelled_caught
    assert (client.account.holdings.count, client.account.holdings.size) == (0, 0)


# --- owners ---------------------------------------------------------------------------------------


def owners_in(result: Any) -> Any:
    """Return the owner's id in a stat, or those of a listing's or a tree's entries."""
    if isinstance(result, Tree):
        result.content.give_back()
        index = decode_value(result.head[4:])
        return index["entries"]["uid"]
    return result["entries"]["uid"] if "entries" in result else [result["uid"]]


@pytest.mark.parametrize("others", [{}, {b"other": File(b"Image", stat.S_IFLNK)}])
async def test_an_empty_target_is_a_str(
    client: Client, backend: FakeBackend, others: dict[bytes, File]
) -> None:
    """As every name that is UTF-8, whatever else is in the page of a tree."""
    backend.files = {b"empty": File(b"", stat.S_IFLNK), **others}
    page = await client.call("tree", "files", "")
    page.content.give_back()
    entries = decode_value(page.head[4:])["entries"]
    assert entries["target"][0] == await client.call("readlink", "files", "empty") == ""


@pytest.mark.parametrize("method", ["stat", "open", "readdir", "walk", "tree"])
async def test_owners_are_as_the_backend_sees_them_that_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    """Which may be lost, or replaced by one in another sandbox, when the call ends."""
    root_is_1000 = owners_of(7, proc(tmp_path, "0 1000 1", "0 1000 1"))
    call = Export.call

    async def lost_after(export: Export, operation: Callable[[FileSystem], Awaitable[Any]]) -> Any:
        def begin(files: FileSystem) -> Awaitable[Any]:
            files.owners = root_is_1000
            return operation(files)

        result = await call(export, begin)
        calls = vars(export)["_calls"]
        undo.setattr(calls, "serving", None)
        return result

    options = {"attrs": True, "columns": True} if method in ("readdir", "walk") else {}
    path = "" if method in ("readdir", "walk", "tree") else "Image"
    with monkeypatch.context() as undo:
        undo.setattr(Export, "call", lost_after)
        owners = owners_in(await client.call(method, "files", path, options))
    assert {*owners} == {1000}


async def test_owners_of_a_short_call_are_as_its_backend_sees_them(
    client: Client, methods: Methods, tmp_path: Path
) -> None:
    options = {"follow": True, "file": None, "split_times": False}
    short = methods.find("stat").short
    assert short is not None
    begun = short(client.caller, "files", b"Image", **options)
    assert begun is not None

    async def carried_out(files: FileSystem) -> Any:
        files.owners = owners_of(7, proc(tmp_path, "0 1000 1", "0 1000 1"))
        return await carry_out(files.session.lane, begun.procedure(files))

    result = await begun.export.call(carried_out)
    assert msgpack.unpackb(result.value)["uid"] == 1000
