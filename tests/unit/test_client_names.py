"""What the package gives: by name, and only when it is used."""

import subprocess
import sys

import pytest

import vuserd.client
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
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    found = {"trio", "asyncio", "inspect", "protocol", "memory"} & {*output.stdout.split()}
    assert found - {"inspect"} == loaded
    assert loaded or "inspect" not in found  # nor for what is slow to load
