"""The methods that are a few requests at most, as procedures: such a call needs no task."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from protocol.fuse import Attributes
from vuserd.delivery.images import ImageStore
from vuserd.delivery.inline import READ_MAX, read_small
from vuserd.device.procedure import Procedure
from vuserd.exports.export import Export
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.owners import Owners
from vuserd.rpc.access import VisibleExports
from vuserd.rpc.caller import Caller
from vuserd.rpc.results.answers import Encoded
from vuserd.rpc.results.maps import split_stat_map, stat_map
from vuserd.wire.codec import encode_result


class Owner(Protocol):
    """What the methods belong to."""

    @property
    def exports(self) -> VisibleExports:
        """The exports, as each client sees them."""

    @property
    def images(self) -> ImageStore:
        """The images that are kept."""


class Short(NamedTuple):
    """What a call does on an export's files."""

    export: Export
    procedure: Callable[[FileSystem], Procedure[Any]]


def stat(
    owner: Owner,
    caller: Caller,
    export: str,
    path: bytes,
    *,
    follow: bool,
    file: int | None,
    split_times: bool,
) -> Short | None:
    """Return ``stat`` of a path as a procedure; None of an open file, which may have to be opened.

    Raises:
        CallError: UNKNOWN_EXPORT.

    """
    if file is not None:
        return None
    found = owner.exports.find(caller.rights, export)
    show = split_stat_map if split_times else stat_map
    return Short(found, functools.partial(_shown, path, follow, show))


def _shown(
    path: bytes,
    follow: bool,  # noqa: FBT001 - of a partial
    show: Callable[[Attributes, Owners | None], dict[str, Any]],
    files: FileSystem,
) -> Procedure[Encoded]:
    attributes = yield from files.attributes(path, follow=follow)
    return Encoded(encode_result(show(attributes, files.owners)))


def read(
    owner: Owner,
    caller: Caller,
    export: str,
    path: bytes,
    offset: int,
    length: int,
    *,
    file: int | None,
) -> Short | None:
    """Return ``read`` of a path as a procedure; None of an open file, as for :func:`stat`.

    None, too, of no bytes, and of so many that the call is refused.

    Raises:
        CallError: UNKNOWN_EXPORT.

    """
    if file is not None or not 0 < length <= READ_MAX:
        return None

    found = owner.exports.find(caller.rights, export)
    return Short(found, functools.partial(read_small, path, offset, length))


def fetch(owner: Owner, caller: Caller, export: str, path: bytes) -> Short | None:
    """Return ``fetch`` of an image that is kept as a procedure; None where none is.

    Raises:
        CallError: UNKNOWN_EXPORT.

    """
    if not owner.images:
        return None
    found = owner.exports.find(caller.rights, export)
    return Short(found, functools.partial(owner.images.fetch_kept, path))
