"""The names of :mod:`vuserd.client` by what they are, as directives for Sphinx to document them."""

import inspect
from collections.abc import Iterable
from typing import Final

from vuserd import client

_CLIENTS: Final = ("Client", "AsyncClient", "TrioClient", "AsyncioClient", "ClientPool")


def reference() -> str:
    """Return a section for each kind of class."""
    names = [name for name in client.__all__ if inspect.isclass(getattr(client, name))]
    errors = [name for name in names if issubclass(getattr(client, name), Exception)]
    records = [name for name in names if issubclass(getattr(client, name), tuple)]
    others = [name for name in names if name not in {*_CLIENTS, *errors, *records}]
    return "".join(
        [
            _section("Clients", _CLIENTS),
            _section("Images, memory, files and archives", others),
            _section("What calls return", records),
            _section("Errors", errors),
        ]
    )


def _section(title: str, names: Iterable[str]) -> str:
    return f"\n{title}\n{'-' * len(title)}\n" + "".join(map(_directive, names))


def _directive(name: str) -> str:
    # Methods of Client may be of a base without a name there; those of AsyncClient are shown once.
    inherited = "   :inherited-members:\n" if name == "Client" else ""
    return f"\n.. autoclass:: vuserd.client.{name}\n   :members:\n{inherited}"
