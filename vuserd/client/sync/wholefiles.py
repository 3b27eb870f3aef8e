"""What the synchronous client does with whole files."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack

from vuserd.client import calls, composite
from vuserd.client.calls import RemotePath
from vuserd.client.core.procedure import Progress
from vuserd.client.records import Stat
from vuserd.client.sync.driver import Driver

if TYPE_CHECKING:
    from io import BufferedReader

    from vuserd.client.archive.members import Archived, ArchiveOptions
    from vuserd.client.files.destinations import Destination


class WholeFiles(Driver):
    """Reads, opens and downloads files, each in one version."""

    def read_bytes(self, export: str, path: RemotePath, *, timeout: float | None = None) -> bytes:
        """Return a file, whole: one version of it, of whatever size.

        One that changes meanwhile is read again, as :meth:`download` does; one that is only
        appended to is what it was in the beginning.
        """
        return self._run(composite.read_bytes(self._talk, export, path), timeout)

    def read_text(
        self,
        export: str,
        path: RemotePath,
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        timeout: float | None = None,
    ) -> str:
        """Return a file, whole, as text; UnicodeDecodeError where it is none."""
        text = composite.read_text(self._talk, export, path, encoding=encoding, errors=errors)
        return self._run(text, timeout)

    def open(
        self, export: str, path: RemotePath, *, timeout: float | None = None
    ) -> "BufferedReader":
        """Open one version of a file to read and seek in: ``with client.open(...) as file: ...``.

        It is an image that nobody can change or, where the file is too large for that, its parts,
        each of which is checked: RemoteError CHANGED once the file is not what was opened. ``name``
        is ``EXPORT:PATH``. ``timeout`` holds for its reads, too.
        """
        from vuserd.client.files.handles import buffered

        version = self._run(composite.open_version(self._talk, export, path), timeout)
        name = calls.filename_of(export, path)
        return buffered(version, name, lambda procedure: self._run(procedure, timeout))

    def download(
        self,
        export: str,
        path: RemotePath,
        to: "Destination",
        *,
        progress: Progress | None = None,
        grows: bool = False,
        timeout: float | None = None,
    ) -> Stat:
        """Write a file, whole, to a local one; return its attributes.

        ``to`` is a path, whose file is made or replaced once all of it is there; an open descriptor
        of a regular file; or an object that is open for writing bytes. What was there before is
        gone, and holes of the file are holes there. ``size`` of the attributes is the number of
        bytes that there are.

        A file that changes meanwhile is fetched again, ``ATTEMPTS`` times in all; then RemoteError
        CHANGED, and that after the first change where the object cannot be sought in. With
        ``grows`` a file that is only appended to is what it was in the beginning.

        Raises OSError, and writes nothing, where ``to`` is a descriptor that is not open for
        writing, is open for appending, or is of no regular file.
        """
        return self._run(
            composite.download(self._talk, export, path, to, progress=progress, grows=grows),
            timeout,
        )

    def stream(
        self,
        export: str,
        path: RemotePath,
        write: Callable[[memoryview], object],
        *,
        progress: Progress | None = None,
        grows: bool = True,
        timeout: float | None = None,
    ) -> Stat:
        """Hand a file's bytes to ``write``, in their order; return its attributes.

        ``write`` has to take all it is given, and may take as long as it likes (a pager's pipe).
        What was written cannot be taken back: RemoteError CHANGED after the first change. A file
        that is only appended to is what it was in the beginning, unless ``grows`` is False.
        """
        return self._run(
            composite.stream(self._talk, export, path, write, progress=progress, grows=grows),
            timeout,
        )

    def archive(
        self,
        export: str,
        path: RemotePath,
        to: int | Callable[[memoryview], object],
        *,
        timeout: float | None = None,
        **options: "Unpack[ArchiveOptions]",
    ) -> "Archived":
        """Write an archive of a directory, with all below it, to a descriptor; tell what is in it.

        Instead of a descriptor ``to`` may be a function, as that of :meth:`stream`. For the options
        see :class:`vuserd.client.ArchiveOptions`.

        Names are sorted, parents before children, and inode numbers are the archive's own. Hard
        links stay links, holes become zeros, symlinks are never followed. Each file is one version
        of it. After the last byte the whole tree is looked at again: RemoteError CHANGED, with what
        differs as ``fields["paths"]``. A file that does not fit into the format (EFBIG, EOVERFLOW,
        ENAMETOOLONG) is told before the first byte.
        """
        return self._run(composite.archive(self._talk, export, path, to, **options), timeout)
