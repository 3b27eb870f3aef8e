"""The drivers for labgrid without a board that can be booted: one is any program with a console."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import RunningDaemon

labgrid: Any = pytest.importorskip("labgrid", reason="labgrid is not installed")
drivers: Any = pytest.importorskip("vuserd.integrations.labgrid")
pexpect: Any = pytest.importorskip("pexpect")

#: What stands in for a kernel: it shows its command line and what it was given, and echoes.
BOARD = """#!/bin/sh
echo "$@"
for word in "$@"; do
    case $word in
    initrd=*) head -c 6 "${word#initrd=}"; echo ;;
    esac
done
while read -r line; do
    [ "$line" = off ] && exit
    echo "heard $line"
done
"""


@pytest.fixture
def lab(virtiofsd: str, tmp_path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the exported folder, and a target with its export."""
    lab = tmp_path / "lab"
    (lab / "root" / "etc").mkdir(parents=True)
    (lab / "root" / "etc" / "motd").write_text("welcome\n")
    (lab / "linux").write_text(BOARD)
    with RunningDaemon({"lab": lab}, tmp_path / "s", virtiofsd) as daemon:
        target = labgrid.Target("main")
        drivers.VuserdExport(target, "share", export="lab", socket=daemon.socket)
        yield lab, target
        target.cleanup()


def test_files(lab: tuple[Path, Any], tmp_path: Path) -> None:
    _, target = lab
    files = drivers.VuserdDriver(target, "files")
    target.activate(files)
    assert files.read("/root/etc/motd") == b"welcome\n"
    files.get("/root/etc/motd", str(tmp_path / "motd"))
    assert (tmp_path / "motd").read_text() == "welcome\n"
    for refused, arguments in ((files.write, ("/new", b"")), (files.put, ("/etc/motd", "/new"))):
        with pytest.raises(OSError, match="takes none") as error:
            refused(*arguments)
        assert (error.value.errno, error.value.filename) == (errno.EROFS, "lab:/new")
    with pytest.raises(FileNotFoundError):
        files.program("/nothing")


def test_a_board(lab: tuple[Path, Any]) -> None:
    _, target = lab
    files = drivers.VuserdDriver(target, "files")
    board = drivers.UserModeLinuxDriver(target, "board", arguments="quiet 'two words'")
    descriptors = len(os.listdir("/proc/self/fd"))
    target.activate(files)
    target.activate(board)
    board.expect(r"mem=\d+M .*rdinit=/init noreboot con=null con0=fd:0,fd:1 quiet two words\r?\n")
    board.expect("070701")  # the beginning of an initramfs
    board.sendline("hello")
    board.expect("heard hello")
    with pytest.raises(pexpect.TIMEOUT, match="written nothing"):
        board.read(timeout=0.01)
    board.sendline("off")
    with pytest.raises(labgrid.driver.ExecutionError, match="switched off"):
        board.expect("more")
    target.deactivate(board)
    target.deactivate(files)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_board_that_leaves_words_unread(lab: tuple[Path, Any]) -> None:
    _, target = lab
    files = drivers.VuserdDriver(target, "files")
    board = drivers.UserModeLinuxDriver(target, "board")
    target.activate(files)
    target.activate(board)
    board.sendline("off\nand more")
    for _ in range(2):
        with pytest.raises(labgrid.driver.ExecutionError, match="switched off"):
            board.expect("never")
    with pytest.raises(labgrid.driver.ExecutionError, match="switched off"):
        board.sendline("again")


def test_a_board_is_switched_off_with_its_driver(lab: tuple[Path, Any]) -> None:
    folder, target = lab
    (folder / "linux").write_text("#!/bin/sh\necho $$\nexec sleep 600\n")
    files, board = (
        drivers.VuserdDriver(target, "files"),
        drivers.UserModeLinuxDriver(target, "board"),
    )
    target.activate(files)
    target.activate(board)
    _, _, found, _ = board.expect(r"(\d+)\n")
    pid = int(found.group(1))
    os.kill(pid, 0)
    target.deactivate(board)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_daemon_elsewhere_is_reached_by_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ssh's master connection there is no way, and nothing is left of the attempt."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(
        drivers.NetworkVuserdExport, "command_prefix", ["false", "--"], raising=False
    )
    target = labgrid.Target("other")
    drivers.NetworkVuserdExport(target, "share", host="nowhere.invalid", export="lab")
    files = drivers.VuserdDriver(target, "files")
    with pytest.raises(labgrid.driver.ExecutionError, match="false -O forward"):
        target.activate(files)
    assert not [*temporary.iterdir()]
