"""All methods of the RPC, by their names, and what ``api_info`` says of them."""

import errno
import logging
from collections.abc import Mapping
from typing import Any, Final

from vuserd import __version__
from vuserd.delivery.images import ImageStore
from vuserd.errors import CallError, ErrorCode
from vuserd.exports.export import Export
from vuserd.rpc.access import VisibleExports
from vuserd.rpc.caller import Caller
from vuserd.rpc.methods.daemon import DaemonMethods, Manager
from vuserd.rpc.methods.files import FileMethods
from vuserd.rpc.methods.pages import PageMethods
from vuserd.rpc.methods.signature import TEXT, Method, method, methods_of
from vuserd.rpc.peer_log import PeerLog

#: Goes up with each addition; a client that needs level N works with every daemon of N or more...
API_LEVEL: Final = 5
#: ... that is compatible with N: the oldest level whose clients this daemon still serves.
API_COMPATIBLE: Final = 1
#: A map of code, message and more; and what clients of Neovim show, [0, "CODE: message"].
ERROR_FORMS: Final = ("map", "pair")


class Methods:
    """All methods over a set of exports.

    Args:
        exports: by name.
        images: where ``fetch`` gets them.
        manager: the daemon itself, for what concerns all of it.

    """

    def __init__(self, exports: Mapping[str, Export], images: ImageStore, manager: Manager) -> None:
        visible = VisibleExports(exports)
        self.refusals = visible.refusals
        self.drops = PeerLog(logging.INFO, "a client of %s was dropped: %s%s")
        self.faults = PeerLog(logging.ERROR, "fault in a call of %s: %s%s")
        self.table: Mapping[str, Method] = {
            **methods_of(self),
            **methods_of(DaemonMethods(visible, manager)),
            **methods_of(PageMethods(visible)),
            **methods_of(FileMethods(visible, images)),
        }
        self._described = [method.describe() for method in self.table.values()]

    def find(self, name: str) -> Method:
        """Return the method of this name.

        Raises:
            CallError: UNKNOWN_METHOD.

        """
        method = self.table.get(name)
        if method is None:
            raise CallError(
                ErrorCode.UNKNOWN_METHOD, f"there is no method {name!r}; api_info lists them"
            )
        return method

    @method({}, {}, "map")
    async def api_info(self, _: Caller) -> dict[str, Any]:
        """Return the daemon's version, API level, methods and error names."""
        return {
            "version": __version__,
            "api_level": API_LEVEL,
            "api_compatible": API_COMPATIBLE,
            "methods": self._described,
            "errors": [*ErrorCode, *errno.errorcode.values()],
        }

    @method({"form": TEXT}, {}, "nil", since=4)
    async def errors_as(self, caller: Caller, form: str) -> None:
        """Choose the form in which this connection gets errors from now on."""
        if form not in ERROR_FORMS:
            raise CallError(
                ErrorCode.BAD_REQUEST, f"form: one of {', '.join(ERROR_FORMS)} is wanted"
            )
        caller.wants_pairs = form == "pair"
