"""The examples, and the blocks of code in README.md and docs/, do what they say.

Blocks of ``python`` run as programs, blocks of ``sh`` and ``console`` in bash; those of one file in
their order, in a new folder that stands for the repository. In a ``console`` block, what follows a
prompt (``$``) is run, and the rest is what comes out: a line without a digit has to come out as it
is shown, lines with digits (sizes, times, versions) differ from machine to machine.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.running import REPOSITORY, RunningDaemon

#: Blocks that are not run, by their file and first line, and why.
NOT_RUN: Final = {
    (
        "README.md",
        "make demo              # serve a directory, list it, fetch a file, compare it",
    ): ("installs packages, and runs this suite"),
    ("README.md", "$ export VUSERD_SOCKET=$PWD/.venv/vuserd.sock\n$ make run"): (
        "serves until it is ended"
    ),
}
_FENCE: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN: Final = ("sh", "console", "python")


class Block(NamedTuple):
    """A block of code in a document."""

    document: str
    language: str
    text: str

    @property
    def left_out(self) -> bool:
        return any(
            (self.document, self.text[: len(start)]) == (name, start) for name, start in NOT_RUN
        )

    def run(self, folder: Path, environment: dict[str, str]) -> None:
        """Run it as a reader would who copies it."""
        match self.language:
            case "python":
                command = [sys.executable, "-c", self.text]
            case "sh":
                command = ["bash", "-euo", "pipefail", "-c", self.text]
            case _:
                command = ["bash", "-c", "\n".join(self._commands())]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
        if self.language == "console":
            shown = [line for line in self.text.splitlines() if not line.startswith("$ ")]
            assert _steady(done.stdout.splitlines()) == _steady(shown), done.stdout
        else:
            assert done.returncode == 0, done.stdout

    def _commands(self) -> list[str]:
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]


def _steady(lines: list[str]) -> list[str]:
    return [line for line in lines if not re.search(r"\d", line)]


def blocks(document: Path) -> list[Block]:
    name = str(document.relative_to(REPOSITORY))
    found = _FENCE.findall(document.read_text())
    return [Block(name, language, text) for language, text in found if language in _RUN]


#: README.md, and of the others those that have blocks.
DOCUMENTS: Final = [
    REPOSITORY / "README.md",
    *filter(blocks, sorted(REPOSITORY.glob("docs/*.md"))),
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
    """Give a folder with a ``.venv`` and a daemon at the socket that the documents use."""
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
    ran = [block for block in blocks(document) if not block.left_out]
    assert ran
    for block in ran:
        block.run(checkout, environment)


def test_nothing_is_left_out_that_is_not_there() -> None:
    left_out = [block for document in DOCUMENTS for block in blocks(document) if block.left_out]
    assert len(left_out) == len(NOT_RUN)


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
