"""Clients that are not vuserd's, each a process of its own; and the blocks of docs/rpc.md."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.documents import blocks
from tests.foreign.interpreters import interpreter
from tests.running import REPOSITORY, RunningDaemon
from vuserd.rpc.methods.table import API_LEVEL

#: npm has packages to get, the first time.
pytestmark = pytest.mark.timeout(300)

CONTENT: Final = os.urandom(9_000_001)
#: A time whose nanoseconds no double has.
MTIME: Final = (1_700_000_001, 123_456_789)
CLIENTS: Final = {
    "with_neovim.js": "js",
    "with_msgpack5rpc.js": "js",
    "with_lua.lua": "lua",
    "with_pynvim.py": "python",
}
DOCUMENT: Final = REPOSITORY / "docs/rpc.md"


@pytest.fixture(scope="module")
def daemon(
    rust_virtiofsd: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    folder = tmp_path_factory.mktemp("foreign")
    files = folder / "files"
    files.mkdir()
    (files / "Image").write_bytes(CONTENT)
    os.utime(files / "Image", ns=(0, MTIME[0] * 10**9 + MTIME[1]))
    (files / "board.dtb").write_bytes(b"\xd0\x0d\xfe\xed")
    exports = {"files": files, "kernels": files}
    with RunningDaemon(exports, folder / "s", rust_virtiofsd) as daemon:
        yield daemon


def run(language: str, program: str, daemon: RunningDaemon) -> str:
    command, variables = interpreter(language)
    done = subprocess.run(
        command,
        env=os.environ | variables | {"VUSERD_SOCKET": daemon.socket},
        input=program,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CLIENTS)
def test_it_sees_what_is_there(name: str, daemon: RunningDaemon) -> None:
    program = (Path(__file__).parent / name).read_text()
    saw: dict[str, Any] = json.loads(run(CLIENTS[name], program, daemon))
    assert saw.pop("level") == API_LEVEL
    assert sorted(saw.pop("names")) == ["Image", "board.dtb"]
    assert saw.pop("sha256") == hashlib.sha256(CONTENT).hexdigest()
    assert tuple(saw.pop("mtime")) == MTIME
    assert saw.pop("in_flight") == hashlib.sha256(CONTENT[: 300 * 16]).hexdigest()
    assert saw.pop("code") == "ENOENT"
    assert "ENOENT: " in saw.pop("shown", "ENOENT: ")
    assert saw == {}


def test_a_double_has_no_room_for_nanoseconds() -> None:
    """Which is why these clients ask for them apart."""
    assert int(float(MTIME[0] * 10**9 + MTIME[1])) != MTIME[0] * 10**9 + MTIME[1]


@pytest.mark.parametrize("language", ["js", "lua"])
def test_the_blocks_of_the_document_run(language: str, daemon: RunningDaemon) -> None:
    found = blocks(DOCUMENT, {language})
    assert found
    for block in found:
        run(language, block.text, daemon)
