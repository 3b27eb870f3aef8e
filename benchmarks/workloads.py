"""W1 to W6: which contenders do what, and beside which others."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final, NamedTuple

from benchmarks import corpus
from benchmarks.contender import WrongBytesError
from benchmarks.contenders import diod as ninep
from benchmarks.contenders import host, ring, sftp, vuserd
from benchmarks.contenders.bare_trio import BareTrio, bare_trio
from benchmarks.contenders.diod import Diod, diod
from benchmarks.contenders.host import Host, HostLister, TarCat, TarPipe, ToTmpfs
from benchmarks.contenders.nginx import Nginx, nginx
from benchmarks.contenders.ring import Ring
from benchmarks.contenders.sftp import Sftp, SftpCommand
from benchmarks.contenders.vuserd import GetTree, Vuserd
from benchmarks.corpus import MIB, BigFile
from benchmarks.daemon import Served, served
from benchmarks.measure import Group, run_rounds
from benchmarks.profiles import Profile
from benchmarks.tasks import Calls, Entries, IntoMemory, ManyFiles, NewImage, Task

# The rows that lines speak of, and whoever else has rows in several tables.
LOAD: Final = "vuserd load"
FETCH: Final = "vuserd fetch"
FETCH_MAPPED: Final = "vuserd fetch, until it is mapped"
FETCH_TOUCHED: Final = "vuserd fetch, until it is touched"
READ: Final = "vuserd read"
READDIR: Final = "vuserd readdir"
WALK: Final = "vuserd walk"
RING_ONLY: Final = "ring-only"
RING_4: Final = "ring-4"
NGINX: Final = "nginx over a unix socket"
BARE_TRIO: Final = "bare trio server, only sends"
SENDFILE_MEMFD: Final = "sendfile into a fresh memfd"
COLD_READ: Final = "read() of the file"
TREE: Final = "vuserd tree"
GET_TREE: Final = "vuserctl get -r to tmpfs"
TAR_PIPE: Final = "tar pipe"
TAR_CAT: Final = "tar c, cat"
TAR_TAR: Final = "tar c, tar x to tmpfs"
ARCHIVE: Final = "vuserd archive"
SFTP: Final = "sftp -D (no crypto)"
SFTP_PIPELINED: Final = "sftp-server (no crypto), pipelined"
SSHD: Final = "sshd's sftp, pipelined"
DIOD: Final = "diod (9P over a unix socket)"
_COPIED: Final = "{} to tmpfs, then read"
SFTP_COPIED: Final = _COPIED.format(SFTP)
SCANDIR: Final = "os.scandir"
SCANDIR_STAT: Final = "os.scandir and stat"

#: What W3 reads: 20 kB, three directories down.
DTB_PATH: Final = "boot/dtbs/vendor/board.dtb"
DTB_SIZE: Final = 20_000
_CACHED_FETCHES: Final = 50  #: in each round


class Bench(NamedTuple):
    """What all workloads need to know."""

    profile: Profile
    programs: Sequence[str]  #: the virtiofsd to measure
    place: str  #: a folder on a disk
    tmpfs: str  #: a folder in memory


@contextmanager
def all_served(bench: Bench, directory: str, *, image_cache: bool = True) -> Iterator[list[Served]]:
    """Serve a directory with a daemon for each virtiofsd."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(served(program, directory, image_cache=image_cache))
            for program in bench.programs
        ]


@contextmanager
def folder(bench: Bench, name: str) -> Iterator[str]:
    """Yield an empty folder for the block's time."""
    path = os.path.join(bench.place, name)
    os.mkdir(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_dtb(directory: str) -> bytes:
    """Write the file of W3; return its bytes."""
    content = os.urandom(DTB_SIZE)
    path = os.path.join(directory, DTB_PATH)
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(content)
    return content


def large_files(bench: Bench) -> Iterator[Group]:
    """W1: a large file that is in the page cache, in each of the ways there are to take it."""
    for size in bench.profile.sizes:
        with folder(bench, "large") as directory:
            file = corpus.make_big_file(directory, "image.bin", size)
            for measure in (_attached, _sealed, _streamed, _cached):
                yield measure(bench, file)


def _large(key: str, title: str, file: BigFile) -> Group:
    mib = file.size // MIB
    return Group(f"{key}, {mib} MiB", f"warm, {title}", file.size / 1e6, "MB/s")


def _is_smallest(bench: Bench, file: BigFile) -> bool:
    """Return whether rows belong here whose rate is low and the same at every size."""
    return file.size == min(bench.profile.sizes)


def _attached(bench: Bench, file: BigFile) -> Group:
    """W1: into attached memory."""
    with all_served(bench, file.directory) as daemons, nginx(file.directory) as http:
        ours = map(Vuserd, daemons)
        rings = [Ring(program, file.directory) for program in bench.programs]
        web = Nginx(http)
        rows: list[Task] = [
            *(IntoMemory(LOAD, one, file, one.load, room=one.attach) for one in ours),
            *(IntoMemory(RING_ONLY, one, file, one.load, room=one.attach) for one in rings),
            IntoMemory(NGINX, web, file, web.get_file),
        ]
        group = _large("W1", "into attached client memory", file)
        return run_rounds(group, rows, bench.profile.rounds)


def _sealed(bench: Bench, file: BigFile) -> Group:
    """W1b: as a sealed image that was not requested before."""
    with all_served(bench, file.directory, image_cache=False) as daemons:
        here = Host()
        cp = ToTmpfs(bench.tmpfs, ["cp"], "coreutils")
        rsync = ToTmpfs(bench.tmpfs, ["rsync", "--whole-file", "--inplace"], "rsync")
        command = SftpCommand(bench.tmpfs)
        rows: list[Task] = [
            *(NewImage(FETCH, one, file, one.fetch) for one in map(Vuserd, daemons)),
            NewImage(SENDFILE_MEMFD, here, file, here.sendfile_to_memfd),
            NewImage("cp to tmpfs", cp, file, cp.copy),
            NewImage(f"{SFTP} to tmpfs", command, file, command.copy),
        ]
        if _is_smallest(bench, file):
            rows.append(NewImage("rsync to tmpfs", rsync, file, rsync.copy))
        group = _large("W1b", "as a sealed image, not cached", file)
        return run_rounds(group, rows, bench.profile.rounds)


def _streamed(bench: Bench, file: BigFile) -> Group:
    """W1c: as a stream."""
    with (
        all_served(bench, file.directory) as daemons,
        nginx(file.directory) as http,
        diod(file.directory) as plan9,
        bare_trio(file) as sender,
    ):
        here, bare, web, nine = Host(), BareTrio(sender), Nginx(http), Diod(plan9)
        plain, secure = Sftp(), Sftp(crypto=True)
        rows: list[Task] = [
            *(IntoMemory(READ, one, file, one.stream) for one in map(Vuserd, daemons)),
            IntoMemory(BARE_TRIO, bare, file, bare.receive),
            IntoMemory(NGINX, web, file, web.get_file),
            IntoMemory(COLD_READ, here, file, here.read),
            IntoMemory("sendfile to a unix socket", here, file, here.sendfile_to_socket),
            IntoMemory("cat through a pipe", here, file, here.cat),
            IntoMemory(SFTP_PIPELINED, plain, file, plain.read_file),
            IntoMemory(DIOD, nine, file, nine.read_file),
        ]
        if _is_smallest(bench, file):
            rows.append(IntoMemory(SSHD, secure, file, secure.read_file))
        group = _large("W1c", "as a stream into a warm buffer", file)
        return run_rounds(group, rows, bench.profile.rounds)


def _cached(bench: Bench, file: BigFile) -> Group:
    """W1d: as a sealed image that the daemon has kept."""
    with all_served(bench, file.directory) as daemons:

        def prove(view: memoryview) -> None:
            with view:
                file.prove(file.touch(view), view)

        rows: list[Task] = [
            *(
                Calls(FETCH_MAPPED, one, _CACHED_FETCHES, partial(one.fetch, file), prove)
                for one in map(Vuserd, daemons)
            ),
            *(NewImage(FETCH_TOUCHED, one, file, one.fetch) for one in map(Vuserd, daemons)),
        ]
        group = _large("W1d", "as a sealed image, cached", file)
        group.size = 0  # what is handed over by reference has no rate
        return run_rounds(group, rows, bench.profile.rounds)


def cold_file(bench: Bench) -> Iterator[Group]:
    """W2: the file's pages are dropped before each turn; that they are gone is checked."""
    with folder(bench, "cold") as directory:
        file = corpus.make_big_file(directory, "image.bin", bench.profile.cold)
        title = f"{file.size // MIB} MiB, dropped from the page cache before each turn"
        group = Group("W2", title, file.size / 1e6, "MB/s")
        with all_served(bench, directory) as daemons:
            here = Host()
            rows: list[Task] = [
                *(
                    IntoMemory(LOAD, one, file, one.load, room=one.attach, cold=True)
                    for one in map(Vuserd, daemons)
                ),
                *(
                    IntoMemory(READ, one, file, one.stream, cold=True)
                    for one in map(Vuserd, daemons)
                ),
                IntoMemory(COLD_READ, here, file, here.read, cold=True),
            ]
            yield run_rounds(group, rows, bench.profile.rounds)


def path_to_bytes(bench: Bench) -> Iterator[Group]:
    """W3: one small file, by its path, again and again."""
    with folder(bench, "boot") as directory:
        content = make_dtb(directory)
        local = os.path.join(directory, DTB_PATH)

        def prove(got: bytes | memoryview) -> None:
            if got != content:
                raise WrongBytesError("not the file's bytes")

        with (
            all_served(bench, directory) as daemons,
            nginx(directory) as http,
            diod(directory) as nine,
        ):
            rings = [Ring(program, directory) for program in bench.programs]
            chained = [Ring(program, directory, laid_once=False) for program in bench.programs]
            count = bench.profile.latencies
            here, web, plan9 = Host(), Nginx(http), Diod(nine)
            plain, secure = Sftp(), Sftp(crypto=True)
            rows: list[Task] = [
                *(
                    Calls(READ, one, count, _alone(one.read_path), prove)
                    for one in map(Vuserd, daemons)
                ),
                *(Calls(RING_ONLY, one, count, _alone(one.read_path), prove) for one in rings),
                *(Calls(RING_4, one, count, _alone(one.read_path), prove) for one in chained),
                Calls(NGINX, web, count, _alone(web.get_path), prove),
                Calls("open, read, close", here, count, lambda _: here.read_path(local), prove),
                Calls(SFTP_PIPELINED, plain, count, partial(plain.read_path, local), prove),
                Calls(SSHD, secure, count, partial(secure.read_path, local), prove),
                Calls(DIOD, plan9, count, partial(plan9.read_path, DTB_PATH), prove),
            ]
            group = Group("W3", "a 20 kB DTB, three directories down: path to bytes")
            yield run_rounds(group, rows, bench.profile.rounds)


def _alone(
    read: Callable[[str], bytes | memoryview],
) -> Callable[[ExitStack], bytes | memoryview]:
    """Make a call of W3 that leaves nothing to be done after it."""
    return lambda _: read(DTB_PATH)


def small_files(bench: Bench) -> Iterator[Group]:
    """W4: many small files whose names are known, their bytes wanted in memory."""
    with folder(bench, "small") as directory:
        files = corpus.make_small_files(directory, bench.profile.small_files)
        count = len(files.files)
        with (
            all_served(bench, directory) as daemons,
            nginx(directory) as http,
            diod(directory) as nine,
        ):
            rings = [Ring(program, directory) for program in bench.programs]
            web, plan9, plain, pipe = Nginx(http), Diod(nine), Sftp(), TarPipe(files)
            tmpfs = bench.tmpfs
            cat, tars = TarCat(), ToTmpfs(tmpfs, host.TAR_TO_TAR, "tar")
            copies = {
                "tar c, tar x": ToTmpfs(tmpfs, host.TAR_TO_TAR, "tar"),
                "cp -r": ToTmpfs(tmpfs, ["cp", "-r"], "coreutils", inside="/."),
                "rsync -r": ToTmpfs(tmpfs, ["rsync", "-r", "-W"], "rsync", inside="/"),
                SFTP: SftpCommand(tmpfs),
            }
            rows: list[Task] = [
                *(ManyFiles(READ, one, files, one.read_many) for one in map(Vuserd, daemons)),
                *(ManyFiles(ARCHIVE, one, files, one.archive_many) for one in map(Vuserd, daemons)),
                *(ManyFiles(RING_ONLY, one, files, one.read_many) for one in rings),
                *(ManyFiles(TREE, one, files, one.tree_many) for one in map(Vuserd, daemons)),
                ManyFiles(TAR_CAT, cat, files, cat.read_many),
                ManyFiles(TAR_PIPE, pipe, files, pipe.read_many),
                *(
                    ManyFiles(GET_TREE, copy, files, copy.copy_tree, clear=copy.clear)
                    for copy in (GetTree(one, bench.tmpfs) for one in daemons)
                ),
                ManyFiles(TAR_TAR, tars, files, tars.copy_tree, clear=tars.clear),
                *(
                    ManyFiles(_COPIED.format(name), copy, files, copy.copy_many, clear=copy.clear)
                    for name, copy in copies.items()
                ),
                ManyFiles(NGINX, web, files, web.get_many),
                ManyFiles(SFTP_PIPELINED, plain, files, plain.read_many),
                ManyFiles(DIOD, plan9, files, plan9.read_many),
            ]
            group = Group("W4", f"{count:,} files of 4 to 16 kB", count, "files/s")
            yield run_rounds(group, rows, bench.profile.rounds)


def wide_directory(bench: Bench) -> Iterator[Group]:
    """W5: one directory of very many entries: names, then names with attributes."""
    with folder(bench, "wide") as place:
        listing = corpus.make_wide_directory(os.path.join(place, "dir"), bench.profile.wide)
        count, directory = listing.entries, listing.directory
        with all_served(bench, directory) as daemons, diod(directory) as nine:
            rings = [Ring(program, directory) for program in bench.programs]
            here, plan9, plain = HostLister(listing), Diod(nine), Sftp()
            command = SftpCommand(bench.tmpfs)
            over_sftp = Entries(
                SFTP_PIPELINED,
                plain,
                listing,
                partial(plain.list, directory, recursive=False),
                sftp.tally,
            )
            names: list[Task] = [
                *(
                    Entries(READDIR, one, listing, one.names, vuserd.tally_entries)
                    for one in map(Vuserd, daemons)
                ),
                *(Entries(RING_ONLY, one, listing, one.names, ring.tally_names) for one in rings),
                Entries(SCANDIR, here, listing, here.scandir, host.tally_names),
                Entries("ls", here, listing, here.ls, host.tally_lines),
                Entries(
                    SFTP, command, listing, partial(command.names, directory), sftp.tally_names
                ),
                over_sftp,
                Entries(DIOD, plan9, listing, plan9.names, ninep.tally),
            ]
            group = Group("W5, names", f"{count:,} entries, names", count, "entries/s")
            yield run_rounds(group, names, bench.profile.rounds)
            long_by_sftp = partial(command.attributes, directory)
            attributes: list[Task] = [
                *(
                    Entries(READDIR, one, listing, one.attributes, vuserd.tally_entries)
                    for one in map(Vuserd, daemons)
                ),
                *(Entries(RING_ONLY, one, listing, one.attributes, ring.tally) for one in rings),
                Entries(SCANDIR_STAT, here, listing, here.scandir_and_stat, host.tally_stats),
                Entries("ls -l", here, listing, here.ls_long, host.tally_ls_long),
                Entries(SFTP, command, listing, long_by_sftp, sftp.tally_attributes),
                over_sftp,
            ]
            title = f"{count:,} entries with attributes"
            group = Group("W5, attributes", title, count, "entries/s")
            yield run_rounds(group, attributes, bench.profile.rounds)


def whole_tree(bench: Bench) -> Iterator[Group]:
    """W6: every entry of a tree, with its attributes."""
    profile = bench.profile
    with folder(bench, "tree") as place:
        directory = os.path.join(place, "dir")
        listing = corpus.make_tree(directory, profile.tree_directories, profile.tree_files)
        files = profile.tree_directories * profile.tree_files
        with all_served(bench, directory) as daemons:
            rings = [Ring(program, directory) for program in bench.programs]
            here, plain = HostLister(listing), Sftp()
            listed = partial(plain.list, directory, recursive=True)
            rows: list[Task] = [
                *(
                    Entries(WALK, one, listing, one.walk, vuserd.tally_walk)
                    for one in map(Vuserd, daemons)
                ),
                *(Entries(RING_ONLY, one, listing, one.walk, ring.tally) for one in rings),
                Entries(SCANDIR_STAT, here, listing, here.scandir_and_stat, host.tally_stats),
                Entries("rsync --list-only", here, listing, here.rsync_list, host.tally_rsync),
                Entries(SFTP_PIPELINED, plain, listing, listed, sftp.tally),
            ]
            title = f"walk of {files:,} files in {profile.tree_directories:,} directories"
            group = Group("W6", title, listing.entries, "entries/s")
            yield run_rounds(group, rows, profile.rounds)
