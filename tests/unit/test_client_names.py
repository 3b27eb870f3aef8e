"""What the package gives: by name, and only when it is used."""

import ast
import os
import pydoc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vuserd.client
from tests.running import REPOSITORY
from vuserd.client import Client
from vuserd.client.errors import ClientError, RemoteError


def test_the_package_gives_its_names_when_they_are_used() -> None:
    assert vuserd.client.Client is Client
    with pytest.raises(AttributeError):
        vuserd.client.Nothing  # noqa: B018
    assert issubclass(RemoteError, ClientError)


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import vuserd.ctl.main", set()),
        ("import vuserd.client", set()),
        ("from vuserd.client import Client", set()),
        ("from vuserd.client import AsyncioClient", {"asyncio"}),
        ("from vuserd.client import TrioClient", {"trio"}),
    ],
)
def test_nobody_waits_for_what_others_need(statement: str, loaded: set[str]) -> None:
    code = f"import sys; {statement}; print(*{{*sys.modules}})"
    # What measures coverage loads some of these by itself.
    plain = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    output = subprocess.run(
        [sys.executable, "-c", code], env=plain, capture_output=True, check=True, text=True
    )
    found = {"trio", "asyncio", "inspect", "protocol", "memory"} & {*output.stdout.split()}
    assert found - {"inspect"} == loaded
    assert loaded or "inspect" not in found  # nor for what is slow to load
    assert "vuserd.client.files.wholefile" not in output.stdout.split()


def test_all_that_is_named_is_there() -> None:
    assert dir(vuserd.client) == sorted(vuserd.client.__all__)
    for name in vuserd.client.__all__:
        found = getattr(vuserd.client, name)
        assert getattr(found, "__name__", name).endswith(name)
    code = (
        "from vuserd.client import *; print(Client, AsyncioClient, RemoteError, Stat, calls.stat)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_shows_what_there_is() -> None:
    text = pydoc.plain(pydoc.render_doc(vuserd.client))
    for shown in (
        "with Client.connect() as client:",
        "class ClientPool",
        "read_bytes(",
    ):
        assert shown in text
    documented = vuserd.client.__doc__ or ""
    methods = {name for name in dir(Client) if name[:1] != "_"}
    own = {"begin", "finish", "abandon", "call", "close", "connect"}  # of the client itself
    left_out = {"read_into", "trace_page"}  # variants
    assert {name for name in methods if name not in documented} <= own | left_out


def test_a_name_that_is_known_is_not_looked_for_again() -> None:
    code = (
        "import vuserd.client as c; assert 'Client' not in vars(c); c.Client;"
        "assert 'Client' in vars(c)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a program imports by name: modules, and names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield str(node.module), alias.name


@pytest.mark.parametrize("program", sorted(REPOSITORY.glob("examples/*.py")), ids=lambda p: p.name)
def test_the_examples_need_nothing_else(program: Path) -> None:
    own = [(module, name) for module, name in imported(program) if module.startswith("vuserd")]
    assert own
    assert [module for module, _ in own if module != "vuserd.client"] == []
    assert {name for _, name in own} <= {*vuserd.client.__all__}
