"""The names of a directory that were given, and are left out when it is read anew."""

import pytest

from vuserd.fs.directories import given
from vuserd.fs.directories.given import Given


@pytest.fixture(params=[0, 10, 1 << 20], ids=["hashes", "both", "names"])
def most_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let so many bytes of names be kept as they are."""
    most: int = request.param
    monkeypatch.setattr(given, "_MOST_KEPT", most)
    return most


@pytest.mark.usefixtures("most_kept")
def test_what_was_given_is_not_new_when_it_comes_again() -> None:
    names = Given()
    names.add([b"a", b"\xff b"])
    names.add([])
    names.add([b"c" * 255])
    assert len(names) == 3
    assert names.are_new([b"a", b"c" * 255]) is None  # in the same opening
    names.come_again()
    assert names.are_new([b"c" * 255, b"d", b"", b"a"]) == [False, True, True, False]
    names.add([b"d"])
    assert names.are_new([b"a"]) == [True]  # which came already: another one of this name
    names.come_again()
    assert names.are_new([b"d", b"a", b"\xff b", b"c" * 255]) == [False] * 4
    assert names.are_new([b"e"]) is None


@pytest.mark.usefixtures("most_kept")
def test_none_is_given_before_the_first() -> None:
    names = Given()
    assert not names
    assert names.remembered == 0
    names.add([])
    names.come_again()
    assert not names
    assert names.are_new([b"", b"a"]) is None


def test_memory_is_that_of_the_latest_names_and_of_hashes(most_kept: int) -> None:
    names = Given()
    for number in range(5):
        names.add([b"%d" % number, b"long"])  # six bytes, with what is between
    hashed = 10 if not most_kept else 8 if most_kept == 10 else 0
    assert names.remembered == 6 * (10 - hashed) // 2 + 8 * hashed
    names.come_again()
    assert names.remembered == 8 * 10 + 96 * 6  # of ten names six differ
