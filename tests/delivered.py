"""What the daemon does for ``read``: a procedure first, and what is more than that in a task."""

from vuserd.delivery.inline import FileContent, read_inline, read_small
from vuserd.device.procedure import NeedsTask, carry_out
from vuserd.fs.filesystem import FileSystem


async def read_delivered(files: FileSystem, path: bytes, offset: int, length: int) -> FileContent:
    """Read as the daemon does; the caller gives the buffers back."""
    if length:
        try:
            return await carry_out(files.session.lane, read_small(path, offset, length, files))
        except NeedsTask:
            pass
    return await read_inline(files, path, offset, length)
