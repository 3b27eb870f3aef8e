"""Installations of vuserd for the tests: its wheel, environments, and distributions of others."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

from tests.running import REPOSITORY


def pip(*arguments: str, python: str = sys.executable) -> None:
    """Run pip, with an environment's Python, without an index: all that it needs is here."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a checkout or an unpacked sdist with the back-end that setup installed."""
    pip(
        "wheel",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(source),
    )
    [wheel] = folder.glob("vuserd-*.whl")
    return wheel


def build_sdist(folder: Path) -> Path:
    """Build the sdist of this checkout."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=110)
    [sdist] = folder.glob("vuserd-*.tar.gz")
    return sdist


def make_distribution(name: str, folder: Path) -> Path:
    """Make the wheel of a distribution, not vuserd's, whose only module is the package ``name``."""
    wheel = folder / f"{name}-9.0-py3-none-any.whl"
    files = {
        f"{name}/__init__.py": f"OWNER = 'the distribution {name}'\n",
        f"{name}-9.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n",
        f"{name}-9.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = f"{name}-9.0.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(record, "".join(f"{path},,\n" for path in (*files, record)))
    return wheel


class Environment:
    """A virtual environment that has vuserd's dependencies, and not yet vuserd."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.python = str(self.bin / "python")
        [self.packages] = folder.glob("lib/python*/site-packages")
        # As a line of a .pth file does it: the .pth files over there, vuserd's own, have no effect.
        (self.packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *wheels: Path) -> None:
        """Install wheels alone; what is run is compiled when it is."""
        options = ("-q", "--no-index", "--no-deps", "--no-compile")
        pip("install", *options, *map(str, wheels), python=self.python)

    def uninstall(self, *names: str) -> None:
        """Remove distributions."""
        pip("uninstall", "-q", "--yes", *names, python=self.python)

    def run(
        self, program: str, *arguments: str, path: Path | None = None, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment: see :func:`run`."""
        return run(str(self.bin / program), *arguments, path=path, folder=folder)


def run(
    *command: str, path: Path | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder`` (default: no checkout's) with ``path`` as PYTHONPATH."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COVERAGE_", "PYTHON"))
    }
    return subprocess.run(
        command,
        env=plain | ({} if path is None else {"PYTHONPATH": str(path)}),
        cwd=folder or "/",
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
