"""Where ``vuserctl get`` puts a file: it delivers whatever cp can, or says what is wrong.

Each ground is made twice, and cp shows on the one what is right on the other.
"""

import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

import pytest

from tests.fake.rpc_server import FakeDaemon, Node, directory
from tests.running import REPOSITORY, RunningDaemon, find_backend
from vuserd.wire.codec import Request

_NOBODY: Final = 65534
_CONTENT: Final = b"what is to be fetched\n" * 10_000
#: The length of a file without a byte of its own.
_LARGE: Final = 1 << 37

#: Access control entries of linux/posix_acl_xattr.h: the owner, user 77, the group, mask, others.
_ACL: Final = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, rights, number)
    for tag, rights, number in (
        (0x01, 7, 0xFFFF_FFFF),
        (0x02, 6, 77),
        (0x04, 4, 0xFFFF_FFFF),
        (0x10, 6, 0xFFFF_FFFF),
        (0x20, 0, 0xFFFF_FFFF),
    )
)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, other users")

# Python may be installed where only root can read: what is needed is loaded before.
_START: Final = """
import locale, os, sys
from vuserd.ctl import main
from vuserd.client.files import wholefile
from vuserd.ctl.copying import get, get_tree
main.parser().format_help()
if {user}:
    os.setgroups([]); os.setgid({user}); os.setuid({user})
sys.exit(main.main())
"""


@contextmanager
def serve(folder: Path, base: Path, program: str) -> Iterator[RunningDaemon]:
    """Serve a folder to all users, as the export ``e``."""
    config = base / "vuserd.toml"
    config.write_text(
        f'backend = "{program}"\n[[export]]\nname = "e"\npath = "{folder}"\nusers = ["*"]\n'
    )
    arguments = ("--config", str(config))
    with RunningDaemon({}, base / "s", None, *arguments) as running:
        os.chmod(running.socket, 0o666)
        yield running


@pytest.fixture(scope="module")
def program() -> str:
    found = find_backend("c") or find_backend("rust")
    if found is None:
        pytest.skip("no virtiofsd on this machine: make backends")
    return found


@pytest.fixture(scope="module")
def serving(program: str) -> Iterator[RunningDaemon]:
    """Serve a file and a large one; other users may get there."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o755)
        files = base / "files"
        (files / "sub").mkdir(parents=True)
        (files / "tree" / "d").mkdir(parents=True)
        (files / "tree" / "d" / "f").touch()
        (files / "file").write_bytes(_CONTENT)
        os.utime(files / "file", ns=(10**18, 10**18 + 1))
        with (files / "large").open("wb") as large:
            large.truncate(_LARGE)
        with serve(files, base, program) as running:
            yield running


@pytest.fixture
def ground() -> Iterator[Path]:
    """Yield a folder that all users may reach, and undo what was mounted below."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        base.chmod(0o755)
        umask = os.umask(0o022)
        yield base
        os.umask(umask)
        mounted = [
            line.split()[4]
            for line in Path("/proc/self/mountinfo")
            .read_text(errors="surrogateescape")
            .splitlines()
        ]
        for each in reversed([path for path in mounted if path.startswith(folder)]):
            subprocess.run(["umount", each], check=True)
        subprocess.run(["chattr", "-R", "-ai", folder], check=False, capture_output=True)


def command(socket: str, user: int = 0) -> list[str]:
    code = _START.format(user=user)
    return [sys.executable, "-c", code, "--socket", socket]


def vuserctl(
    running: RunningDaemon,
    *arguments: str,
    user: int = 0,
    cwd: Path | None = None,
    umask: int = -1,
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command(running.socket, user), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        umask=umask,
        timeout=60,
    )


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def bind(source: Path, place: Path) -> Path:
    mount("--bind", source, place)
    return place


def old(path: Path, mode: int = 0o640, owner: int = 0) -> Path:
    path.write_bytes(b"older, and longer\n" * 50_000)
    path.chmod(mode)
    os.chown(path, owner, owner)
    return path


# -- grounds: each makes a place in a folder, and gives DEST ---------------------------------------


def nothing(here: Path) -> str:
    return str(here / "new")


def a_file(here: Path) -> str:
    return str(old(here / "f", 0o604, 1234))


def an_executable(here: Path) -> str:
    return str(old(here / "f", 0o751, 1234))


def longest_name(here: Path) -> str:
    return str(old(here / ("n" * 255)))


def too_long_a_name(here: Path) -> str:
    return str(here / ("n" * 256))


def a_mounted_file(here: Path) -> str:
    (here / "f").touch()
    bind(old(here / "real", 0o604), here / "f")
    return str(here / "f")


def a_file_that_is_mounted_read_only(here: Path) -> str:
    (here / "f").touch()
    bind(old(here / "real"), here / "f")
    mount("-o", "remount,bind,ro", here / "f")
    return str(here / "f")


def a_mounted_file_in_a_read_only_mount(here: Path) -> str:
    (here / "ro").mkdir()
    (here / "ro" / "f").touch()
    bind(here / "ro", here / "ro")
    bind(old(here / "real"), here / "ro" / "f")
    mount("-o", "remount,bind,ro", here / "ro")
    return str(here / "ro" / "f")


def in_a_read_only_mount(here: Path) -> str:
    (here / "ro").mkdir()
    old(here / "ro" / "f")
    bind(here / "ro", here / "ro")
    mount("-o", "remount,bind,ro", here / "ro")
    return str(here / "ro" / "f")


def full(here: Path, *, there: bool) -> str:
    (here / "full").mkdir()
    mount("-t", "tmpfs", "-o", "size=128k", "tmpfs", here / "full")
    if there:
        (here / "full" / "f").write_bytes(b"old")
    return str(here / "full" / "f")


def on_a_full_disk(here: Path) -> str:
    return full(here, there=False)


def a_file_on_a_full_disk(here: Path) -> str:
    return full(here, there=True)


def a_file_on_a_disk_without_inodes(here: Path) -> str:
    (here / "full").mkdir()
    mount("-t", "tmpfs", "-o", "size=10m,nr_inodes=2", "tmpfs", here / "full")
    (here / "full" / "f").write_bytes(b"old")
    return str(here / "full" / "f")


def an_immutable_file(here: Path) -> str:
    path = old(here / "f")
    subprocess.run(["chattr", "+i", str(path)], check=True)
    return str(path)


def a_file_to_append_to(here: Path) -> str:
    path = old(here / "f")
    subprocess.run(["chattr", "+a", str(path)], check=True)
    return str(path)


def in_an_immutable_directory(here: Path) -> str:
    (here / "d").mkdir()
    path = old(here / "d" / "f")
    subprocess.run(["chattr", "+i", str(here / "d")], check=True)
    return str(path)


def a_directory_with_a_directory_of_that_name(here: Path) -> str:
    (here / "d" / "file").mkdir(parents=True)
    return str(here / "d")


def a_loop_of_links(here: Path) -> str:
    (here / "a").symlink_to("b")
    (here / "b").symlink_to("a")
    return str(here / "a")


def a_link_to_nowhere(here: Path) -> str:
    (here / "link").symlink_to("no/such/folder")
    return str(here / "link")


def below_a_file(here: Path) -> str:
    old(here / "f")
    return str(here / "f" / "g")


def in_no_directory(here: Path) -> str:
    return str(here / "none" / "f")


def a_socket(here: Path) -> str:
    os.mknod(here / "s", stat.S_IFSOCK | 0o666)
    return str(here / "s")


def null(_here: Path) -> str:
    return "/dev/null"


def no_space(_here: Path) -> str:
    return "/dev/full"


def in_proc(_here: Path) -> str:
    return "/proc/no-such-file"


# As another user, to whom `here` does not belong:


def writable_in_a_closed_directory(here: Path) -> str:
    return str(old(here / "f", 0o666))


def own_in_a_closed_directory(here: Path) -> str:
    return str(old(here / "f", 0o600, _NOBODY))


def read_only_in_a_closed_directory(here: Path) -> str:
    return str(old(here / "f", 0o644))


def new_in_a_closed_directory(here: Path) -> str:
    return str(here / "f")


def sticky(here: Path, mode: int) -> str:
    (here / "tmp").mkdir()
    (here / "tmp").chmod(0o1777)
    return str(old(here / "tmp" / "f", mode, 1234))


def writable_in_a_sticky_directory(here: Path) -> str:
    return sticky(here, 0o666)


def read_only_in_a_sticky_directory(here: Path) -> str:
    return sticky(here, 0o644)


def anothers_in_an_open_directory(here: Path) -> str:
    (here / "open").mkdir()
    (here / "open").chmod(0o777)
    return str(old(here / "open" / "f", 0o666, 1234))


def another_group_in_an_own_directory(here: Path) -> str:
    (here / "own").mkdir()
    path = old(here / "own" / "f", 0o664)
    os.chown(path, _NOBODY, 1234)
    os.chown(here / "own", _NOBODY, _NOBODY)
    return str(path)


def in_a_directory_that_cannot_be_entered(here: Path) -> str:
    (here / "closed").mkdir(mode=0o700)
    return str(old(here / "closed" / "f", 0o666))


GROUNDS: Final[list[tuple[Callable[[Path], str], int]]] = [
    *(
        (make, 0)
        for make in (
            nothing,
            a_file,
            an_executable,
            longest_name,
            too_long_a_name,
            a_mounted_file,
            a_file_that_is_mounted_read_only,
            a_mounted_file_in_a_read_only_mount,
            in_a_read_only_mount,
            on_a_full_disk,
            a_file_on_a_full_disk,
            a_file_on_a_disk_without_inodes,
            an_immutable_file,
            a_file_to_append_to,
            in_an_immutable_directory,
            a_directory_with_a_directory_of_that_name,
            a_loop_of_links,
            a_link_to_nowhere,
            below_a_file,
            in_no_directory,
            a_socket,
            null,
            no_space,
            in_proc,
        )
    ),
    *(
        (make, _NOBODY)
        for make in (
            writable_in_a_closed_directory,
            own_in_a_closed_directory,
            read_only_in_a_closed_directory,
            new_in_a_closed_directory,
            writable_in_a_sticky_directory,
            read_only_in_a_sticky_directory,
            anothers_in_an_open_directory,
            another_group_in_an_own_directory,
            in_a_directory_that_cannot_be_entered,
        )
    ),
]


def look(path: str) -> tuple[object, ...]:
    found = os.stat(path)
    content = Path(path).read_bytes() if stat.S_ISREG(found.st_mode) else b""
    return (stat.S_IFMT(found.st_mode), oct(found.st_mode), found.st_uid, found.st_gid, content)


def parts(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".vuserctl-*")]


@root_only
@pytest.mark.parametrize(("make", "user"), GROUNDS, ids=[make.__name__ for make, _ in GROUNDS])
def test_what_cp_delivers_is_delivered_and_else_dest_is_named(
    serving: RunningDaemon, ground: Path, make: Callable[[Path], str], user: int
) -> None:
    for name in ("cp", "get"):
        (ground / name).mkdir()
    source = ground / "file"
    source.write_bytes(_CONTENT)
    by_cp, by_get = make(ground / "cp"), make(ground / "get")
    copied = subprocess.run(["cp", str(source), by_cp], capture_output=True, user=user, check=False)
    got = vuserctl(serving, "get", "e:/file", by_get, user=user)
    assert got.stdout == ""
    assert parts(ground) == []
    if copied.returncode == 0:
        assert (got.returncode, got.stderr) == (0, "")
        assert look(by_get) == look(by_cp)
    else:
        inside = os.path.join(by_get, "file") if os.path.isdir(by_get) else by_get
        assert got.returncode == 1
        assert got.stderr.startswith(f"vuserctl: {inside}: ")
        assert got.stderr.count("\n") == 1


@root_only
@pytest.mark.parametrize(("make", "user"), GROUNDS, ids=[make.__name__ for make, _ in GROUNDS])
def test_the_same_in_a_tree(
    program: str, ground: Path, make: Callable[[Path], str], user: int
) -> None:
    """A file of the tree is where DEST was; what is in its way is told, the rest comes."""
    place = Path(make(ground))
    if place.name != "f" or not place.parent.is_dir() or not os.access(place, os.F_OK):
        return
    before = look(str(place))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        (tree / "f").write_bytes(_CONTENT)
        os.chmod(folder, 0o755)
        with serve(tree, Path(folder), program) as running:
            got = vuserctl(running, "get", "-r", "e:", str(place.parent), user=user)
    assert parts(ground) == []
    if got.returncode == 0:
        assert look(str(place)) == (*before[:4], _CONTENT)
    else:
        assert got.returncode == 1
        assert got.stderr.startswith(f"vuserctl: {place}: ")


@root_only
@pytest.mark.parametrize("options", ["-r", "-ru", "-rp"])
@pytest.mark.parametrize("umask", [0o777, 0o227, 0o077])
def test_what_a_umask_takes_from_the_owner_is_taken_at_the_end(
    serving: RunningDaemon, ground: Path, umask: int, options: str
) -> None:
    os.chown(ground, _NOBODY, _NOBODY)
    source = Path(serving.socket).parent / "files" / "tree"
    by_cp, by_get = ground / "cp", ground / "get"
    command = ["cp", "-r", *(["--preserve=mode"] if options == "-rp" else [])]
    subprocess.run([*command, str(source), str(by_cp)], user=_NOBODY, umask=umask, check=True)
    got = vuserctl(serving, "get", options, "e:tree", str(by_get), user=_NOBODY, umask=umask)
    assert (got.returncode, got.stdout, got.stderr) == (0, "", "")
    for name in ("", "d", "d/f"):
        assert (by_get / name).stat().st_mode == (by_cp / name).stat().st_mode


@root_only
def test_owner_mode_and_attributes_stay(serving: RunningDaemon, ground: Path) -> None:
    path = old(ground / "f", 0o6754, 1234)
    os.setxattr(path, "system.posix_acl_access", _ACL)
    os.setxattr(path, "user.note", b"kept")
    got = vuserctl(serving, "get", "e:/file", str(path))
    assert (got.returncode, got.stderr) == (0, "")
    found = path.stat()
    assert (found.st_uid, found.st_gid, path.read_bytes()) == (1234, 1234, _CONTENT)
    # New content gets no set-user-ID bits.
    assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID)
    assert os.getxattr(path, "user.note") == b"kept"
    assert os.getxattr(path, "system.posix_acl_access") == _ACL
    assert found.st_mtime_ns == 10**18 + 1


@root_only
@pytest.mark.parametrize("options", [(), ("-r",)])
def test_a_file_stays_where_neither_another_one_nor_the_content_has_room(
    program: str, ground: Path, options: tuple[str, ...]
) -> None:
    """There is no inode for a new file, and the old one, emptied, could not take the content."""
    (ground / "full").mkdir()
    mount("-t", "tmpfs", "-o", "size=128k,nr_inodes=2", "tmpfs", ground / "full")
    place = ground / "full" / "f"
    place.write_bytes(b"precious")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        (tree / "f").write_bytes(_CONTENT)
        with serve(tree, Path(folder), program) as running:
            source, to = ("e:", place.parent) if options else ("e:f", place)
            got = vuserctl(running, "get", *options, source, str(to))
    assert (got.returncode, place.read_bytes()) == (1, b"precious")
    assert got.stderr == f"vuserctl: {place}: no space left on device (ENOSPC)\n"


@root_only
@pytest.mark.parametrize("options", [("-t", "tmpfs", "-o", "size=128k"), ("-t", "ramfs")])
def test_a_mounted_file_stays_where_the_content_has_no_room(
    serving: RunningDaemon, ground: Path, options: tuple[str, ...]
) -> None:
    """It is told by the file's own file system; where that does not tell, the content is tried."""
    (ground / "small").mkdir()
    mount(*options, "none", ground / "small")
    place = ground / "f"
    place.touch()
    (ground / "small" / "f").write_bytes(b"precious")
    bind(ground / "small" / "f", place)
    got = vuserctl(serving, "get", "e:/file", str(place))
    if "ramfs" in options:
        assert (got.returncode, got.stderr, place.read_bytes()) == (0, "", _CONTENT)
    else:
        assert (got.returncode, place.read_bytes()) == (1, b"precious")
        assert got.stderr == f"vuserctl: {place}: no space left on device (ENOSPC)\n"


def test_an_empty_string_is_wrong_usage(serving: RunningDaemon, ground: Path) -> None:
    for options in ((), ("-r",)):
        got = vuserctl(serving, "get", *options, "e:/file", "", cwd=ground)
        assert got.returncode == 2
        assert "DEST is an empty string" in got.stderr
        assert "standard output" not in got.stderr
    assert list(ground.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--write", "", "e"], ["--read", ""]])
def test_other_files_that_are_named_by_an_empty_string(
    serving: RunningDaemon, arguments: list[str]
) -> None:
    got = vuserctl(serving, "trace", *arguments)
    assert (got.returncode, got.stderr) == (1, "vuserctl: '': no such file or directory (ENOENT)\n")


def test_a_descriptor_is_written_into(serving: RunningDaemon, ground: Path) -> None:
    """A process that has opened it sees the content, and not a file that has lost its name."""
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1"):
        path = ground / "out"
        path.write_bytes(b"old" * 100_000)
        with path.open("r+b") as out:
            done = subprocess.run(
                [*command(serving.socket), "get", "e:/file", name],
                stdout=out,
                stderr=subprocess.PIPE,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, b"")
            assert os.path.samestat(os.fstat(out.fileno()), path.stat())
        assert path.read_bytes() == _CONTENT
    assert os.listdir(ground) == ["out"]


@root_only
def test_the_file_itself_is_not_emptied(serving: RunningDaemon, ground: Path) -> None:
    """DEST is the exported file: replaced by a copy it is the same, written into it was lost."""
    exported = Path(serving.socket).parent / "files" / "file"
    (ground / "f").touch()
    bind(exported, ground / "f")
    with exported.open("rb") as file:
        for destination in (
            str(exported),
            str(ground / "f"),
            f"/proc/{os.getpid()}/fd/{file.fileno()}",
        ):
            got = vuserctl(serving, "get", "e:/file", destination)
            assert exported.read_bytes() == _CONTENT
            if got.returncode:
                assert got.stderr == (
                    f"vuserctl: {destination}: it is the file that is to be fetched (EINVAL)\n"
                )


def test_a_destination_stays_as_it_is_when_there_is_nothing_to_fetch(
    serving: RunningDaemon, ground: Path
) -> None:
    path = ground / "f"
    path.write_text("precious")
    with path.open("rb") as file:
        for destination in (str(path), f"/proc/{os.getpid()}/fd/{file.fileno()}"):
            got = vuserctl(serving, "get", "e:/none", destination)
            assert got.returncode == 1
            assert got.stderr == "vuserctl: e:/none: no such file or directory (ENOENT)\n"
            assert path.read_text() == "precious"


def ending_signals() -> list[int]:
    """Return all that can be caught and would end a process."""
    kept = {
        signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
        signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
        signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE,
    }  # fmt: skip
    return sorted(int(number) for number in signal.valid_signals() - kept)


class _Silent(NamedTuple):
    """A daemon with a file of which no byte comes before ``answers`` is set."""

    daemon: FakeDaemon
    answers: threading.Event


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[_Silent]:
    answers = threading.Event()

    def wait(request: Request) -> None:
        if request.method not in ("api_info", "stat"):
            answers.wait()

    with FakeDaemon(str(tmp_path / "d.sock"), directory(large=Node(content=_CONTENT))) as daemon:
        daemon.before = wait
        yield _Silent(daemon, answers)
        answers.set()


class _Get:
    """A ``get`` that is on its way for as long as nothing ends it."""

    def __init__(self, silent: _Silent, folder: Path, *wrapper: str) -> None:
        self.folder = folder
        self._answers = silent.answers
        # These tests may run where signals are ignored: in the background, say.
        usual = ("env", "--default-signal")
        self.process = subprocess.Popen(
            [
                *usual,
                *wrapper,
                *command(silent.daemon.address),
                "get",
                "kernels:large",
                str(folder),
            ],
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 20
        while not os.listdir(folder):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)  # nothing tells when a file is there

    def end_by(self, *numbers: int) -> bytes:
        """Send it signals, and then the answer that it waits for; return what it says.

        Python notices a signal that comes right before a system call only after that.
        """
        for number in numbers:
            self.process.send_signal(number)
        self._answers.set()
        return self.process.communicate(timeout=30)[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.__exit__(None, None, None)


@pytest.mark.parametrize("number", ending_signals())
def test_a_signal_leaves_nothing_and_is_what_it_dies_of(
    silent: _Silent, ground: Path, number: int
) -> None:
    with _Get(silent, ground) as get:
        assert (get.end_by(number), get.process.returncode) == (b"", -number)
        assert os.listdir(ground) == []


def test_two_signals_at_once(silent: _Silent, ground: Path) -> None:
    with _Get(silent, ground) as get:
        said = get.end_by(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
        assert -get.process.returncode in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        assert said == b""
        assert os.listdir(ground) == []


def test_a_signal_that_was_ignored_stays_so(silent: _Silent, ground: Path) -> None:
    ignoring = ("env", "--ignore-signal=HUP,INT,USR1,QUIT")
    with _Get(silent, ground, *ignoring) as get:
        ignored = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGQUIT)
        get.end_by(*ignored, signal.SIGTERM)
        assert get.process.returncode == -signal.SIGTERM
        assert os.listdir(ground) == []


def test_a_limit_of_file_sizes(serving: RunningDaemon, ground: Path) -> None:
    """What ends cp ends vuserctl, and nothing is left."""
    limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *command(serving.socket)]
    done = subprocess.run([*limited, "get", "e:/large", ground], capture_output=True, check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert os.listdir(ground) == []


def test_what_sigkill_leaves_has_a_name_that_is_documented(silent: _Silent, ground: Path) -> None:
    with _Get(silent, ground) as get:
        get.process.kill()
        get.process.communicate()
    (left,) = ground.iterdir()
    assert left.match(".vuserctl-*.part")
    page = (REPOSITORY / "docs" / "man" / "vuserctl.1").read_text()
    assert ".vuserctl-*.part" in page


def test_a_pipe_whose_reader_has_gone(serving: RunningDaemon, ground: Path) -> None:
    os.mkfifo(ground / "fifo")

    def read_some() -> None:
        with (ground / "fifo").open("rb") as fifo:
            fifo.read(100)

    with ExitStack() as stack:
        reader = threading.Thread(target=read_some)
        reader.start()
        stack.callback(reader.join)
        got = vuserctl(serving, "get", "e:/large", str(ground / "fifo"))
    assert got.returncode == -signal.SIGPIPE
    assert os.listdir(ground) == ["fifo"]
