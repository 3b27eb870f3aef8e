"""The examples, and the blocks of code in README.md and docs/, do what they say.

The blocks of one file run in their order, in a new folder that stands for the repository.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.documents import Block, blocks
from tests.running import REPOSITORY, RunningDaemon

#: Documents that another test runs, on a machine of their own or by pytest.
ELSEWHERE: Final = {
    "lab.md": "tests/system/test_lab.py",
    "labgrid.md": "tests/integrations/test_labgrid.py",
    "pytest.md": "tests/integrations/test_pytest_plugin.py",
}
#: Blocks that are not run, by their file and first line, and why.
NOT_RUN: Final = {
    (
        "README.md",
        "make demo              # serve a directory, list it, fetch a file, compare it",
    ): ("installs packages, and runs this suite"),
    ("README.md", "$ make demo-boot"): "tests/e2e/test_boot.py runs it",
    ("README.md", "$ export VUSERD_SOCKET=$PWD/.venv/vuserd.sock\n$ make run"): (
        "serves until it is ended"
    ),
}


def left_out(block: Block) -> bool:
    return any(
        (block.document, block.text[: len(start)]) == (name, start) for name, start in NOT_RUN
    )


def run(block: Block, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        block.command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    block.check(done.returncode, done.stdout)


#: README.md, and of the others those that have blocks.
DOCUMENTS: Final = [
    REPOSITORY / "README.md",
    *(
        document
        for document in sorted(REPOSITORY.glob("docs/*.md"))
        if blocks(document) and document.name not in ELSEWHERE
    ),
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "Image").write_bytes(b"MZ" + os.urandom(3_000_001))
    (folder / "board.dtb").write_bytes(b"\xd0\x0d\xfe\xed" + os.urandom(20_000))
    return folder


@pytest.fixture(scope="module")
def checkout(
    virtiofsd: str, kernels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Yield a folder with a ``.venv`` and a daemon at the socket that the documents use."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    exports = {"bin": Path("/usr/bin"), "kernels": kernels}
    with RunningDaemon(exports, folder / ".venv" / "vuserd.sock", virtiofsd):
        yield folder


@pytest.fixture(scope="module")
def environment(checkout: Path) -> dict[str, str]:
    paths = {
        "VUSERD_SOCKET": f"{checkout}/.venv/vuserd.sock",
        "PATH": f"{checkout}/.venv/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    return os.environ | paths


@pytest.mark.skipif(shutil.which("git") is None, reason="the README fetches /usr/bin/git")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_blocks_of_a_document_run(
    document: Path, checkout: Path, environment: dict[str, str]
) -> None:
    ran = [block for block in blocks(document) if not left_out(block)]
    assert ran
    for block in ran:
        run(block, checkout, environment)


def test_nothing_is_left_out_that_is_not_there() -> None:
    found = [block for document in DOCUMENTS for block in blocks(document) if left_out(block)]
    assert len(found) == len(NOT_RUN)
    assert all((REPOSITORY / test).exists() for test in ELSEWHERE.values())


def example(
    environment: dict[str, str], name: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "examples" / name), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_rig_has_every_byte(environment: dict[str, str]) -> None:
    done = example(environment, "rig.py", "kernels:/Image", "kernels:/board.dtb", "--ram", "256M")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["kernels:/Image", "kernels:/none"], "ENOENT"),
        (["kernels:/Image", "kernels:/board.dtb", "--ram", "1M"], "TOO_LARGE"),
    ],
)
def test_the_rig_says_what_is_wrong(
    environment: dict[str, str], arguments: list[str], code: str
) -> None:
    done = example(environment, "rig.py", *arguments)
    assert done.returncode == 1
    assert code in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demonstration_works(
    virtiofsd: str, kernels: Path, environment: dict[str, str]
) -> None:
    done = example(environment, "demo.py", "--backend", virtiofsd, str(kernels))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("The demonstration worked.\n")
