"""Listings of all clients across restarts of the daemon: each name comes once."""

from collections.abc import Callable, Generator

import pytest

from tests.fake.rpc_server import FakeDaemon, Node
from tests.unit.faces import Connect
from vuserd.client.core.relisting import Relisting
from vuserd.client.errors import NotTaken, RemoteError
from vuserd.client.listing.columns import RawPage
from vuserd.client.records import PageToken

NAMES = [f"{number:04}" for number in range(3500)]

#: Called with each name as it comes, and something to call the daemon with.
At = Callable[[str, Callable[[], object]], None]


Lister = Callable[[FakeDaemon, At], list[str]]


@pytest.fixture
def list_all(connect: Connect) -> Lister:
    """List with each kind of client."""

    def list_all(daemon: FakeDaemon, at: At) -> list[str]:
        names = []
        with connect(daemon.address, reconnect=1.0) as client:
            for entry in client.iterdir("kernels", ""):
                names.append(entry.name)
                at(entry.name, lambda: client.exports())
        return names

    return list_all


@pytest.fixture
def long_directory(fake_daemon: FakeDaemon) -> FakeDaemon:
    fake_daemon.root.children = {name.encode(): Node() for name in NAMES}
    return fake_daemon


class TestRestarts:
    @pytest.mark.parametrize(
        "ends_at", [["0000"], ["0999"], ["0100", "1100"], ["3400"], NAMES[::900]]
    )
    @pytest.mark.alike(3)
    def test_each_name_comes_once(
        self, long_directory: FakeDaemon, list_all: Lister, ends_at: list[str]
    ) -> None:
        def end(name: str, _: Callable[[], object]) -> None:
            if name in ends_at:
                long_directory.end_connections()

        assert list_all(long_directory, end) == NAMES

    def test_another_call_finds_the_successor_first(
        self, long_directory: FakeDaemon, list_all: Lister
    ) -> None:
        """The token of the page is the former connection's, and is not shown to the new one."""

        def end(name: str, call_another: Callable[[], object]) -> None:
            if name in ("0100", "1500"):
                long_directory.end_connections()
                call_another()

        assert list_all(long_directory, end) == NAMES
        assert long_directory.connections == 3

    def test_what_changed_meanwhile(self, long_directory: FakeDaemon, list_all: Lister) -> None:
        """What is there all the time comes once; the new listing has another order."""

        def change(name: str, _: Callable[[], object]) -> None:
            if name == "0500":
                long_directory.end_connections()
                # Another dictionary: a page of the old one may be on its way.
                children = {**long_directory.root.children, b"new": Node()}
                del children[b"0003"], children[b"3000"]
                long_directory.root.children = dict(reversed(children.items()))

        names = list_all(long_directory, change)
        always = {*NAMES} - {"0003", "3000"}
        assert len(names) == len(set(names))
        assert always <= {*names} <= always | {"0003", "3000", "new"}
        assert "new" in names

    def test_no_successor_comes(self, long_directory: FakeDaemon, list_all: Lister) -> None:
        def end(name: str, _: Callable[[], object]) -> None:
            if name == "1500":
                long_directory.refuse_clients()
                long_directory.end_connections()

        with pytest.raises(NotTaken, match="no daemon took the call"):
            list_all(long_directory, end)

    def test_the_directory_is_gone(self, long_directory: FakeDaemon, list_all: Lister) -> None:
        def end(name: str, _: Callable[[], object]) -> None:
            if name == "1500":
                long_directory.end_connections()
                long_directory.root.type = "file"

        with pytest.raises(RemoteError, match="ENOTDIR"):
            list_all(long_directory, end)

    def test_two_listings_of_one_directory(
        self, connect: Connect, long_directory: FakeDaemon
    ) -> None:
        with connect(long_directory.address) as client:
            listings = [client.iterdir("kernels", "") for _ in range(2)]
            found: list[list[str]] = [[next(each).name] for each in listings]
            long_directory.end_connections()
            for names, listing in zip(found, listings, strict=True):
                names += [entry.name for entry in listing]
        assert found == [NAMES, NAMES]

    def test_one_left_alone_is_no_hindrance(
        self, connect: Connect, long_directory: FakeDaemon
    ) -> None:
        with connect(long_directory.address) as client:
            listing = client.iterdir("kernels", "")
            next(listing)
            long_directory.end_connections()
            assert client.exports()
            assert isinstance(listing, Generator)
            listing.close()
            assert not client._talk.link.core.is_awaited


def page(following: int | None, *names: str) -> RawPage:
    token = None if following is None else PageToken(following)
    return RawPage([{"name": name, "type": "file", "ino": 1} for name in names], token)


def names_of(listing: Relisting) -> list[str]:
    return [entry.name for entry in listing.entries()]


class TestRelisting:
    def test_a_listing_that_was_just_begun_is_not_begun_again(self) -> None:
        listing = Relisting("kernels", "", attrs=False, level=1)
        assert not listing.begin_again()
        listing.take(page(7, "a"))
        assert listing.begin_again()
        assert not listing.begin_again()
        assert listing.next_call().params[2]["after"] is None

    def test_what_was_given_is_left_out_however_often_it_comes(self) -> None:
        """One name twice is what no file system should have, and some have it."""
        listing = Relisting("kernels", "", attrs=False, level=1)
        assert listing.take(page(7, "a", "b", "b"))
        assert names_of(listing) == ["a", "b", "b"]
        assert listing.begin_again()
        assert listing.take(page(8, "b", "c", "b"))
        assert names_of(listing) == ["c"]
        assert listing.begin_again()
        assert not listing.take(page(None, "c", "b", "a", "b", "d"))
        assert names_of(listing) == ["d"]
        assert listing.finished
