"""vuserctl's head, tail, sha256sum, diff and watch as people type them."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, FaultError, Node, directory
from tests.running import RunningDaemon
from tests.unit.conftest import Run, Start
from vuserd.ctl.contents import opened
from vuserd.wire.codec import Request

LOG = b"".join(b"line %d\n" % number for number in range(1, 101))


@pytest.fixture
def log(fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Have a file of a hundred lines, which is read in several pieces."""
    monkeypatch.setattr(opened, "PIECE", 100)
    monkeypatch.setattr("vuserd.ctl.contents.parts.PIECE", 100)
    node = Node(content=LOG)
    fake_daemon.root.children[b"log"] = node
    return node


def lines(first: int, last: int) -> str:
    return "".join(f"line {number}\n" for number in range(first, last + 1))


@pytest.mark.usefixtures("log")
class TestHeadAndTail:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["head"], lines(1, 10)),
            (["head", "-n", "2"], lines(1, 2)),
            (["head", "-30"], lines(1, 30)),
            (["head", "-n500"], lines(1, 100)),
            (["head", "-n", "0"], ""),
            (["head", "-c", "150"], LOG[:150].decode()),
            (["head", "-c", "1K"], LOG.decode()[:1024]),
            (["head", "-c", "0"], ""),
            (["tail"], lines(91, 100)),
            (["tail", "-n", "2"], lines(99, 100)),
            (["tail", "-40"], lines(61, 100)),
            (["tail", "-n", "500"], lines(1, 100)),
            (["tail", "-n", "0"], ""),
            (["tail", "-c", "150"], LOG[-150:].decode()),
            (["tail", "-c", "1M"], LOG.decode()),
        ],
    )
    def test_parts(self, run: Run, arguments: list[str], text: str) -> None:
        assert run(*arguments, "kernels:log") == (0, text, "")

    def test_several(self, run: Run) -> None:
        code, out, err = run("tail", "-n1", "kernels:log", "kernels:no", "kernels:empty")
        assert (code, out) == (1, "==> kernels:log <==\nline 100\n\n==> kernels:empty <==\n")
        assert err == "vuserctl: kernels:no: no such file or directory (ENOENT)\n"
        assert run("head", "kernels:boot")[0] == 1

    def test_a_last_line_without_an_end(self, run: Run, log: Node) -> None:
        log.content = LOG + b"half"
        assert run("tail", "-n", "2", "kernels:log")[1] == "line 100\nhalf"
        log.content = b"\n\n"
        assert run("tail", "-n", "1", "kernels:log")[1] == "\n"

    @pytest.mark.parametrize("command", ["head", "tail"])
    def test_a_size_that_is_untrue(self, run: Run, log: Node, command: str) -> None:
        """As those of /proc: there is more than nothing."""
        log.size = 0
        expected = lines(1, 2) if command == "head" else lines(99, 100)
        assert run(command, "-n", "2", "kernels:log") == (0, expected, "")

    def change_after_first_read(self, daemon: FakeDaemon, change: Callable[[], None]) -> None:
        def before(request: Request) -> None:
            if request.method == "stat" and request.params[2].get("file") is not None:
                change()

        daemon.before = before

    def test_one_that_grows(self, run: Run, log: Node, fake_daemon: FakeDaemon) -> None:
        def append() -> None:
            log.content += b"more\n"
            log.mtime_ns += 1

        self.change_after_first_read(fake_daemon, append)
        assert run("tail", "-n", "1", "kernels:log") == (0, "line 100\n", "")

    def test_one_that_changes(self, run: Run, log: Node, fake_daemon: FakeDaemon) -> None:
        def change() -> None:
            log.content = b"X" * 2000
            log.mtime_ns += 1

        self.change_after_first_read(fake_daemon, change)
        said = "vuserctl: kernels:log: the file changed while it was read (CHANGED)\n"
        assert run("tail", "-n", "1", "kernels:log") == (1, "line 100\n", said)

    def test_coarse_timestamps(self, run: Run, fake_daemon: FakeDaemon) -> None:
        """What they cannot tell is read twice."""
        fake_daemon.settled = False
        assert run("tail", "-n", "1", "kernels:log") == (0, "line 100\n", "")

    def test_nothing_stays_open(self, run: Run, fake_daemon: FakeDaemon) -> None:
        assert run("head", "kernels:log", "kernels:log")[0] == 0
        assert fake_daemon.open == {}
        assert fake_daemon.left == []


class TestFollow:
    def test_what_is_appended(self, start: Start, fake_daemon: FakeDaemon) -> None:
        log = Node(content=b"one\ntwo\n")
        fake_daemon.root.children[b"log"] = log
        command = ("tail", "-n", "1", "-f", "--interval", "0.1", "kernels:log")
        process = start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"two\n"
        log.content += b"three\n"
        assert process.stdout.readline() == b"three\n"
        log.content = b"new\n"
        assert b"became shorter" in process.stderr.readline()
        assert process.stdout.readline() == b"new\n"
        del fake_daemon.root.children[b"log"]
        assert b"ENOENT" in process.stderr.readline()
        fake_daemon.root.children[b"log"] = Node(content=b"rotated\n")
        assert b"another file is there" in process.stderr.readline()
        assert process.stdout.readline() == b"rotated\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT
        assert process.stderr.read() == process.stdout.read() == b""

    def test_a_size_that_is_untrue(self, start: Start, fake_daemon: FakeDaemon) -> None:
        """As those of /proc: what is appended shows all the same, and nothing became shorter."""
        log = Node(content=b"one\n", size=0)
        fake_daemon.root.children[b"log"] = log
        command = ("tail", "-f", "--interval", "0.1", "kernels:log")
        process = start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"one\n"
        time.sleep(0.3)
        log.content += b"two\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.communicate() == (b"two\n", b"")

    def test_what_is_missing(self, run: Run) -> None:
        said = "vuserctl: kernels:no: no such file or directory (ENOENT)\n"
        assert run("tail", "-f", "kernels:no") == (1, "", said)


class TestSha256sum:
    def test_sums(self, run: Run) -> None:
        expected = hashlib.sha256(IMAGE).hexdigest()
        code, out, err = run("sha256sum", "kernels:image", "kernels:no", "kernels:link")
        assert (code, out) == (1, f"{expected}  kernels:image\n{expected}  kernels:link\n")
        assert err == "vuserctl: kernels:no: no such file or directory (ENOENT)\n"
        [found] = json.loads(run("sha256sum", "--json", "kernels:image")[1])
        assert found == {"path": "kernels:image", "sha256": expected}

    def test_there_and_back(
        self, run: Run, here: Path, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_daemon.root.children[b"a\nb\\"] = Node(content=b"odd")
        fake_daemon.root.children[b"\xff"] = Node(content=b"bytes")
        names = ("kernels:image", "kernels:a\nb\\", "kernels:\udcff")
        _, sums, _ = run("sha256sum", *names)
        (here / "sums").write_bytes(os.fsencode(sums))
        code, out, err = run("sha256sum", "-c", "sums")
        assert (code, err) == (0, "")
        assert out == "kernels:image: OK\nkernels:a\\nb\\\\: OK\nkernels:\\377: OK\n"
        fake_daemon.root.children[b"image"].content = b"other"
        del fake_daemon.root.children[b"\xff"]
        monkeypatch.setattr(sys, "stdin", io.StringIO(sums))
        code, out, err = run("sha256sum", "-c", "-")
        assert (code, out.splitlines()[0]) == (1, "kernels:image: FAILED")
        assert out.splitlines()[-1] == "kernels:\\377: FAILED open or read"
        assert err.endswith("vuserctl: -: 2 of 3 files did not match\n")

    def test_sums_of_names_that_are_no_text_from_a_pipe(
        self, start: Start, fake_daemon: FakeDaemon
    ) -> None:
        fake_daemon.root.children[b"\xff"] = Node(content=b"bytes")
        sums = hashlib.sha256(b"bytes").hexdigest().encode() + b"  kernels:\xff\n"
        process = start(
            *("sha256sum", "-c", "-"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
        )
        assert process.communicate(sums) == (b"kernels:\\377: OK\n", b"")

    def test_names_in_a_directory(self, run: Run, here: Path) -> None:
        sums = subprocess.run(["sha256sum"], input=b"", capture_output=True, check=True).stdout
        (here / "sums").write_text(sums.decode().replace("-", "./a") + "\n# a comment\nwhat?\n")
        code, out, err = run("sha256sum", "-c", "sums", "kernels:boot")
        assert (code, out) == (0, "kernels:boot/a: OK\n")
        assert err == "vuserctl: sums: 1 line is not of a checksum\n"
        code, _, err = run("sha256sum", "-c", "sums")
        assert (code, err.count("no checksums of EXPORT:PATH")) == (1, 1)
        code, _, err = run("sha256sum", "-c", "missing")
        assert (code, err) == (1, "vuserctl: missing: no such file or directory (ENOENT)\n")

    @pytest.mark.parametrize(
        ("file", "words"),
        [("-", "-: bad file descriptor (EBADF)"), ("/proc/self/mem", "/proc/self/mem: ")],
    )
    def test_what_cannot_be_read_is_named(self, start: Start, file: str, words: str) -> None:
        with open("/dev/null", "wb") as closed:
            process = start("sha256sum", "-c", file, stdin=closed, stderr=subprocess.PIPE)
        assert process.communicate()[1].startswith(f"vuserctl: {words}".encode())
        assert process.returncode == 1

    @pytest.mark.parametrize("arguments", [[], ["-c", "sums", "kernels:a", "kernels:b"]])
    def test_wrong(self, run: Run, arguments: list[str]) -> None:
        assert run("sha256sum", *arguments)[2].startswith("usage: vuserctl sha256sum")


@pytest.fixture
def alike(fake_daemon: FakeDaemon, here: Path) -> Path:
    """Have the same tree on both sides."""
    dtbs = directory(**{"a.dtb": Node(content=b"a"), "b.dtb": Node(content=b"b")})
    boot = directory(dtbs=dtbs, Image=Node(content=IMAGE), link=Node("symlink", b"Image"))
    fake_daemon.root.children[b"boot"] = boot
    (here / "dtbs").mkdir()
    (here / "dtbs/a.dtb").write_bytes(b"a")
    (here / "dtbs/b.dtb").write_bytes(b"b")
    (here / "Image").write_bytes(IMAGE)
    (here / "link").symlink_to("Image")
    return here


class TestDiff:
    def test_nothing(self, run: Run, alike: Path) -> None:
        assert run("diff", "kernels:boot", str(alike)) == (0, "", "")
        assert run("diff", "kernels:boot/Image", "Image") == (0, "", "")
        assert run("diff", "kernels:boot/Image", ".") == (0, "", "")
        assert run("diff", "--json", "kernels:boot", ".") == (0, "[]\n", "")

    def test_everything(self, run: Run, alike: Path) -> None:
        (alike / "dtbs/a.dtb").write_bytes(b"x")
        (alike / "dtbs/b.dtb").unlink()
        (alike / "dtbs/c.dtb").touch()
        (alike / "Image").write_bytes(b"short")
        (alike / "link").unlink()
        (alike / "link").symlink_to("nowhere")
        code, out, err = run("diff", "kernels:boot", ".")
        assert (code, err) == (1, "")
        assert out.splitlines() == [
            "kernels:boot/Image and ./Image: sizes differ, 300001 and 5",
            "kernels:boot/link and ./link: links differ, to Image and to nowhere",
            "kernels:boot/dtbs/a.dtb and ./dtbs/a.dtb: contents differ",
            "only in kernels:boot/dtbs: b.dtb",
            "only in ./dtbs: c.dtb",
        ]
        found = json.loads(run("diff", "--json", "kernels:boot", ".")[1])
        kinds = ["size", "target", "contents", "only remote", "only local"]
        assert [each["difference"] for each in found] == kinds
        assert run("diff", "kernels:boot/dtbs", "link")[0] == 2

    def test_a_full_disk_takes_what_differs(self, start: Start, alike: Path) -> None:
        for number in range(3000):
            (alike / f"only-here-{number}").touch()
        with open("/dev/full", "wb") as full:
            process = start("diff", "kernels:boot", ".", stdout=full, stderr=subprocess.PIPE)
        said = b"vuserctl: standard output: no space left on device (ENOSPC)\n"
        assert process.communicate()[1] == said
        assert process.returncode == 2

    def test_types(self, run: Run, alike: Path) -> None:
        (alike / "Image").unlink()
        (alike / "Image").mkdir()
        assert run("diff", "kernels:boot", ".") == (
            1,
            "kernels:boot/Image and ./Image: types differ, file and dir\n",
            "",
        )

    def test_trouble(self, run: Run, alike: Path, fake_daemon: FakeDaemon) -> None:
        said = "vuserctl: kernels:no: no such file or directory (ENOENT)\n"
        assert run("diff", "kernels:no", ".") == (2, "", said)
        said = "vuserctl: missing: no such file or directory (ENOENT)\n"
        assert run("diff", "kernels:boot", "missing") == (2, "", said)
        assert run("diff", "kernels:boot")[0] == 2
        (alike / "dtbs/b.dtb").unlink()

        def refuse(request: Request) -> None:
            if request.method == "open":
                fake_daemon.root.children[b"boot"].children[b"Image"].type = "fifo"

        fake_daemon.before = refuse
        code, out, err = run("diff", "kernels:boot", ".")
        assert (code, "only in kernels:boot/dtbs: b.dtb\n" in out) == (2, True)
        assert err.startswith("vuserctl: kernels:boot/Image: ")

    def test_a_listing_without_attributes(
        self, run: Run, alike: Path, fake_daemon: FakeDaemon
    ) -> None:
        names = ["Image", "gone", "link"]
        (alike / "gone").touch()
        (alike / "dtbs/a.dtb").unlink()
        (alike / "dtbs/b.dtb").unlink()
        (alike / "dtbs").rmdir()
        entries = [{"name": name, "type": "unknown", "ino": 1} for name in names]
        fake_daemon.results["readdir"] = {"entries": entries, "next": None}
        said = "vuserctl: kernels:boot/gone: no such file or directory (ENOENT)\n"
        assert run("diff", "kernels:boot", ".") == (2, "", said)

    def test_a_local_file_that_cannot_be_read(
        self, run: Run, alike: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        really = os.open

        def refuse(path: Any, *arguments: Any, **options: Any) -> int:
            if path == "./Image":
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return really(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)
        said = "vuserctl: ./Image: permission denied (EACCES)\n"
        assert run("diff", "kernels:boot", ".") == (2, "", said)
        assert alike

    def test_no_daemon(self, run: Run, tmp_path: Path) -> None:
        arguments = ("--socket", str(tmp_path / "none"), "diff", "kernels:", ".")
        assert run(*arguments, socket=False)[0] == 2


class TestWatch:
    def test_changes(self, start: Start, fake_daemon: FakeDaemon, here: Path) -> None:
        command = ("watch", "--interval", "0.1", "-n", "4", "kernels:boot")
        ran = ("--", "sh", "-c", "echo ran; exit 3")
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": here}
        process = start(*command, *ran, **streams)
        assert process.stdout is not None
        assert process.stderr is not None
        boot = fake_daemon.root.children[b"boot"].children
        assert process.stderr.readline().startswith(b"vuserctl: polling kernels:boot every 0.1 s")

        def told() -> list[bytes]:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert process.stdout.readline() == b"ran\n"
            assert process.stderr.readline() == b"vuserctl: sh exited with status 3\n"
            return line.split()[1:]

        boot[b"new"] = Node()
        assert told() == [b"created", b"kernels:boot/new"]
        boot[b"new"].mtime_ns += 1
        assert told() == [b"modified", b"kernels:boot/new"]
        boot[b"new"].permissions = 0o600
        assert told() == [b"attributes", b"kernels:boot/new"]
        del boot[b"new"]
        assert told() == [b"removed", b"kernels:boot/new"]
        assert process.wait() == 0

    def test_what_goes_away(self, start: Start, fake_daemon: FakeDaemon) -> None:
        command = ("watch", "--json", "--interval", "0.1", "-n", "1", "kernels:image")
        process = start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        process.stderr.readline()
        del fake_daemon.root.children[b"image"]
        out, _ = process.communicate()
        found = json.loads(out)
        assert (process.returncode, found["change"]) == (0, "removed")
        assert found["path"] == "kernels:image"

    def test_what_cannot_be_listed_stays_as_it_was(
        self, run: Run, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        boot = directory(dtbs=directory(**{"a.dtb": Node()}))
        fake_daemon.root.children[b"boot"] = boot
        listed: list[object] = []
        really = fake_daemon.do_readdir

        def readdir(export: object, path: object, options: dict[str, Any]) -> Any:
            listed.append(path)
            if listed.count("boot") == 2:  # the second look
                boot.children[b"new"] = Node()
                if path == "boot/dtbs":
                    raise FaultError("EACCES", "permission denied", errno=13)
            return really(export, path, options)

        monkeypatch.setattr(fake_daemon, "do_readdir", readdir)
        code, out, err = run("watch", "--interval", "0.1", "-n", "1", "kernels:boot")
        assert (code, out.split()[1:]) == (0, ["created", "kernels:boot/new"])
        assert err.startswith("vuserctl: polling kernels:boot every 0.1 s")
        assert listed == ["boot", "boot/dtbs"] * 2

    def test_faults(self, run: Run) -> None:
        said = "vuserctl: kernels:no: no such file or directory (ENOENT)\n"
        assert run("watch", "kernels:no") == (1, "", said)

    def test_a_look_that_fails_is_told_once_and_repeated(
        self, run: Run, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        boot = directory(a=Node())
        fake_daemon.root.children[b"boot"] = boot
        looks, really = count(1), fake_daemon.do_readdir

        def readdir(export: object, path: object, options: dict[str, Any]) -> Any:
            if 2 <= (look := next(looks)) <= 4:
                raise FaultError("CHANGED" if look == 4 else "BACKEND_DOWN", "not now")
            if look == 5:
                boot.children[b"new"] = Node()
            return really(export, path, options)

        monkeypatch.setattr(fake_daemon, "do_readdir", readdir)
        code, out, err = run("watch", "--interval", "0.1", "-n", "1", "kernels:boot")
        assert (code, out.split()[1:]) == (0, ["created", "kernels:boot/new"])
        assert err.splitlines()[1:] == [
            "vuserctl: kernels:boot: not now (BACKEND_DOWN); looking again",
            "vuserctl: kernels:boot: not now (CHANGED); looking again",
        ]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_command_ends_as_it_likes(
        self, start: Start, fake_daemon: FakeDaemon, number: int
    ) -> None:
        """A terminal sends its own signals to both; others are passed on."""
        code = "trap 'sleep 0.5; echo cleaned; exit 0' INT TERM; echo ready; sleep 60 & wait $!"
        command = ("watch", "--interval", "0.1", "kernels:image", "--", "bash", "-c", code)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = start(*command, **streams, start_new_session=True)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        fake_daemon.root.children[b"image"].mtime_ns += 1
        assert process.stdout.readline().split()[1] == b"modified"
        assert process.stdout.readline() == b"ready\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.stdout.readline() == b"cleaned\n"
        assert process.wait() == -number
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_over_a_real_backend(virtiofsd: str, tmp_path: Path, here: Path, run: Run) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "log").write_bytes(LOG)
    (top / "image").write_bytes(IMAGE)
    with RunningDaemon({"files": top}, tmp_path / "s", virtiofsd) as running:

        def typed(*arguments: str) -> tuple[int, str, str]:
            return run("--socket", running.socket, *arguments, socket=False)

        assert typed("head", "-n", "2", "files:log") == (0, lines(1, 2), "")
        assert typed("tail", "-n", "2", "files:log") == (0, lines(99, 100), "")
        (here / "sums").write_text(typed("sha256sum", "files:/*")[1])
        assert typed("sha256sum", "-c", "sums")[0] == 0
        assert typed("diff", "files:", str(top)) == (0, "", "")
        (here / "image").write_bytes(IMAGE[:-1] + bytes([IMAGE[-1] ^ 1]))
        code, out, _ = typed("diff", "files:image", "image")
        assert (code, out.endswith((": contents differ\n", ": nothing\n"))) == (1, True)
