"""vuserctl get of several files, patterns and directories, with its options, as people type it."""

import itertools
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, Node, directory
from tests.running import RunningDaemon
from tests.unit.conftest import Run, Start
from vuserd.client.records import Stat
from vuserd.ctl.copying.how import How
from vuserd.wire.codec import Request


@pytest.fixture(autouse=True)
def _tree(fake_daemon: FakeDaemon) -> None:
    boot = fake_daemon.root.children[b"boot"].children
    boot.clear()
    for number in range(1, 4):
        boot[b"vmlinuz-%d" % number] = Node(content=b"%d" % number, permissions=0o666)
    boot[b"dtbs"] = directory(**{"a.dtb": Node(content=b"a"), "b.dtb": Node(content=b"b")})
    boot[b"latest"] = Node("symlink", b"vmlinuz-3")


def fetched(fake_daemon: FakeDaemon) -> set[object]:
    """Return the names that were opened or read since the last time."""
    done: set[object] = {
        os.path.basename(str(request.params[1]))
        for request in fake_daemon.requests
        if request.method in ("open", "read")
    }
    fake_daemon.requests.clear()
    return done


class TestSeveral:
    def test_into_a_directory(self, run: Run, here: Path) -> None:
        (here / "d").mkdir()
        assert run("get", "kernels:boot/vmlinuz-[12]", "kernels:image", "d") == (0, "", "")
        assert sorted(os.listdir(here / "d")) == ["image", "vmlinuz-1", "vmlinuz-2"]
        assert (here / "d/image").read_bytes() == IMAGE

    def test_a_pattern_alone(self, run: Run, here: Path) -> None:
        assert run("get", "kernels:/boot/vmlinuz-*") == (0, "", "")
        assert sorted(os.listdir(here)) == ["vmlinuz-1", "vmlinuz-2", "vmlinuz-3"]

    def test_a_pattern_of_one_to_a_name(self, run: Run, here: Path) -> None:
        assert run("get", "kernels:/boot/vmlinuz-[1]", "kernel") == (0, "", "")
        assert (here / "kernel").read_bytes() == b"1"

    def test_a_destination_that_looks_like_an_export(self, run: Run, here: Path) -> None:
        """It would be a remote one for scp, too: a second source, with no DEST behind it."""
        code, out, err = run("get", "kernels:image", "kernels:copy")
        assert (code, out, os.listdir(here)) == (2, "", [])
        words = "'kernels:copy' is the last operand, and so where to put the others: say '.' behind"
        assert words in err
        assert run("get", "kernels:image", "./kernels:copy") == (0, "", "")
        assert os.listdir(here) == ["kernels:copy"]

    def test_a_name_of_a_directory_that_is_not_there(self, run: Run, here: Path) -> None:
        for name in ("new/.", "new/.."):
            words = f"vuserctl: {name}: no such file or directory (ENOENT)\n"
            assert run("get", "kernels:image", name) == (1, "", words)
        assert os.listdir(here) == []

    def test_a_full_disk_takes_what_is_said(
        self, fake_daemon: FakeDaemon, start: Start, here: Path
    ) -> None:
        """It is no fault of the files, and ends it."""
        fake_daemon.root = directory(**{f"file-{number}": Node() for number in range(1000)})
        with open("/dev/full", "wb") as full:
            process = start(
                "get", "-v", "kernels:f*", str(here), stdout=full, stderr=subprocess.PIPE
            )
        said = b"vuserctl: standard output: no space left on device (ENOSPC)\n"
        assert (process.communicate()[1], process.returncode) == (said, 1)
        assert len(os.listdir(here)) < 1000

    def test_no_directory(self, run: Run, here: Path) -> None:
        words = "vuserctl: new: no directory, which several files would go to (ENOTDIR)\n"
        assert run("get", "kernels:image", "kernels:empty", "new") == (1, "", words)
        assert run("get", "kernels:boot/v*", "new") == (1, "", words)
        assert os.listdir(here) == []

    def test_one_is_missing(self, run: Run, here: Path) -> None:
        code, out, err = run("get", "kernels:no", "kernels:x*", "kernels:empty", ".")
        assert (code, out) == (1, "")
        assert err == (
            "vuserctl: kernels:x*: no such file or directory (ENOENT)\n"
            "vuserctl: kernels:no: no such file or directory (ENOENT)\n"
        )
        assert os.listdir(here) == ["empty"]

    def test_two_of_one_name(self, run: Run, here: Path) -> None:
        code, _, err = run("get", "kernels:empty", "kernels:/empty", ".")
        assert (code, os.listdir(here)) == (1, ["empty"])
        assert (
            err == "vuserctl: kernels:/empty: not fetched over kernels:empty, which is at ./empty\n"
        )

    def test_to_standard_output(self, run: Run) -> None:
        assert run("get", "kernels:boot/vmlinuz-*", "-") == (0, "123", "")

    def test_where_one_cannot_be_written(self, run: Run, here: Path) -> None:
        (here / "empty").mkdir()
        code, _, err = run("get", "kernels:empty", "kernels:image", ".")
        assert (code, err) == (1, "vuserctl: ./empty: is a directory (EISDIR)\n")
        assert (here / "image").read_bytes() == IMAGE

    @pytest.mark.parametrize(
        "arguments",
        [["get"], ["get", "kernels"], ["get", "a", "b"], ["get", "kernels:a", "b", "."]],
    )
    def test_wrong(self, run: Run, arguments: list[str]) -> None:
        code, _, err = run(*arguments)
        assert (code, err.startswith("usage: vuserctl get")) == (2, True)


@pytest.mark.parametrize(
    ("words", "looks"),
    [(("get", "kernels:image", "new"), 3), (("archive", "-o", "new", "kernels:boot"), 1)],
)
def test_a_link_that_comes_meanwhile_is_not_followed(
    run: Run,
    here: Path,
    fake_daemon: FakeDaemon,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    looks: int,
) -> None:
    """In /tmp it is another user's, which the kernel lets nobody else follow."""
    fake_daemon.unknown.clear()
    (here / "precious").write_text("data")
    really, count = os.stat, itertools.count(1)

    def stat_and_plant(path: Any, **options: Any) -> os.stat_result:
        try:
            return really(path, **options)
        except FileNotFoundError:
            if path == "new" and not options and next(count) == looks:
                (here / "new").symlink_to("precious")
            raise

    monkeypatch.setattr(os, "stat", stat_and_plant)
    assert run(*words)[0] == 0
    monkeypatch.undo()
    assert (here / "precious").read_bytes() == b"data"
    assert not (here / "new").is_symlink()


class TestDirectories:
    def test_without_r(self, run: Run, here: Path) -> None:
        words = "vuserctl: kernels:boot: a directory, which is fetched with -r (EISDIR)\n"
        assert run("get", "kernels:boot") == (1, "", words)
        assert os.listdir(here) == []

    def test_several(self, run: Run, here: Path) -> None:
        assert run("get", "-r", "kernels:boot/dtbs", "kernels:image", ".") == (0, "", "")
        assert sorted(os.listdir(here)) == ["dtbs", "image"]
        assert sorted(os.listdir(here / "dtbs")) == ["a.dtb", "b.dtb"]


class TestOptions:
    def test_update(self, run: Run, here: Path, fake_daemon: FakeDaemon) -> None:
        """A second time fetches nothing, then only what has changed."""
        assert run("get", "-ru", "kernels:boot", "kernels:image", ".")[0] == 0
        assert {"a.dtb", "vmlinuz-1", "image"} < fetched(fake_daemon)
        assert run("get", "-ru", "kernels:boot", "kernels:image", ".") == (0, "", "")
        assert fetched(fake_daemon) == set()
        fake_daemon.root.children[b"boot"].children[b"vmlinuz-2"].mtime_ns += 1
        fake_daemon.root.children[b"image"].content = b"new"
        assert run("get", "-ru", "kernels:boot", "kernels:image", ".")[0] == 0
        assert fetched(fake_daemon) == {"vmlinuz-2", "image"}
        assert (here / "image").read_bytes() == b"new"

    @pytest.mark.parametrize(
        ("local_ns", "size", "is_current"),
        [(0, 1, True), (10, 1, True), (-1, 1, False), (0, 2, False), (-10_000, 1, False)],
    )
    def test_what_is_current(self, here: Path, local_ns: int, size: int, is_current: bool) -> None:
        """Whole seconds are what some file systems keep of a time."""
        theirs = 1_600_000_000_000_000_010
        found = Stat.from_wire(Node(content=b"x", mtime_ns=theirs).stat())
        (here / "f").write_bytes(bytes(size))
        os.utime(here / "f", ns=(0, theirs - local_ns))
        assert How(update=True).is_current(found, "f") is is_current
        assert not How().is_current(found, "f")
        assert not How(update=True).is_current(found, "missing")
        assert not How(update=True).is_current(found, ".")

    @pytest.mark.parametrize(
        ("local_ns", "is_current"),
        [
            (1_600_000_001_987_654_300, True), (1_600_000_001_987_654_000, True),
            (1_600_000_001_987_000_000, True), (1_600_000_001_980_000_000, True),
            (1_600_000_001_000_000_000, True), (1_600_000_000_000_000_000, True),
            (1_600_000_001_987_654_200, False), (1_600_000_001_987_654_320, False),
            (1_600_000_001_900_000_000, False), (1_600_000_002_000_000_000, False),
            (1_599_999_999_000_000_000, False),
        ],
    )  # fmt: skip
    def test_times_that_file_systems_keep(
        self, here: Path, local_ns: int, is_current: bool
    ) -> None:
        """NTFS has 100 ns, exFAT 10 ms, and FAT two seconds."""
        theirs = Node(content=b"x", mtime_ns=1_600_000_001_987_654_321)
        (here / "f").write_bytes(b"y")
        os.utime(here / "f", ns=(0, local_ns))
        assert How(update=True).is_current(Stat.from_wire(theirs.stat()), "f") is is_current

    def test_permissions(self, run: Run, here: Path, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children[b"boot"].permissions = 0o777
        fake_daemon.root.children[b"empty"].permissions = 0o4666
        assert run("get", "-r", "kernels:boot")[0] == run("get", "kernels:empty")[0] == 0

        def modes() -> list[int]:
            paths = ("boot", "boot/vmlinuz-1", "empty")
            return [stat.S_IMODE((here / path).stat().st_mode) for path in paths]

        assert modes() == [0o755, 0o644, 0o644]
        assert run("get", "-p", "kernels:empty")[0] == 0
        assert run("get", "-rp", "kernels:boot", "again")[0] == 0
        assert modes() == [0o755, 0o644, 0o666]
        (here / "boot").rename(here / "before")
        (here / "again").rename(here / "boot")
        assert modes() == [0o777, 0o666, 0o666]

    @pytest.mark.parametrize("options", ["-r", "-rp", "-ru"])
    def test_the_group_of_a_shared_directory(
        self, run: Run, here: Path, fake_daemon: FakeDaemon, options: str
    ) -> None:
        """What is put into new directories later has that group, too."""
        boot = fake_daemon.root.children[b"boot"]
        boot.permissions = boot.children[b"dtbs"].permissions = 0o555
        here.chmod(0o2775)
        assert run("get", options, "kernels:boot")[0] == 0
        modes = {
            oct(stat.S_IMODE(each.stat().st_mode)) for each in (here / "boot", here / "boot/dtbs")
        }
        assert modes == {"0o2555"}
        assert (here / "boot/vmlinuz-1").stat().st_mode & 0o6000 == 0

    def test_verbose(self, run: Run, here: Path) -> None:
        lines = (
            "kernels:boot/latest -> boot/latest\n",
            *(f"kernels:boot/vmlinuz-{number} -> boot/vmlinuz-{number}\n" for number in (1, 2, 3)),
        )
        code, out, err = run("get", "-rv", "kernels:boot")
        assert (code, err) == (0, "")
        assert set(lines) < set(out.splitlines(keepends=True))
        assert run("get", "-v", "kernels:image", ".")[1] == "kernels:image -> ./image\n"
        assert (here / "boot/latest").readlink() == Path("vmlinuz-3")

    def test_dry_run(self, run: Run, here: Path, fake_daemon: FakeDaemon) -> None:
        assert run("get", "-n", "kernels:image", "x") == (0, "kernels:image -> x\n", "")
        assert run("get", "-n", "kernels:image", "-") == (0, "kernels:image -> -\n", "")
        code, out, err = run("get", "-n", "kernels:none", "-")
        assert (code, out) == (1, "")
        assert "kernels:none: no such file" in err
        code, out, err = run("get", "-rn", "kernels:")[:3]
        assert (code, out) == (2, "")
        code, out, err = run("get", "-rn", "kernels:", "all")
        assert code == 0
        assert "kernels:boot/dtbs/a.dtb -> all/boot/dtbs/a.dtb\n" in out
        assert err == "vuserctl: kernels:pipe: skipped, a fifo\n"
        assert fetched(fake_daemon) == set()
        assert os.listdir(here) == []
        assert run("get", "-r", "kernels:boot")[0] == 0
        fake_daemon.root.children[b"boot"].children[b"vmlinuz-2"].mtime_ns += 1
        assert run("get", "-run", "kernels:boot")[1] == (
            "kernels:boot/latest -> boot/latest\nkernels:boot/vmlinuz-2 -> boot/vmlinuz-2\n"
        )

    def test_dry_run_of_what_cannot_be_listed(self, run: Run, fake_daemon: FakeDaemon) -> None:
        def refuse(request: Request) -> None:
            if request.method == "readdir" and request.params[1] == "boot/dtbs":
                fake_daemon.root.children[b"boot"].children.pop(b"dtbs", None)

        fake_daemon.before = refuse
        code, out, err = run("get", "-rn", "kernels:boot", "x")
        assert (code, out.count("\n")) == (1, 4)
        assert err == "vuserctl: kernels:boot/dtbs: no such file or directory (ENOENT)\n"


def test_over_a_real_backend(virtiofsd: str, tmp_path: Path, here: Path, run: Run) -> None:
    top = tmp_path / "top"
    (top / "boot").mkdir(parents=True)
    for name in ("vmlinuz-1", "vmlinuz-2", "config"):
        (top / "boot" / name).write_text(name)
    with RunningDaemon({"files": top}, tmp_path / "s", virtiofsd) as running:
        socket = ("--socket", running.socket)
        several = ("get", "-uv", "files:/boot/vm*", "files:boot/config", ".")
        assert run(*socket, *several, socket=False)[1].count(" -> ./") == 3
        assert run(*socket, *several, socket=False) == (0, "", "")
        (top / "boot/config").write_text("other")
        assert run(*socket, *several, socket=False)[1] == "files:boot/config -> ./config\n"
    assert (here / "config").read_text() == "other"
    assert (here / "vmlinuz-2").read_text() == "vmlinuz-2"
