"""What others can do where root installs: a group may write below /usr/local on older Debians."""

import os
import subprocess
from pathlib import Path
from typing import Final

from tests.attacks.people import MALLORY, run_as
from tests.attacks.threats import Who, threat
from tests.running import REPOSITORY

#: The group that may write there.
_STAFF: Final = 2050
_PAGE: Final = "usr/local/share/man/man1/vuserctl.1"

_of_links = threat(
    "links where root installs",
    who=Who.NEIGHBOUR,
    against="root's files",
    does="puts links at the names that root's make install or make rollback writes to, or makes the"
    " folder of the installation first",
    promise="no link at such a name is followed, and another user's folder is refused",
)


def _installed(root: Path) -> Path:
    """Make two installations below a folder; return that of both."""
    library = root / "usr/local/lib/vuserd"
    for version in ("one", "two"):
        page = library / version / "files" / _PAGE
        page.parent.mkdir(parents=True)
        page.write_text(version)
    (library / "current").symlink_to("two")
    (library / "former").symlink_to("one")
    return library


def _roll_back(root: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], "DESTDIR": str(root), "PREFIX": "/usr/local"}
    command = [str(REPOSITORY / "tools/install"), "rollback"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@_of_links
def test_no_link_is_followed(ground: Path) -> None:
    root = ground / "root"
    _installed(root)
    secret, folder = ground / "secret", ground / "folder"
    secret.write_text("mine")
    folder.mkdir()
    page = root / _PAGE
    page.parent.mkdir(parents=True)
    os.chown(page.parent, 0, _STAFF)
    page.parent.chmod(0o2775)

    def attack() -> None:
        page.with_name("vuserctl.1.new").symlink_to(secret)
        page.symlink_to(folder)

    assert run_as(MALLORY, attack, groups=[_STAFF]) == 0
    done = _roll_back(root)
    assert done.returncode == 0, done.stderr
    assert secret.read_text() == "mine"
    assert [*folder.iterdir()] == []
    assert not page.is_symlink()
    assert page.read_text() == "one"


@_of_links
def test_another_s_folder_is_refused(ground: Path) -> None:
    root = ground / "root"
    library = _installed(root)
    os.chown(library, MALLORY, MALLORY)
    done = _roll_back(root)
    assert done.returncode == 1
    assert "is another user's" in done.stderr
    assert not (root / _PAGE).exists()
