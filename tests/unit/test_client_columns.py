"""Pages in columns, as a client makes records of them; and what no daemon sends."""

from typing import Any

import pytest

from vuserd.client.errors import BadReply
from vuserd.client.listing.columns import directory_page, walk_page
from vuserd.client.records import DirectoryPage, Entry, Stat, WalkEntry

NUMBERS = (
    "mode", "size", "nlink", "uid", "gid", "rdev", "blocks", "blksize",
    "atime_ns", "mtime_ns", "ctime_ns",
)  # fmt: skip

#: Those that have 32 bits.
WORDS = {"mode", "nlink", "uid", "gid", "blksize"}


def listed(*names: object, attrs: bool = True, key: str = "name", **others: Any) -> dict[str, Any]:
    """Make a page: each number says its field and its place."""
    places = range(len(names))
    columns: dict[str, Any] = {key: [*names], "type": ["file" for _ in places]}
    columns["ino"] = [1000 + place for place in places]
    if attrs:
        for number, field in enumerate(NUMBERS, 2):
            columns[field] = [1000 * number + place for place in places]
    return {"entries": columns | others, "problems": [], "next": None}


def as_maps(page: dict[str, Any]) -> dict[str, Any]:
    """Make the same page with a map an entry."""
    columns = page["entries"]
    rows = zip(*columns.values(), strict=True)
    entries = [dict(zip(columns, row, strict=True)) for row in rows]
    kept = [{key: value for key, value in entry.items() if value is not None} for entry in entries]
    return page | {"entries": kept}


class TestPages:
    @pytest.mark.parametrize("attrs", [False, True])
    @pytest.mark.parametrize(
        "names", [[], ["a"], ["a", "b"], ["a", b"\xff", "\u00e4"], ["a", "\udcff"], ["\u00e4"]]
    )
    def test_columns_are_what_maps_are(self, names: list[object], attrs: bool) -> None:
        page = listed(*names, attrs=attrs)
        assert directory_page(page) == directory_page(as_maps(page))
        page = listed(*names, attrs=attrs, key="path")
        assert walk_page(page) == walk_page(as_maps(page))

    def test_records_are_of_their_types(self) -> None:
        (entry,) = directory_page(listed("a")).entries
        assert (type(entry), type(entry.stat)) == (Entry, Stat)
        (found,) = walk_page(listed("a/b", key="path")).entries
        assert (type(found), type(found.stat)) == (WalkEntry, Stat)

    def test_entries_without_attributes_and_owners_that_are_not_known(self) -> None:
        page = listed("a", "b", "c", uid=[None, None, 7], submount=[False, None, True])
        for field in NUMBERS:
            page["entries"][field][1] = None
        entries = directory_page(page).entries
        assert entries[1] == Entry("b", "file", 1001, None)
        stats = [entry.stat for entry in entries]
        assert stats[0] is not None
        assert (stats[0].uid, stats[0].submount) == (None, False)
        assert stats[2] is not None
        assert (stats[2].uid, stats[2].submount, stats[2].size) == (7, True, 3002)

    def test_a_column_that_a_newer_daemon_adds_is_ignored(self) -> None:
        page = listed("a", later=["x"])
        assert directory_page(page) == directory_page(listed("a"))


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize(
    "number", [-(1 << 63), -1, 0, (1 << 32) - 1, 1 << 32, (1 << 63), (1 << 64) - 1]
)
def test_maps_and_columns_have_the_same_numbers(field: str, number: int) -> None:
    page = listed("a")
    page["entries"][field] = [number]
    outcomes: list[DirectoryPage | None] = []
    for form in (page, as_maps(page)):
        try:
            outcomes.append(directory_page(form))
        except BadReply:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0] is None) == (
        not field.endswith("_ns") and (number < 0 or (field in WORDS and number >= 1 << 32))
    )


class TestWhatNoDaemonSends:
    @pytest.mark.parametrize(
        ("page", "complaint"),
        [
            pytest.param({"entries": {}}, "has no 'name'", id="no columns"),
            pytest.param(listed("a", name="a"), "str in place of list", id="a name for a column"),
            pytest.param(listed("a", type=[]), "0 values of 'type'", id="too few types"),
            pytest.param(listed("a", ino=[1, 2]), "2 values of 'ino'", id="too many numbers"),
            pytest.param(listed("a", size=[1, 2]), "2 values of 'size'", id="too many sizes"),
            pytest.param(listed("a", submount=[]), "0 values of 'submount'", id="no submount"),
            pytest.param(listed("a", size=3), "int in place of list", id="a size for all"),
            pytest.param(listed("a", size=["1"]), "'size' of the wrong type", id="a size of text"),
            pytest.param(listed("a", size=[True]), "'size' of the wrong type", id="a true size"),
            pytest.param(listed("a", size=[None]), "'size' of the wrong type", id="no size"),
            pytest.param(listed("a", uid=[1.5]), "'uid' of the wrong type", id="half a user"),
            pytest.param(listed("a", size=[-1]), "'size' that no file can have", id="less than 0"),
            pytest.param(listed("a", ino=[-1]), "'ino' that no file can have", id="no inode"),
            pytest.param(listed("a", rdev=[-1]), "'rdev' that no file can have", id="no device"),
            pytest.param(listed("a", blocks=[-1]), "'blocks' that no file", id="no blocks"),
            pytest.param(listed("a", nlink=[-1]), "'nlink' that no file can have", id="no links"),
            pytest.param(listed("a", mode=[1 << 32]), "'mode' that no file", id="a long mode"),
            pytest.param(listed("a", nlink=[1 << 32]), "'nlink' that no", id="too many links"),
            pytest.param(listed("a", uid=[1 << 32]), "'uid' that no file", id="a long user"),
            pytest.param(listed("a", gid=[-1]), "'gid' that no file can have", id="no group"),
            pytest.param(listed("a", blksize=[1 << 32]), "'blksize' that no", id="large blocks"),
            pytest.param(listed("a", ino=[None]), "'ino' of the wrong type", id="no number"),
            pytest.param(listed("a", type=[b"file"]), "type that is no str", id="a type of bytes"),
            pytest.param(listed("a", type=[["x"]]), "type that is no str", id="a type of types"),
            pytest.param(listed(7), "a name from the daemon", id="a number for a name"),
            pytest.param(listed("a", "\ud800"), "a name from the daemon", id="no bytes"),
            pytest.param(listed("a/b"), "no file can have", id="a slash"),
            pytest.param(listed(b"a/b"), "no file can have", id="a slash in a bin"),
            pytest.param(listed("a\0b"), "no file can have", id="a NUL"),
            pytest.param(listed("a", b"\0"), "no file can have", id="a NUL in a bin"),
            pytest.param(listed(""), "no file can have", id="nothing"),
            pytest.param(listed("a", ""), "no file can have", id="nothing in the end"),
            pytest.param(listed("a", "..", "b"), "no file can have", id="the directory above"),
            pytest.param(listed("."), "no file can have", id="the directory itself"),
        ],
    )
    def test_page_of_a_directory_is_refused(self, page: Any, complaint: str) -> None:
        with pytest.raises(BadReply, match=complaint):
            directory_page(page)

    @pytest.mark.parametrize("path", ["/a", "a/", "a//b", "../a", "a/../b", "a/..", "./a", "a\0b"])
    def test_path_of_a_walk_is_refused(self, path: str) -> None:
        for paths in ([path], ["x", path.encode(), "y"]):
            with pytest.raises(BadReply, match="no file can have"):
                walk_page(listed(*paths, key="path"))
