"""The client libraries of vuserd: :class:`Client`, :class:`TrioClient`, :class:`AsyncioClient`.

::

    from vuserd.client import Client

    with Client.connect() as client:
        kernel = client.read_bytes("kernels", "/boot/Image")
        for entry in client.iterdir("kernels", "/boot", attrs=True):
            print(entry.name, entry.stat.size)
        for path in client.glob("kernels", "/**/*.dtb"):
            client.download("kernels", path, "board.dtb")
        with client.open("kernels", "/boot/Image") as file:
            file.seek(0x200)

=========================== =====================================================================
look                        ``stat readlink iterdir iterwalk glob statfs``, and ``readdir walk``
read one version of a file  ``read_bytes read_text open download stream fetch``, and ``read``
a directory with its files  ``tree archive``
into memory of yours        ``attach load detach``
the daemon                  ``exports rigs status metrics reload trace api_info``
=========================== =====================================================================

The file system's errors are OSErrors, all others ClientErrors; each call takes ``timeout``, in
seconds. Threads share a :class:`ClientPool`. docs/python.md shows all of it in ten minutes.

All that a program needs is here, by name; modules below are the library's own, but for ``calls``,
whose functions are for ``client.call`` and ``client.begin``. A name is loaded when it is first
used, so that nobody waits for trio or asyncio who needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vuserd.client import calls as calls
    from vuserd.client.archive.members import Archived as Archived
    from vuserd.client.archive.members import ArchiveOptions as ArchiveOptions
    from vuserd.client.async_client import AsyncClient as AsyncClient
    from vuserd.client.asyncio_client import AsyncioClient as AsyncioClient
    from vuserd.client.errors import BadReply as BadReply
    from vuserd.client.errors import CannotConnect as CannotConnect
    from vuserd.client.errors import ClientError as ClientError
    from vuserd.client.errors import ConnectionLost as ConnectionLost
    from vuserd.client.errors import NotTaken as NotTaken
    from vuserd.client.errors import RemoteError as RemoteError
    from vuserd.client.errors import TimedOut as TimedOut
    from vuserd.client.files.attributes import StatEntry as StatEntry
    from vuserd.client.files.handles import AsyncFile as AsyncFile
    from vuserd.client.files.tree_page import TreeEntry as TreeEntry
    from vuserd.client.image import Image as Image
    from vuserd.client.memory import AsyncAttachedMemory as AsyncAttachedMemory
    from vuserd.client.memory import AttachedMemory as AttachedMemory
    from vuserd.client.records import ApiInfo as ApiInfo
    from vuserd.client.records import Backend as Backend
    from vuserd.client.records import BackendStatus as BackendStatus
    from vuserd.client.records import ClientStatus as ClientStatus
    from vuserd.client.records import DirectoryPage as DirectoryPage
    from vuserd.client.records import Entry as Entry
    from vuserd.client.records import ExportInfo as ExportInfo
    from vuserd.client.records import ExportStatus as ExportStatus
    from vuserd.client.records import FsStat as FsStat
    from vuserd.client.records import ImagesStatus as ImagesStatus
    from vuserd.client.records import ListenerStatus as ListenerStatus
    from vuserd.client.records import LossStatus as LossStatus
    from vuserd.client.records import PageToken as PageToken
    from vuserd.client.records import RigInfo as RigInfo
    from vuserd.client.records import RigStatus as RigStatus
    from vuserd.client.records import Stat as Stat
    from vuserd.client.records import Status as Status
    from vuserd.client.records import WalkEntry as WalkEntry
    from vuserd.client.records import WalkPage as WalkPage
    from vuserd.client.records import WalkProblem as WalkProblem
    from vuserd.client.sharing.pool import ClientPool as ClientPool
    from vuserd.client.sync_client import Client as Client
    from vuserd.client.trace import TraceEvent as TraceEvent
    from vuserd.client.trace import TracePage as TracePage
    from vuserd.client.trio_client import TrioClient as TrioClient

__all__ = [
    "ApiInfo",
    "ArchiveOptions",
    "Archived",
    "AsyncAttachedMemory",
    "AsyncClient",
    "AsyncFile",
    "AsyncioClient",
    "AttachedMemory",
    "Backend",
    "BackendStatus",
    "BadReply",
    "CannotConnect",
    "Client",
    "ClientError",
    "ClientPool",
    "ClientStatus",
    "ConnectionLost",
    "DirectoryPage",
    "Entry",
    "ExportInfo",
    "ExportStatus",
    "FsStat",
    "Image",
    "ImagesStatus",
    "ListenerStatus",
    "LossStatus",
    "NotTaken",
    "PageToken",
    "RemoteError",
    "RigInfo",
    "RigStatus",
    "Stat",
    "StatEntry",
    "Status",
    "TimedOut",
    "TraceEvent",
    "TracePage",
    "TreeEntry",
    "TrioClient",
    "WalkEntry",
    "WalkPage",
    "WalkProblem",
    "calls",
]

_MODULES: Final = {
    "archive.members": ("ArchiveOptions", "Archived"),
    "async_client": ("AsyncClient",),
    "asyncio_client": ("AsyncioClient",),
    "errors": (
        "BadReply",
        "CannotConnect",
        "ClientError",
        "ConnectionLost",
        "NotTaken",
        "RemoteError",
        "TimedOut",
    ),
    "files.attributes": ("StatEntry",),
    "files.handles": ("AsyncFile",),
    "files.tree_page": ("TreeEntry",),
    "image": ("Image",),
    "memory": ("AsyncAttachedMemory", "AttachedMemory"),
    "sharing.pool": ("ClientPool",),
    "sync_client": ("Client",),
    "trace": ("TraceEvent", "TracePage"),
    "trio_client": ("TrioClient",),
}
_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "calls":
        return import_module(f"{__name__}.calls")
    found = getattr(import_module(f"{__name__}.{_MODULE_OF.get(name, 'records')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
