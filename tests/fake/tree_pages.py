"""Pages of ``tree`` as a daemon sends them, true or not."""

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from vuserd.client.records import Stat
from vuserd.wire.codec import wire_name

if TYPE_CHECKING:
    from tests.fake.rpc_server import Node

Row = dict[str, Any]


def row(path: str | bytes, kind: str = "file", size: int = 0, **others: Any) -> Row:
    """Return an entry with attributes that a file could have, and what else is said of it."""
    numbers = dict.fromkeys(Stat._fields, 0)
    formats = {"file": 0o100644, "dir": 0o040755, "symlink": 0o120777, "fifo": 0o010644}
    said = {"mode": formats.get(kind, 0), "submount": False, "nlink": 1}
    nothing = dict.fromkeys(("target", "link", "offset", "length", "error"))
    return {**numbers, **said, **nothing, "path": path, "type": kind, "size": size, **others}


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return entries as a list for each field."""
    return {name: [each[name] for each in rows] for name in rows[0]} if rows else {}


def page(
    entries: object,
    content: bytes = b"",
    problems: object = (),
    following: object = None,
) -> bytes:
    """Return a page."""
    index = {"entries": entries, "problems": problems, "next": following}
    packed: bytes = msgpack.packb(index, use_bin_type=True)
    return struct.pack(">I", len(packed)) + packed + content


def below(node: "Node", prefix: bytes = b"") -> Iterator[tuple[bytes, "Node"]]:
    """Yield all that is below a directory, parents first."""
    for name, child in node.children.items():
        path = prefix + name
        yield path, child
        yield from below(child, path + b"/")


def page_of(nodes: Sequence[tuple[bytes, "Node"]], most: int, following: bytes | None) -> bytes:
    """Return a page with the bytes of files of up to ``most``."""
    rows, content = [], b""
    for path, node in nodes:
        own = {**node.stat(), "submount": False}
        said = row(wire_name(path), node.type) | own
        if node.type == "symlink":
            said["target"] = wire_name(node.content)
        elif node.type == "file" and node.size is None and len(node.content) <= most:
            said |= {"offset": len(content), "length": len(node.content)}
            content += node.content
        rows.append(said)
    return page(columns(rows), content, [], following)
