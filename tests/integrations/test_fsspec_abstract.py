"""fsspec's own tests of file systems, on vuserd: what they write is written on the host.

Those of copies to and within the file system are left out, as it is read-only.
"""

from collections.abc import Iterator

import fsspec.tests.abstract as abstract
import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.integrations.conftest import Exported
from tests.integrations.host import WithHost


@pytest.fixture(scope="module")
def filesystem(exported: Exported) -> WithHost:
    return WithHost(exported.socket, str(exported.directory))


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """The file system, and a place in it."""

    @pytest.fixture
    def fs(self, filesystem: WithHost) -> WithHost:
        return filesystem

    @pytest.fixture
    def local_fs(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)  # that of fsspec 2025.3 warns in today's pytest

    @pytest.fixture
    def fs_path(self, fs: WithHost) -> Iterator[str]:
        yield "files/place"
        if fs.exists("files/place"):
            fs.rm("files/place", recursive=True)


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    """Copies to this machine: these are the product's alone."""


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    """A file is read as soon as it is written."""


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    """Likewise, whole."""
