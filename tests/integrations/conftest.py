"""What the tests of integrations share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.running import RunningDaemon


class Exported(NamedTuple):
    """A directory of the host, and the daemon that exports it as ``files``."""

    directory: Path
    daemon: RunningDaemon

    @property
    def socket(self) -> str:
        return self.daemon.socket


@pytest.fixture(scope="module")
def untraced() -> Iterator[None]:
    """Where coverage is measured, trace what is loaded here, and no daemon: it slows them down."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def exported(
    untraced: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
    rust_virtiofsd: str,
) -> Iterator[Exported]:
    """Export a directory. Files above 2 MiB are too large for images."""
    folder = tmp_path_factory.mktemp("daemon")
    directory = folder / "files"
    directory.mkdir()
    socket, configuration = folder / "socket", folder / "vuserd.toml"
    configuration.write_text(
        f"""
        image_cache = 0
        [limits]
        user_images = "2M"
        [[listen]]
        socket = "{socket}"
        [[export]]
        name = "files"
        path = "{directory}"
        backend = "{rust_virtiofsd}"
        """
    )
    arguments = ("--config", str(configuration))
    with RunningDaemon({}, socket, None, *arguments, configured=True) as daemon:
        yield Exported(directory, daemon)
