"""Files are put in place whole or not at all, and always inside the directory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vuserd.ctl.copying.atomic_file import new_file, new_symlink, open_below, open_directory


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fileno = open_directory(str(tmp_path))
    yield fileno
    os.close(fileno)


@pytest.fixture(autouse=True)
def _no_descriptor_is_lost(directory: int) -> Iterator[None]:  # noqa: ARG001 - open before
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


class TestNewFile:
    def test_it_is_there_when_it_is_whole(self, directory: int, tmp_path: Path) -> None:
        (tmp_path / "name").write_text("older")
        with new_file(directory, "name", 0o640) as fileno:
            os.write(fileno, b"new")
            assert (tmp_path / "name").read_text() == "older"
        assert (tmp_path / "name").read_text() == "new"
        assert os.listdir(tmp_path) == ["name"]

    def test_a_new_one_has_its_permissions_and_another_keeps_its_own(
        self, directory: int, tmp_path: Path
    ) -> None:
        for set_to, kept in ((None, 0o640), (0o604, 0o604), (0o444, 0o444), (0o6755, 0o755)):
            if set_to is not None:
                (tmp_path / "name").chmod(set_to)
            with new_file(directory, "name", 0o640):
                pass
            assert (tmp_path / "name").stat().st_mode & 0o7777 == kept

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_leaves_nothing(
        self, directory: int, tmp_path: Path, error: type[BaseException]
    ) -> None:
        (tmp_path / "name").write_text("older")
        with (  # noqa: PT012
            pytest.raises(error),
            new_file(directory, "name", 0o644) as fileno,
        ):
            os.write(fileno, b"new")
            raise error
        assert (tmp_path / "name").read_text() == "older"
        assert os.listdir(tmp_path) == ["name"]

    def test_a_directory_of_that_name_stays(self, directory: int, tmp_path: Path) -> None:
        (tmp_path / "name").mkdir()
        with pytest.raises(IsADirectoryError), new_file(directory, "name", 0o644):
            pass
        assert os.listdir(tmp_path) == ["name"]

    def test_the_longest_name(self, directory: int, tmp_path: Path) -> None:
        with new_file(directory, "n" * 255, 0o644):
            pass
        assert os.listdir(tmp_path) == ["n" * 255]

    def test_a_symlink_is_replaced_and_not_followed(self, directory: int, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("data")
        (tmp_path / "name").symlink_to("precious")
        with new_file(directory, "name", 0o644):
            pass
        assert (tmp_path / "precious").read_text() == "data"
        assert not (tmp_path / "name").is_symlink()


class TestNewSymlink:
    @pytest.mark.parametrize("there", ["nothing", "file", "link"])
    def test_it_takes_the_place_of_a_file(self, directory: int, tmp_path: Path, there: str) -> None:
        if there == "file":
            (tmp_path / "name").write_text("older")
        if there == "link":
            (tmp_path / "name").symlink_to("elsewhere")
        new_symlink(directory, "name", "\udcff/target")
        assert os.readlink(tmp_path / "name") == "\udcff/target"
        assert os.listdir(tmp_path) == ["name"]

    @pytest.mark.parametrize("target", ["", "a\0b"])
    def test_a_target_that_cannot_be(self, directory: int, tmp_path: Path, target: str) -> None:
        with pytest.raises((OSError, ValueError)):
            new_symlink(directory, "name", target)
        assert os.listdir(tmp_path) == []

    def test_a_directory_of_that_name_stays(self, directory: int, tmp_path: Path) -> None:
        (tmp_path / "name").mkdir()
        with pytest.raises(IsADirectoryError):
            new_symlink(directory, "name", "target")
        assert os.listdir(tmp_path) == ["name"]


class TestOpenBelow:
    @pytest.mark.parametrize("names", [(), ("a",), ("a", "b")])
    @pytest.mark.parametrize("readable", [True, False])
    def test_directories(
        self, directory: int, tmp_path: Path, names: tuple[str, ...], readable: bool
    ) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        fileno = open_below(directory, names, readable=readable)
        try:
            assert os.path.samestat(os.fstat(fileno), os.stat(tmp_path.joinpath(*names)))
            if readable:  # its times and mode can be set, which O_PATH does not allow
                os.utime(fileno, ns=(5, 7))
                os.fchmod(fileno, 0o700)
                assert tmp_path.joinpath(*names).stat().st_mtime_ns == 7
        finally:
            os.close(fileno)

    @pytest.mark.parametrize("names", [("link",), ("link", "b"), ("a", "up"), ("file",), ("none",)])
    def test_nothing_else(self, directory: int, tmp_path: Path, names: tuple[str, ...]) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "link").symlink_to("a")
        (tmp_path / "a" / "up").symlink_to("..")
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="Errno"):
            open_below(directory, names)
