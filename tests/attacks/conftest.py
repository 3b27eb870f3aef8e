"""What all attacks need: root, who becomes others, and a folder that others reach."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systems.conftest import without


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        without("only root becomes other users")


@pytest.fixture
def ground() -> Iterator[Path]:
    """Give a folder of root's that everybody may enter, with an ``export`` that has a file."""
    folder = Path(tempfile.mkdtemp(prefix="vuserd-attack-"))
    try:
        folder.chmod(0o755)
        (folder / "export").mkdir(mode=0o755)
        (folder / "export" / "hello").write_text("hello\n")
        yield folder
    finally:
        shutil.rmtree(folder)
