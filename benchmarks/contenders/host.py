"""The host's own means: reads, ``cat``, ``cp``, ``sendfile``, tar, rsync, scandir, ``ls``."""

import mmap
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from benchmarks.contender import Contender, Unavailable
from benchmarks.contenders.sockets import receive
from benchmarks.corpus import MIB, SLOT, SMALL_READ, BigFile, Listing, SmallFiles, warm_buffer

_PIPE_SIZE: Final = MIB
_TAR_BLOCK: Final = 512


def require(program: str, package: str) -> str:
    """Return where a program is.

    Raises:
        Unavailable: it is not on this machine.

    """
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Unavailable(f"{program} is not installed (Debian package {package})")
    return path


class Host(Contender):
    """A process of the host's: it has the files themselves."""

    def read(self, file: BigFile, view: memoryview) -> None:
        """``read(2)`` in pieces of a MiB."""
        with open(file.path, "rb", buffering=0) as source:
            for offset in range(0, file.size, MIB):
                source.readinto(view[offset : offset + MIB])

    def cat(self, file: BigFile, view: memoryview) -> None:
        """``cat FILE`` through a pipe of a MiB."""
        with subprocess.Popen(
            ["cat", file.path], stdout=subprocess.PIPE, pipesize=_PIPE_SIZE, bufsize=0
        ) as process:
            assert process.stdout is not None
            _read_to_end(process.stdout.fileno(), view)

    def sendfile_to_socket(self, file: BigFile, view: memoryview) -> None:
        """``sendfile`` to a unix socket by a thread of the same process."""
        ours, theirs = socket.socketpair()

        def send() -> None:
            with open(file.path, "rb") as source:
                theirs.sendfile(source)

        with ours, theirs:
            sender = threading.Thread(target=send)
            sender.start()
            receive(ours, view)
            sender.join()

    def sendfile_to_memfd(self, file: BigFile, undo: ExitStack) -> memoryview:
        """``sendfile`` into a new memfd."""
        memfd = os.memfd_create("benchmark")
        undo.callback(os.close, memfd)
        with open(file.path, "rb") as source:
            offset = 0
            while offset < file.size:
                offset += os.sendfile(memfd, source.fileno(), offset, file.size - offset)
        return _mapped(memfd, file.size, undo)

    def read_path(self, path: str) -> bytes:
        """Open, read, close one small file."""
        file = os.open(path, os.O_RDONLY)
        try:
            return os.read(file, SMALL_READ)
        finally:
            os.close(file)


def _read_to_end(pipe: int, view: memoryview) -> int:
    """Read a pipe to its end, or until the view is full."""
    got = 0
    while got < len(view) and (count := os.readv(pipe, [view[got:]])):
        got += count
    return got


def _mapped(descriptor: int, size: int, undo: ExitStack) -> memoryview:
    mapping = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
    undo.callback(mapping.close)
    return memoryview(mapping)


class ToTmpfs(Contender):
    """A command that copies a file, or a tree, to tmpfs, where it then is read.

    Args:
        tmpfs: a folder there.
        command: all but the source and the target.
        package: has the command's program.
        inside: the source is what is in a directory, for which the command wants this suffix.

    """

    def __init__(
        self, tmpfs: str, command: Sequence[str], package: str, *, inside: str = ""
    ) -> None:
        super().__init__()
        self._tmpfs, self._command, self._package = tmpfs, command, package
        self._inside = inside

    def open(self) -> None:
        """Make a folder on tmpfs."""
        require(self._command[0], self._package)
        folder = tempfile.TemporaryDirectory(prefix="copy-", dir=self._tmpfs)
        self._target = os.path.join(self.undo.enter_context(folder), "copy")

    def copy(self, file: BigFile, undo: ExitStack) -> memoryview:
        """Copy a large file and map the copy."""
        undo.callback(os.unlink, self._target)
        self._run(file.path, self._target)
        with open(self._target, "rb") as copy:
            return _mapped(copy.fileno(), file.size, undo)

    def copy_many(self, files: SmallFiles, slots: memoryview) -> Sequence[memoryview]:
        """Copy a tree and read the copies."""
        self._run(files.directory + self._inside, self._target)
        return list(read_small(self._target, files, slots))

    def copy_tree(self, files: SmallFiles, slots: memoryview) -> Iterator[memoryview]:
        """Copy a tree; the copies are read when they are asked for."""
        self._run(files.directory + self._inside, self._target)
        return read_small(self._target, files, slots)

    def clear(self) -> None:
        """Make an empty target for a tree, outside the clock."""
        shutil.rmtree(self._target, ignore_errors=True)
        os.mkdir(self._target)

    def _run(self, source: str, target: str) -> None:
        subprocess.run([*self._command, source, target], check=True)


#: ``tar c | tar x``, as a command that takes a source and a target.
TAR_TO_TAR: Final = ("sh", "-c", 'tar -C "$0" -cf - . | tar -C "$1" -xf -')


def read_small(directory: str, files: SmallFiles, slots: memoryview) -> Iterator[memoryview]:
    """Read each file into its slot, as it is asked for."""
    for index, file in enumerate(files.files):
        with open(os.path.join(directory, file.path), "rb", buffering=0) as copy:
            slot = slots[index * SLOT : (index + 1) * SLOT]
            yield slot[: copy.readinto(slot)]


class TarCat(Contender):
    """``tar c | cat`` to where nothing is kept: what is proved are the files that tar has read."""

    def read_many(self, files: SmallFiles, slots: memoryview) -> Iterator[memoryview]:
        """Run it; the files are read when they are asked for."""
        command = ["sh", "-c", 'tar -C "$0" -cf - . | cat >/dev/null', files.directory]
        subprocess.run(command, check=True)
        return read_small(files.directory, files, slots)


class TarPipe(Contender):
    """``tar c`` of a list of files into a buffer of the client's."""

    def __init__(self, files: SmallFiles) -> None:
        super().__init__()
        self._files = files

    def open(self) -> None:
        """Make room for the archive."""
        self._list = "\n".join(file.path for file in self._files.files).encode()
        room = self._files.total + (len(self._files.files) + 64) * 2 * _TAR_BLOCK
        self._view = warm_buffer(room)

    def read_many(self, files: SmallFiles, _: memoryview) -> Iterator[memoryview]:
        """Receive the archive; its files are separated when they are asked for."""
        # A list that is not longer than the pipe can be written before anything is read.
        with subprocess.Popen(
            ["tar", "-C", files.directory, "-cf", "-", "--no-recursion", "-T", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE_SIZE,
            bufsize=0,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(self._list)
            process.stdin.close()
            length = _read_to_end(process.stdout.fileno(), self._view)
        return _files_of_tar(self._view[:length])


def _files_of_tar(archive: memoryview) -> Iterator[memoryview]:
    position = 0
    while position < len(archive) and archive[position]:
        size = int(bytes(archive[position + 124 : position + 135]), 8)
        position += _TAR_BLOCK
        yield archive[position : position + size]
        position += size + -size % _TAR_BLOCK


class HostLister(Contender):
    """What lists a directory of the host."""

    def __init__(self, listing: Listing) -> None:
        super().__init__()
        self._directory = listing.directory

    def scandir(self) -> list[str]:
        """``os.scandir``."""
        with os.scandir(self._directory) as entries:
            return [entry.name for entry in entries]

    def scandir_and_stat(self) -> list[os.stat_result]:
        """``os.scandir``, and ``stat`` of every entry, of the whole tree."""
        found: list[os.stat_result] = []
        waiting = [self._directory]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    found.append(entry.stat(follow_symlinks=False))
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        return found

    def ls(self) -> bytes:
        """``ls``, its output read."""
        return self._output("ls", self._directory)

    def ls_long(self) -> bytes:
        """``ls -l``, its output read."""
        return self._output("ls", "-l", self._directory)

    def rsync_list(self) -> bytes:
        """``rsync --list-only -r``: names and attributes of a tree."""
        rsync = require("rsync", "rsync")
        return self._output(rsync, "-r", "--list-only", f"{self._directory}/")

    def _output(self, *command: str) -> bytes:
        return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def tally_names(names: list[str]) -> tuple[int, None]:
    """Count names."""
    return len(set(names)), None


def tally_stats(found: list[os.stat_result]) -> tuple[int, int]:
    """Count entries and add up the sizes of files."""
    return len(found), sum(one.st_size for one in found if one.st_mode & 0o100000)


def tally_lines(output: bytes) -> tuple[int, None]:
    """Count lines."""
    return len(output.splitlines()), None


def tally_rsync(output: bytes) -> tuple[int, None]:
    """Count lines but the root's."""
    return len(output.splitlines()) - 1, None


def tally_ls_long(output: bytes) -> tuple[int, int]:
    """Count lines but the first, and add up the sizes in them."""
    lines = output.splitlines()[1:]
    return len(lines), sum(int(line.split()[4]) for line in lines)
