"""What runs the clients of other languages, with the packages that they need."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.once import made_once

_NPM: Final = Path(__file__).parent / "npm"
_REQUIRED: Final = 'require "MessagePack"; require "posix.sys.socket"'


class Interpreter(NamedTuple):
    """A command that runs the program on its standard input, and what its environment needs."""

    command: tuple[str, ...]
    environment: dict[str, str]


def interpreter(language: str) -> Interpreter:
    """Return what runs ``js``, ``lua`` or ``python``; skip the test where that cannot be had.

    With ``foreign`` in $VUSERD_TEST_REQUIRE the test fails instead.
    """
    try:
        match language:
            case "js":
                return _node()
            case "lua":
                return _lua()
            case _:
                return Interpreter((sys.executable, "-"), {})
    except LookupError as error:
        reason = str(error.args[0])
    if "foreign" in os.environ.get("VUSERD_TEST_REQUIRE", "").split(","):
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def _node() -> Interpreter:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise LookupError("no node or no npm on this machine")

    def make(folder: Path) -> None:
        """Install what package-lock.json names, to the byte, and run none of it."""
        shutil.copytree(_NPM, folder)
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
        done = subprocess.run(
            [npm, "ci", *options], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LookupError(f"npm has no packages: {done.stderr.strip()[:200]}")

    version = hashlib.sha256((_NPM / "package-lock.json").read_bytes()).hexdigest()
    folder = made_once(f"npm-clients-{version[:8]}", make)
    return Interpreter((node, "-"), {"NODE_PATH": str(folder / "node_modules")})


@functools.cache
def _lua() -> Interpreter:
    for name in ("lua5.4", "lua5.3"):
        lua = shutil.which(name)
        if lua is None:
            continue
        tried = subprocess.run([lua, "-e", _REQUIRED], stderr=subprocess.DEVNULL, check=False)
        if not tried.returncode:
            return Interpreter((lua, "-"), {})
    raise LookupError("no Lua with lua-messagepack and lua-posix on this machine")
