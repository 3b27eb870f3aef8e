"""Owners of files behind a user namespace: the host's ids, or unknown."""

import os
from pathlib import Path

import pytest

from vuserd.fs.owners import owners_of

ALL = "         0          0 4294967295\n"
#: A user's own namespace; and one with subordinate ids (subuid(5)) beside that.
OWN = "      1000       1000          1\n"
MORE = "         0       1000          1\n         1     100000      65536\n"


def proc(folder: Path, users: str, groups: str, own: str = ALL) -> str:
    for process, uid_map, gid_map in (("7", users, groups), ("self", own, own)):
        (folder / process).mkdir()
        (folder / process / "uid_map").write_text(uid_map)
        (folder / process / "gid_map").write_text(gid_map)
    return str(folder)


def test_a_backend_that_sees_what_the_host_has(tmp_path: Path) -> None:
    assert owners_of(7, proc(tmp_path, ALL, ALL)) is None
    assert owners_of(os.getpid()) is None


def test_a_daemon_in_the_same_namespace(tmp_path: Path) -> None:
    assert owners_of(7, proc(tmp_path, OWN, OWN, own=OWN)) is None


def test_what_is_not_mapped_is_not_known(tmp_path: Path) -> None:
    owners = owners_of(7, proc(tmp_path, OWN, MORE))
    assert owners is not None
    assert [owners.users.to_host(each) for each in (1000, 65534, 0)] == [1000, None, 0]
    seen = (0, 1, 65534, 65536, 65537)
    assert [owners.groups.to_host(each) for each in seen] == [1000, 100000, 165533, 165535, 65537]


@pytest.mark.parametrize("words", ["no numbers here\n", "1 2\n"])
def test_maps_that_make_no_sense(tmp_path: Path, words: str) -> None:
    assert owners_of(7, proc(tmp_path, words, ALL)) is None


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    assert owners_of(8, proc(tmp_path, OWN, OWN)) is None
