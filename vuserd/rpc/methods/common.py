"""What methods about files have in common: parameters, options, and how owners are seen."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from vuserd.exports.export import Export
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.owners import Owners
from vuserd.rpc.methods.signature import (
    FLAG,
    PATH,
    TEXT,
    TIMEOUT,
    Option,
    integer,
    optional,
    seconds,
)

#: The most seconds that a client may give a call.
TIMEOUT_MAX: Final = 86_400.0

#: Where a file is.
FILE: Final = {"export": TEXT, "path": PATH}
#: How long a call may take, which file is open already, and how times are shown.
TIMED: Final = {TIMEOUT: Option(optional(seconds(TIMEOUT_MAX)), None)}
OPENED: Final = {"file": Option(optional(integer()), None)}
SPLIT: Final = {"split_times": Option(FLAG, default=False)}

_Result = TypeVar("_Result")


async def call_with_owners(
    export: Export, operation: Callable[[FileSystem], Awaitable[_Result]]
) -> tuple[_Result, Owners | None]:
    """Call an export; return how the backend that answered sees the owners of files, too."""

    async def call(files: FileSystem) -> tuple[_Result, Owners | None]:
        return await operation(files), files.owners

    return await export.call(call)
