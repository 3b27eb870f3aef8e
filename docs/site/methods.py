"""The methods of the RPC in Markdown, from their declarations and docstrings."""

import inspect
from collections.abc import Iterator
from typing import Final

from vuserd.rpc.methods.daemon import DaemonMethods
from vuserd.rpc.methods.files import FileMethods
from vuserd.rpc.methods.pages import PageMethods
from vuserd.rpc.methods.signature import Method, methods_of
from vuserd.rpc.methods.table import API_LEVEL, Methods

OWNERS: Final = {
    "Files": FileMethods,
    "Directories": PageMethods,
    "The daemon": DaemonMethods,
    "The connection": Methods,
}


def reference() -> str:
    """Return a section for each class of methods, and one in there for each method."""
    return f"\nThe API level is {API_LEVEL}.\n" + "".join(
        f"\n## {title}\n" + "".join(map(_section, methods_of(object.__new__(owner)).values()))
        for title, owner in OWNERS.items()
    )


def _section(method: Method) -> str:
    params = [*method.params, *(["{options}"] if method.options else [])]
    return "\n".join(
        [
            f"\n### {method.name}\n",
            f"`{method.name}({', '.join(params)})` returns {method.returns}.\n",
            inspect.getdoc(method.handler) or "",
            "",
            *_rows(method),
            *(f"{note}.\n" for note in _notes(method)),
        ]
    )


def _rows(method: Method) -> Iterator[str]:
    if method.params or method.options:
        yield "| parameter | type | default |\n|---|---|---|"
        for name, kind in method.params.items():
            yield f"| `{name}` | {kind.name} | |"
        for name, option in method.options.items():
            yield f"| option `{name}` | {option.kind.name} | `{_msgpack(option.default)}` |"
        yield ""


def _notes(method: Method) -> Iterator[str]:
    if method.since > 1:
        yield f"Since `api_level` {method.since}"
    if method.descriptor:
        yield "A descriptor comes with the request"
    if method.manages:
        yield "For root and the daemon's own user"


def _msgpack(value: object) -> str:
    return "nil" if value is None else str(value).lower()
