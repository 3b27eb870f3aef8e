"""An export is a path: the daemon serves what it leads to now, or the export is gone."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import family
from tests.running import RunningDaemon
from vuserd.client import Client
from vuserd.client.errors import RemoteError

#: Seconds within which a change is noticed, and for a machine that is busy.
_NOTICED = 1.0
_PATIENCE = 10.0

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


def folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "Image").write_text(content)
    os.utime(path / "Image", (1000, 1000))
    return path


def switch(link: Path, target: str) -> None:
    """Put another symbolic link in the place of one, at once."""
    other = link.with_name("switched")
    other.symlink_to(target)
    other.rename(link)


def mount(path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)
    (path / "Image").write_text("two")


# Each makes the export's path, which it returns with what has another directory stand there.


def renamed(top: Path) -> tuple[Path, Callable[[], object]]:
    def replace() -> None:
        folder(top / "new", "two")
        (top / "e").rename(top / "old")
        (top / "new").rename(top / "e")

    return folder(top / "e", "one"), replace


def made_again(top: Path) -> tuple[Path, Callable[[], object]]:
    def replace() -> None:
        shutil.rmtree(top / "e")
        folder(top / "e", "two")

    return folder(top / "e", "one"), replace


def renamed_above(top: Path) -> tuple[Path, Callable[[], object]]:
    def replace() -> None:
        folder(top / "new" / "e", "two")
        (top / "above").rename(top / "old")
        (top / "new").rename(top / "above")

    return folder(top / "above" / "e", "one"), replace


def linked_absolutely(top: Path) -> tuple[Path, Callable[[], object]]:
    folder(top / "v1", "one")
    folder(top / "v2", "two")
    (top / "e").symlink_to(top / "v1")
    return top / "e", lambda: switch(top / "e", f"{top}/v2")


def linked_relatively(top: Path) -> tuple[Path, Callable[[], object]]:
    folder(top / "v1", "one")
    folder(top / "v2", "two")
    (top / "e").symlink_to("v1")
    return top / "e", lambda: switch(top / "e", "v2")


def linked_above(top: Path) -> tuple[Path, Callable[[], object]]:
    folder(top / "v1" / "e", "one")
    folder(top / "v2" / "e", "two")
    (top / "current").symlink_to("v1")
    return top / "current" / "e", lambda: switch(top / "current", "v2")


def mounted_on(top: Path) -> tuple[Path, Callable[[], object]]:
    path = folder(top / "e", "one")
    return path, lambda: mount(path)


def mounted_above(top: Path) -> tuple[Path, Callable[[], object]]:
    path = folder(top / "above" / "e", "one")

    def replace() -> None:
        subprocess.run(["mount", "-t", "tmpfs", "none", str(top / "above")], check=True)
        folder(path, "two")

    return path, replace


def unmounted(top: Path) -> tuple[Path, Callable[[], object]]:
    path = folder(top / "e", "two")
    mount(path)
    (path / "Image").write_text("one")
    return path, lambda: subprocess.run(["umount", str(path)], check=True)


def mounted_anew(top: Path) -> tuple[Path, Callable[[], object]]:
    """Mount one image after the other: their top directories have the same inode number."""
    path = folder(top / "e", "none")
    image = top / "images"
    for content in ("one", "two"):
        made = top / content
        folder(made, content)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-d", str(made), f"{image}-{content}", "4M"], check=True
        )
    subprocess.run(["mount", "-o", "loop,ro", f"{image}-one", str(path)], check=True)

    def replace() -> None:
        subprocess.run(["umount", str(path)], check=True)
        subprocess.run(["mount", "-o", "loop,ro", f"{image}-two", str(path)], check=True)

    return path, replace


WAYS = [
    renamed,
    made_again,
    renamed_above,
    linked_absolutely,
    linked_relatively,
    linked_above,
    pytest.param(mounted_on, marks=as_root),
    pytest.param(mounted_above, marks=as_root),
    pytest.param(unmounted, marks=as_root),
    pytest.param(
        mounted_anew,
        marks=[
            as_root,
            pytest.mark.skipif(shutil.which("mke2fs") is None, reason="no mke2fs here"),
        ],
    ),
]


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "top"
    made.mkdir()
    yield made
    for path in (made / "e", made / "above"):
        while os.path.ismount(path):
            subprocess.run(["umount", str(path)], check=True)


def image(client: Client) -> str:
    return client.read("files", "Image", 0, 100).decode()


@pytest.mark.parametrize("way", WAYS)
def test_what_stands_there_now_is_served(
    virtiofsd: str,
    top: Path,
    tmp_path: Path,
    way: Callable[[Path], tuple[Path, Callable[[], object]]],
) -> None:
    path, replace = way(top)
    with (
        RunningDaemon({"files": path}, tmp_path / "s", virtiofsd) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        assert image(client) == "one"
        client.fetch("files", "Image").close()
        time.sleep(_NOTICED)  # what is told of: a call after so long sees the change at once
        replace()
        assert image(client) == "two"
        names = {entry.name for entry in client.iterdir("files", "")}
        assert names - {"lost+found"} == {"Image"}
        with client.fetch("files", "Image") as again:
            assert bytes(again.buffer()) == b"two"
        [export] = client.exports()
        assert export.state == "up"
        assert client.status()["exports"][0]["restarts"] == 0  # none was lost
        wait_for(lambda: len(backends(daemon)) == 1)
    assert "another directory stands at" in daemon.log


def backends(daemon: RunningDaemon) -> set[int]:
    """Return the process groups of its backends."""
    groups = set()
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # one ends meanwhile
        for each in family(daemon.process.pid):
            groups.add(os.getpgid(each))
        return groups - {os.getpgid(daemon.process.pid)}
    return {-1, -2}


def wait_for(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a backend that is not needed any more ends when it will


def test_no_call_is_lost_or_late(virtiofsd: str, top: Path, tmp_path: Path) -> None:
    """Clients read all the time: after a second they have what stands there now, and no error."""
    path = folder(top / "v0", "0").with_name("e")
    path.symlink_to("v0")
    changes = [(time.monotonic(), 0)]  # when each became the one that is there
    faults: list[str] = []
    over = threading.Event()

    def read() -> None:
        try:
            with Client.connect(daemon.socket) as client:
                while not over.is_set():
                    begun = time.monotonic()
                    got = int(image(client))
                    due = [number for when, number in changes if when + _NOTICED < begun]
                    if got < max(due, default=0):
                        faults.append(f"{got} instead of {max(due)}")
                    time.sleep(0.01)  # four of them are to leave the daemon a processor
        except Exception as error:
            faults.append(repr(error))

    with RunningDaemon({"files": path}, tmp_path / "s", virtiofsd) as daemon:
        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1, 6):
            folder(top / f"v{number}", str(number))
            switch(path, f"v{number}")
            changes.append((time.monotonic(), number))
            time.sleep(0.4 * number)  # sooner than it is noticed, and later
        over.set()
        for thread in threads:
            thread.join()
        with Client.connect(daemon.socket) as client:
            assert image(client) == "5"
    assert faults == []


def test_a_directory_that_is_gone(virtiofsd: str, top: Path, tmp_path: Path) -> None:
    path = folder(top / "e", "one")
    other = folder(top / "other", "other")
    with (
        RunningDaemon({"files": path, "other": other}, tmp_path / "s", virtiofsd) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        assert image(client) == "one"
        for content, reason in (("two", "no such file or directory"), ("three", "not a directory")):
            shutil.rmtree(path)
            if content == "three":
                path.write_text("a file")
            time.sleep(_NOTICED)
            assert client.exports()[0].state == "gone"  # though nobody has asked for a file
            with pytest.raises(
                RemoteError, match=f"export files is gone: {path}.*{reason}"
            ) as raised:
                image(client)
            assert raised.value.code == "BACKEND_DOWN"
            assert client.read("other", "Image", 0, 100) == b"other"
            states = {export.name: (export.state, export.reason) for export in client.exports()}
            assert states["files"][0] == "gone"
            assert reason in (states["files"][1] or "")
            wait_for(lambda: len(backends(daemon)) == 1)  # and holds nothing of it
            path.unlink(missing_ok=True)
            folder(path, content)
            time.sleep(_NOTICED / 5)
            assert image(client) == content
            assert client.exports()[0].state == "up"
