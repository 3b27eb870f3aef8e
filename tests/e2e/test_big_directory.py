"""A directory of 100,000 entries, with a backend that may open 4,096 descriptors."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.standing import assert_owes_no_more, held_at_rest
from tests.once import made_once
from tests.running import RunningDaemon
from vuserd.client import Client

ENTRIES = 100_000
DESCRIPTORS = 4096


@pytest.fixture(scope="module")
def directory() -> Path:
    def make(folder: Path) -> None:
        (folder / "big").mkdir(parents=True)
        descriptor = os.open(folder / "big", os.O_RDONLY)
        for number in range(ENTRIES):
            os.mknod(f"entry-{number}", dir_fd=descriptor)
        os.close(descriptor)

    return made_once(f"{ENTRIES}-entries", make)


@pytest.mark.slow
def test_it_is_listed_whole_and_leaves_nothing_in_the_backend(
    directory: Path, virtiofsd: str, tmp_path: Path
) -> None:
    expected = {f"entry-{number}" for number in range(ENTRIES)}
    socket = tmp_path / "s"
    exports = {"big": directory}
    with (
        RunningDaemon(exports, socket, virtiofsd, descriptors=DESCRIPTORS) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        client.stat("big", "big")  # looked up once, and known from here on
        before = held_at_rest(client)
        [export] = client.status()["exports"]
        assert export["backend"] is not None
        pid = export["backend"]["pid"]
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert f"Max open files            {DESCRIPTORS}" in limits

        for attributes in (False, True):
            names = [entry.name for entry in client.iterdir("big", "big", attrs=attributes)]
            assert len(names) == ENTRIES
            assert set(names) == expected

        assert_owes_no_more(client, before)


@pytest.mark.slow
def test_many_clients_list_it_at_once(directory: Path, virtiofsd: str, tmp_path: Path) -> None:
    """Each reads ahead, and none is in another's way."""

    def count(address: str, attributes: bool) -> int:
        with Client.connect(address) as client:
            return sum(1 for _ in client.iterdir("big", "big", attrs=attributes))

    with (
        RunningDaemon({"big": directory}, tmp_path / "s", virtiofsd) as daemon,
        Client.connect(daemon.socket) as watching,
        ThreadPoolExecutor(max_workers=8) as clients,
    ):
        before = held_at_rest(watching)
        counts = [clients.submit(count, daemon.socket, number % 4 == 0) for number in range(4)]
        assert [each.result(timeout=120) for each in counts] == [ENTRIES] * len(counts)
        assert_owes_no_more(watching, before)


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(
    virtiofsd: str, tmp_path: Path
) -> None:
    """What was read ahead for its next page is given back with all else."""
    directory = tmp_path / "wide"
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    for number in range(5000):
        os.mknod(f"entry-{number}", dir_fd=descriptor)
    os.close(descriptor)
    with (
        RunningDaemon({"wide": directory}, tmp_path / "s", virtiofsd) as daemon,
        Client.connect(daemon.socket) as watching,
    ):
        before = held_at_rest(watching)
        for attributes in (False, True):
            with Client.connect(daemon.socket) as client:
                assert next(client.iterdir("wide", "/", attrs=attributes)).name
            assert_owes_no_more(watching, before)
            assert len([*watching.iterdir("wide", "/", attrs=attributes)]) == 5000
