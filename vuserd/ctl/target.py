"""A file as vuserctl's command line names it: EXPORT:PATH, as scp does."""

import posixpath
from typing import NamedTuple


class Target(NamedTuple):
    """A path inside an export; ``str()`` returns what the user wrote."""

    export: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Split EXPORT:PATH at the first colon; raise ValueError if there is none."""
        export, colon, path = text.partition(":")
        if not export or not colon:
            is_name = bool(text) and not text.startswith(("/", ":"))
            hint = f'; an export of that name has its root at "{text}:"' if is_name else ""
            raise ValueError(f"{text!r} is not EXPORT:PATH{hint}")
        return cls(export, path)

    def child(self, name: str) -> "Target":
        """Return the target that a name in this directory is."""
        return Target(self.export, posixpath.join(self.path, name))

    @property
    def name(self) -> str:
        """The last component of the path; empty where that names no file (``kernels:``, ``..``)."""
        name = posixpath.basename(self.path.rstrip("/"))
        return "" if name in (".", "..") else name

    def __str__(self) -> str:
        return f"{self.export}:{self.path}"
