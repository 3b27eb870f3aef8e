"""vuserctl against the fake daemon: what it prints, its exit codes, the files it leaves."""

import gc
import gettext
import json
import os
import pty
import runpy
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, FaultError, Node, directory
from tests.running import REPOSITORY
from tests.unit.conftest import Run, Start
from vuserd.client.files import transfer
from vuserd.client.records import Entry, Stat
from vuserd.client.sync_client import Client
from vuserd.ctl import __main__ as program
from vuserd.ctl import commands, main, output
from vuserd.ctl.completion import candidates, script
from vuserd.ctl.parser import parse
from vuserd.ctl.status import lines
from vuserd.ctl.target import Target
from vuserd.ctl.waiting import PatientClient
from vuserd.wire.codec import Request

MTIME_NS = 1_600_000_000_123_456_789


@pytest.fixture(autouse=True)
def _environment(vuserctl_environment: None) -> None:
    """Have the same environment for all tests here."""


class TestTarget:
    def test_parts(self) -> None:
        target = Target.parse("kernels:/boot/Image:1")
        assert target == ("kernels", "/boot/Image:1")
        assert str(target) == "kernels:/boot/Image:1"
        assert target.name == "Image:1"
        assert str(Target.parse("k:").child("a").child("b")) == "k:a/b"
        assert str(Target.parse("k:/").child("a")) == "k:/a"

    @pytest.mark.parametrize("text", ["", "kernels", ":/x", "/a/b"])
    def test_none(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not EXPORT:PATH"):
            Target.parse(text)

    @pytest.mark.parametrize("text", ["k:", "k:/", "k:a/..", "k:."])
    def test_no_name(self, text: str) -> None:
        assert Target.parse(text).name == ""


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["nonsense"],
            ["tree"],
            ["ls", "kernels"],
            ["ls", "--color", "sometimes", "kernels:"],
            ["tree", "-L", "0", "kernels:"],
            ["ls", ":/boot"],
            ["ls", "--no-such", "kernels:"],
            ["get", "kernels:"],
            ["get", "kernels:boot/.."],
            ["completion", "tcsh"],
            ["--timeout", "0", "status"],
            ["status", "--timeout", "-1"],
            ["top", "--interval", "0"],
            ["top", "--interval", "soon"],
            ["top", "--interval", "nan"],
            ["top", "-n", "0"],
            ["top", "-n", "-1"],
            ["top", "-n", "9" * 5000],
            ["load", "kernels:image", "--memory", "0", "--address", "0x8000000000000000"],
            ["load", "kernels:image", "--memory", "0", "--address", "0", "--offset", "1" * 20],
            ["load", "kernels:image", "--memory", "0", "--address", "0", "--length", "1" * 20],
            ["trace", "kernels", "-n", "8589934592G"],
            ["trace", "kernels", "-n", "9" * 5000],
        ],
    )
    def test_wrong(self, run: Run, arguments: list[str]) -> None:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("usage: vuserctl")

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["kernels", "k:b"], "argument EXPORT:KERNEL: 'kernels' is not EXPORT:PATH"),
            (["k:a", "b"], "argument EXPORT:DTB: 'b' is not EXPORT:PATH"),
            (["k:a", "k:b", "--ram", "1.5G"], "argument --ram: '1.5G' is not a number such as"),
            (
                ["k:a", "k:b", "--dtb-address", "9999999999G"],
                "--dtb-address: '9999999999G' is not a number such as",
            ),
        ],
    )
    def test_wrong_of_the_example(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        arguments: list[str],
        reason: str,
    ) -> None:
        """It tells the reason as vuserctl does."""
        monkeypatch.setattr(sys, "argv", ["rig.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(REPOSITORY / "examples/rig.py"))["main"]()
        assert exit_.value.code == 2
        assert reason in capsys.readouterr().err

    def test_help_and_version(self, run: Run) -> None:
        assert run("--version") == run("-V") == (0, "vuserctl 0.1.0\n", "")
        code, out, _ = run("--help")
        assert code == 0
        assert "__complete" not in out
        for command in (*commands._COMMANDS, "completion"):
            assert f"\n    {command} " in out

    @pytest.mark.parametrize(
        ("arguments", "command", "words"),
        [
            (["lst", "kernels:"], "", "unknown command 'lst'; did you mean \"ls\"?"),
            ([], "", "the following arguments are required: COMMAND; 'vuserctl help' lists them"),
            (["xyzzy"], "", "unknown command 'xyzzy'; 'vuserctl help' lists them"),
            (["help", "gett"], " help", "unknown command 'gett'; did you mean \"get\"?"),
            (["--sokcet", "x", "ls"], "", "unknown option '--sokcet'; did you mean \"--socket\"?"),
            (["get", "--growin", "k:x"], " get", "'--growin'; did you mean \"--growing\"?"),
            (
                ["ls", "--sokcet", "x"],
                " ls",
                "unknown option '--sokcet'; did you mean \"--socket\"?",
            ),
            (["ls", "--sokcet=x"], " ls", "unknown option '--sokcet'; did you mean \"--socket\"?"),
            (["get", "k:x", "-Z"], " get", "unknown option '-Z'"),
            (["ls", "-lz", "k:x"], " ls", "unknown option '-z'\n"),
            (
                ["ls", "kernels"],
                " ls",
                """; an export of that name has its root at "kernels:\"\n""",
            ),
            (["ls", "/kernels"], " ls", "'/kernels' is not EXPORT:PATH\n"),
            (["find", "k:", "-nam", "x"], " find", "'-nam'; did you mean \"-name\"?"),
            (["sl"], "", "unknown command 'sl'; did you mean \"ls\"?"),
            (["ls", "--color"], " ls", "argument --color: expected one argument"),
            (["status", "now"], " status", "unrecognized arguments: now"),
            (["get"], " get", "the following arguments are required: EXPORT:PATH"),
            (["trace"], " trace", "trace takes an export, or a capture to --read"),
            (["exports", "--socket", ""], " exports", "--socket is an empty string"),
            (["load", "k:x"], " load", "the following arguments are required: --memory, --address"),
        ],
    )
    def test_the_usage_of_the_command_itself(
        self, run: Run, arguments: list[str], command: str, words: str
    ) -> None:
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"usage: vuserctl{command} [")
        assert words in err

    def test_help_of_a_command(self, run: Run) -> None:
        assert run("help", "get") == run("get", "--help")
        assert run("help") == run("--help")
        assert run("help", "get")[0] == 0

    def test_every_command_has_examples_that_are_right(self, run: Run) -> None:
        [commands] = [act.choices for act in main.parser()._actions if act.dest == "command"]
        for name in dict(commands or {}):
            _, _, examples = run(name, "--help")[1].partition("\nexamples:\n")
            assert examples
            for line in examples.splitlines():
                words = shlex.split(line.replace("|", ">").partition(">")[0])
                assert words[0] == "vuserctl"
                parse(words[1:])

    @pytest.mark.parametrize(
        ("arguments", "prefix"),
        [
            (["ls", "kernel:boot"], "kernel:boot: "),
            (["get", "kernel:boot"], "kernel:boot: "),
            (["tree", "kernel:"], "kernel:: "),
            (["reload", "kernel"], ""),
        ],
    )
    def test_an_export_that_is_mistyped(self, run: Run, arguments: list[str], prefix: str) -> None:
        words = 'no export kernel (UNKNOWN_EXPORT); did you mean "kernels"?'
        assert run(*arguments) == (1, "", f"vuserctl: {prefix}{words}\n")

    @pytest.mark.parametrize("columns", [40, 100])
    def test_help_is_as_wide_as_the_terminal(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        text, _, examples = run("get", "--help")[1].partition("examples:")
        assert "\n  vuserctl get " in examples
        # Python 3.14 breaks no line within what an operand looks like.
        lines = [line for line in text.splitlines() if "[EXPORT:PATH ...]" not in line]
        assert columns / 2 < max(map(len, lines)) < columns

    def test_a_start_loads_little(self) -> None:
        code = (
            "import sys; from vuserd.ctl.main import parser;"
            "parser().parse_args(['get', 'k:x']); print(*sys.modules)"
        )
        # What measures coverage loads most of these by itself.
        plain = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
        ended = subprocess.run(
            [sys.executable, "-c", code], env=plain, capture_output=True, check=True
        )
        heavy = {"trio", "shutil", "subprocess", "json", "threading", "dataclasses", "inspect"}
        heavy |= {"vuserd.client.sync_client", "msgpack", "socket"}  # for those that call
        heavy |= {"difflib", "fnmatch", "hashlib", "unicodedata"}
        assert not heavy & set(ended.stdout.decode().split())

    def test_a_start_looks_for_no_translations(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looked: list[object] = []
        monkeypatch.setattr(gettext, "find", lambda *which, **_: looked.append(which))
        assert parse(["get", "k:x"]).command == "get"
        assert looked == []

    def test_what_is_left_at_the_end_is_not_looked_through(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[object] = []

        def run_it() -> int:
            done.append("run")
            return 3

        monkeypatch.setattr(gc, "set_threshold", done.append)
        monkeypatch.setattr(gc, "freeze", lambda: done.append("frozen"))
        monkeypatch.setattr(main, "main", run_it)
        assert program.main() == 3
        assert done == [50_000, "run", "frozen"]


class TestFaults:
    def test_the_form_of_messages(self, run: Run) -> None:
        expected = "vuserctl: kernels:/boot/Image: no such file or directory (ENOENT)\n"
        for command in ("ls", "tree", "stat", "cat", "get"):
            assert run(command, "kernels:/boot/Image") == (1, "", expected)
        code, _, err = run("ls", "nothing:")
        assert (code, err) == (1, "vuserctl: nothing:: no export nothing (UNKNOWN_EXPORT)\n")

    def test_without_a_target(self, run: Run, fake_daemon: FakeDaemon) -> None:
        def refuse(_request: Request) -> None:
            raise AssertionError

        fake_daemon.raw["status"] = lambda request: (
            b"\x94\x01%c\x81\xa4code\xa4BUSY\xc0" % (request.msgid)
        )
        fake_daemon.before = lambda _: None
        assert run("status") == (1, "", "vuserctl: no message (BUSY)\n")

    def test_no_daemon(self, run: Run, tmp_path: Path) -> None:
        code, _, err = run("--socket", str(tmp_path / "none"), "exports", socket=False)
        assert code == 1
        assert err.startswith("vuserctl: cannot connect to the daemon (")
        assert "vuserd serve" in err

    def test_a_daemon_that_goes_away(self, run: Run, fake_daemon: FakeDaemon) -> None:
        fake_daemon.cut_after = 20
        lost = "vuserctl: kernels:: the daemon closed the connection\n"
        assert run("ls", "kernels:") == (1, "", lost)

    def test_a_daemon_that_speaks_something_else(self, run: Run, fake_daemon: FakeDaemon) -> None:
        fake_daemon.raw["exports"] = lambda _: b"\xc1"
        code, _, err = run("exports")
        assert code == 1
        assert "not its protocol" in err

    def test_unprintable_names_are_escaped(self, run: Run) -> None:
        _, _, err = run("cat", "kernels:a\x1b[31m\udcff")
        assert "kernels:a\\033[31m\\377: no such" in err

    @pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"], ids=["out", "err", "all"])
    def test_streams_that_are_closed(
        self, fake_daemon: FakeDaemon, here: Path, closed: str
    ) -> None:
        """Nothing of vuserctl's own gets their numbers, and what cannot be told is a failure."""
        code = "import sys; from vuserd.ctl.main import main; sys.exit(main())"
        shell = f'exec "$@" {closed}'
        command = ["sh", "-c", shell, "sh", sys.executable, "-c", code]
        command += ["--socket", fake_daemon.address]

        def run_it(*arguments: str) -> tuple[int, bytes, bytes]:
            done = subprocess.run([*command, *arguments], capture_output=True, check=False)
            return done.returncode, done.stdout, done.stderr

        listed: tuple[int, bytes, bytes] = (0, b"a\nb\n", b"")
        if ">&-" in closed.split():
            words = b"vuserctl: standard output: bad file descriptor (EBADF)\n"
            listed = (1, b"", b"" if "2>&-" in closed else words)
        assert run_it("ls", "kernels:boot") == listed
        assert run_it("get", "kernels:image") == (0, b"", b"")
        assert (here / "image").read_bytes() == IMAGE
        told = b"" if "2>&-" in closed else b"vuserctl: kernels:no: no such file or directory"
        returned, out, err = run_it("stat", "kernels:no")
        assert (returned, out, err.startswith(told), not err) == (1, b"", True, not told)
        told = b"" if "2>&-" in closed else b"usage: vuserctl"
        returned, out, err = run_it("nonsense")
        assert (returned, out, err.startswith(told), not err) == (2, b"", True, not told)

    def test_standard_output_is_full(self, start: Start) -> None:
        with open("/dev/full", "wb") as full:
            process = start("ls", "kernels:", stdout=full, stderr=subprocess.PIPE)
            _, err = process.communicate()
        assert process.returncode == 1
        assert err == b"vuserctl: standard output: no space left on device (ENOSPC)\n"


class TestExports:
    def test_table(self, run: Run) -> None:
        assert run("exports")[1].splitlines() == [
            "NAME     STATE   BACKEND  VERSION  PID  REASON",
            "kernels  ready   rust     1.13.2   42   -",
            "broken   failed  -        -        -    no virtiofsd",
        ]

    @pytest.mark.parametrize("arguments", [["--json", "exports"], ["exports", "--json"]])
    def test_json(self, run: Run, arguments: list[str]) -> None:
        ready, broken = json.loads(run(*arguments)[1])
        assert ready["backend"] == {
            "kind": "rust",
            "version": "1.13.2",
            "pid": 42,
            "generation": 1,
        }
        assert (broken["backend"], broken["reason"]) == (None, "no virtiofsd")


class TestReload:
    def test_of_an_export(self, run: Run) -> None:
        assert run("reload", "kernels") == (0, "export kernels: backend replaced\n", "")

    def test_of_everything(self, run: Run, fake_daemon: FakeDaemon) -> None:
        assert run("reload")[1].splitlines() == ["limits: changed", "rig lab: added, absent"]
        assert json.loads(run("reload", "--json")[1])[0] == "limits: changed"
        fake_daemon.results["reload"] = []
        assert run("reload") == (0, "nothing changed\n", "")

    def test_of_nothing(self, run: Run) -> None:
        assert run("reload", "none") == (1, "", "vuserctl: no export none (UNKNOWN_EXPORT)\n")


class TestRigs:
    def test_table(self, run: Run) -> None:
        assert run("rigs")[1].splitlines() == [
            "RIG    STATE      SOCKET   CLIENTS  EXPORTS",
            "lab    listening  @vuserd        2  kernels",
            "bench  failed     @vuserd        0  -",
            "bench: permission denied",
        ]

    def test_none(self, run: Run, fake_daemon: FakeDaemon) -> None:
        fake_daemon.results["rigs"] = []
        assert run("rigs") == (0, "", "")
        assert run("rigs", "--json") == (0, "[]\n", "")

    def test_json(self, run: Run) -> None:
        lab, bench = json.loads(run("rigs", "--json")[1])
        assert (lab["exports"], lab["clients"], lab["reason"]) == (["kernels"], 2, None)
        assert bench["reason"] == "permission denied"


class TestStatus:
    def test_text(self, run: Run, fake_daemon: FakeDaemon) -> None:
        status = fake_daemon.do_status()
        status["listeners"][0]["socket"] = "/run/s"
        status["exports"][0]["source"] = "/srv/k"
        fake_daemon.results["status"] = status
        assert run("status")[1].splitlines() == [
            f"vuserd 9.9, pid {os.getpid()}, up 1 h 2 min",
            "connections  1",
            "requests     100, 3 refused or failed",
            "bytes read   5.0 MiB, 3.0 MiB in images",
            "images       2 kept, 1.0 MiB; 10 hits, 4 misses",
            "",
            "EXPORT   STATE   BACKEND       PID  GEN  RESTARTS  NODES  BUSY  REQUESTS  SOURCE",
            "kernels  up      rust 1.13.2  4242    3         1      3     0        99  /srv/k",
            "broken   failed  -               -    -         -      -     -         -  -",
            "kernels: lost its backend at 2020-09-13 12:26 (killed): it ended; restarts: 1 killed",
            "broken: no virtiofsd",
            "",
            "SOCKET  OPENED BY        CLIENTS",
            "/run/s  service manager        1",
            "",
            "RIG    STATE      SOCKET   CLIENTS  EXPORTS",
            "lab    listening  @vuserd        2  kernels",
            "bench  failed     @vuserd        0  -",
            "bench: permission denied",
            "",
            "USER        PID  REQUESTS  BUSY  READ  SINCE             COMMAND",
            "4000000000   78         7     1   0 B  2020-09-13 12:26  -",
            "root         77         0     1   0 B  2020-09-13 12:26  vuserctl",
        ]

    def test_for_those_who_manage_nothing(self, run: Run, fake_daemon: FakeDaemon) -> None:
        status = fake_daemon.do_status() | {"listeners": [], "rigs": [], "exports": []}
        fake_daemon.results["status"] = status | {"clients": [], "images": {"count": 0}}
        assert run("status")[1].splitlines()[1:] == [
            f"socket       {fake_daemon.address}",
            "connections  1",
            "requests     100, 3 refused or failed",
            "bytes read   5.0 MiB, 3.0 MiB in images",
        ]

    def test_no_line_is_longer_than_the_screen(self, fake_daemon: FakeDaemon) -> None:
        status = fake_daemon.do_status()
        status["listeners"][0]["socket"] = "/run/s"  # it is not cut, and the real one may be long
        status["exports"][0]["source"] = "/srv" * 100
        status["exports"][1]["reason"] = "no virtiofsd " * 50
        status["clients"][1]["command"] = "x" * 100
        for width in (100, 200):
            laid_out = lines(status, width)
            assert max(map(len, laid_out)) <= width
            assert any("/srv/srv" in line and line.endswith("...") for line in laid_out)

    @pytest.mark.parametrize(
        "status", [{}, {"exports": [5, {}], "uptime_s": "x"}, {b"x": 1}, {"exports": None}]
    )
    def test_whatever_is_missing(self, run: Run, fake_daemon: FakeDaemon, status: Any) -> None:
        fake_daemon.results["status"] = status
        code, out, err = run("status")
        assert (code, err) == (0, "")
        assert out.startswith("vuserd -, pid -, up ")
        assert run("status", "--json")[0] == 0

    def test_json(self, run: Run) -> None:
        assert json.loads(run("status", "--json")[1])["bytes_read"] == 5 << 20


class TestLs:
    def test_names(self, run: Run) -> None:
        assert run("ls", "kernels:")[1].splitlines() == [
            "boot", "empty", "image", "link", "odd", "pipe", "\udcff",
        ]  # fmt: skip
        assert run("ls", "kernels:/boot/")[1] == "a\nb\n"
        assert run("ls", "kernels:image")[1] == "image\n"

    def test_long(self, run: Run, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children[b"null"] = Node("char", rdev=os.makedev(1, 3))
        out = run("ls", "-l", "kernels:")[1].splitlines()
        assert out[0] == "drw-r--r-- 1 1000 100      0 2020-09-13 12:26 boot"
        assert out[2] == "-rw-r--r-- 1 1000 100 300001 2020-09-13 12:26 image"
        assert out[3] == "lrw-r--r-- 1 1000 100      6 2020-09-13 12:26 link -> /image"
        assert out[4] == "crw-r--r-- 1 1000 100   1, 3 2020-09-13 12:26 null"
        assert out[5].endswith("odd -> \udcff")

    def test_long_of_a_link_and_of_nothing(self, run: Run) -> None:
        assert run("ls", "-l", "kernels:link/")[1].endswith("link/ -> /image\n")
        assert run("mkdir", "kernels:")[0] == 2

    def test_empty(self, run: Run, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children.clear()
        assert run("ls", "kernels:") == (0, "", "")
        assert run("ls", "-l", "kernels:") == (0, "", "")
        assert run("ls", "--json", "kernels:") == (0, "[]\n", "")

    def test_many_links_one_of_which_goes_away(self, run: Run, fake_daemon: FakeDaemon) -> None:
        links = {b"%03d" % n: Node("symlink", b"to %d" % n) for n in range(100)}
        fake_daemon.root.children = links

        def remove(request: Request) -> None:
            if request.method == "readlink":
                links.pop(b"050", None)

        fake_daemon.before = remove
        out = run("ls", "-l", "kernels:")[1].splitlines()
        assert len(out) == 100
        assert out[49].endswith("049 -> to 49")
        assert out[50].endswith("050")

    def test_an_entry_without_attributes(self, run: Run, fake_daemon: FakeDaemon) -> None:
        entry = {"name": "gone", "type": "file", "ino": 5}
        fake_daemon.results["readdir"] = {"entries": [entry], "next": None}
        assert run("ls", "-l", "kernels:")[1] == "?????????? ? ? ? ? ? gone\n"

    def test_json(self, run: Run) -> None:
        by_name = {entry["name"]: entry for entry in json.loads(run("ls", "--json", "kernels:")[1])}
        assert by_name["image"]["size"] == len(IMAGE)
        assert by_name["image"]["mtime_ns"] == MTIME_NS
        assert by_name["link"]["target"] == "/image"
        assert "\udcff" in by_name

    def test_on_a_terminal_names_are_escaped(
        self, run: Run, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_daemon.root.children = {
            b"a\nb\x1b\\": Node(),
            b"\xffz": Node(),
            "ä b".encode(): Node(),
        }
        assert run("ls", "kernels:")[1] == "a\nb\x1b\\\nä b\n\udcffz\n"
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("NO_COLOR", "1")
        assert run("ls", "-1", "kernels:")[1] == "a\\nb\\033\\\\\nä b\n\\377z\n"


class TestTree:
    def test_drawing(self, run: Run, fake_daemon: FakeDaemon) -> None:
        del fake_daemon.root.children[b"\xff"]
        fake_daemon.root.children[b"boot"].children[b"z"] = directory(inner=Node())
        code, out, _ = run("tree", "kernels:")
        assert code == 0
        assert out.splitlines() == [
            "kernels:",
            "├── boot",
            "│   ├── a",
            "│   ├── b",
            "│   └── z",
            "│       └── inner",
            "├── empty",
            "├── image",
            "├── link -> /image",
            "├── odd -> \udcff",
            "└── pipe",
            "",
            "2 directories, 8 files",
        ]

    def test_empty_and_one(self, run: Run, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children = {b"d": directory()}
        assert run("tree", "kernels:/d")[1] == "kernels:/d\n\n0 directories, 0 files\n"
        fake_daemon.root.children[b"d"].children[b"f"] = Node()
        assert run("tree", "kernels:")[1].endswith("1 directory, 1 file\n")

    def test_json(self, run: Run) -> None:
        root = json.loads(run("tree", "--json", "kernels:")[1])
        assert root["name"] == "kernels:"
        boot = root["entries"][0]
        assert (boot["name"], boot["type"]) == ("boot", "dir")
        assert [entry["name"] for entry in boot["entries"]] == ["a", "b"]
        assert root["entries"][3]["target"] == "/image"
        assert json.loads(run("tree", "--json", "kernels:boot")[1])["entries"]

    @pytest.mark.parametrize("as_json", [False, True])
    def test_a_directory_that_may_not_be_listed(
        self, run: Run, fake_daemon: FakeDaemon, as_json: bool
    ) -> None:
        def refuse(request: Request) -> None:
            if request.method == "readdir" and request.params[1] == "boot":
                fake_daemon.root.children[b"boot"].type = "file"

        fake_daemon.before = refuse
        code, out, err = run("tree", "kernels:", *(["--json"] if as_json else []))
        assert (code, err) == (1, "")
        if as_json:
            assert json.loads(out)["entries"][0]["error"]["code"] == "ENOTDIR"
        else:
            assert "├── boot [not a directory (ENOTDIR)]\n├── empty" in out

    def test_types_that_the_listing_does_not_tell(self, run: Run, fake_daemon: FakeDaemon) -> None:
        entries = [{"name": name, "type": "unknown", "ino": 1} for name in ("gone", "image")]
        fake_daemon.results["readdir"] = {"entries": entries, "next": None}
        out = json.loads(run("tree", "--json", "kernels:")[1])
        assert [entry["type"] for entry in out["entries"]] == ["unknown", "file"]

    def test_deep(self, run: Run, fake_daemon: FakeDaemon) -> None:
        node = Node()
        for _ in range(1050):
            node = directory(d=node)
        fake_daemon.root = node
        code, out, _ = run("tree", "--json", "kernels:")
        assert (code, out.count('"entries"')) == (0, 1050)

    def test_where_there_are_no_box_characters(self, run: Run) -> None:
        reconfigure = sys.stdout.reconfigure  # type: ignore[union-attr]
        encoding = sys.stdout.encoding
        reconfigure(encoding="ascii")
        try:
            assert "|-- a\n`-- b\n" in run("tree", "kernels:boot")[1]
        finally:
            reconfigure(encoding=encoding)


class TestStat:
    def test_text(self, run: Run) -> None:
        out = run("stat", "kernels:/link")[1]
        assert "file  kernels:/link -> /image\n" in out
        assert "type  symlink\n" in out
        out = run("stat", "-L", "kernels:/link")[1]
        assert "size  300001\n" in out
        assert "mode  -rw-r--r-- (0644)\n" in out
        assert "modified  2020-09-13 12:26:40.123456789 +0000\n" in out

    def test_devices_and_mount_points(self, run: Run, fake_daemon: FakeDaemon) -> None:
        node = Node("char", rdev=os.makedev(1, 3))
        fake_daemon.results["stat"] = node.stat() | {"submount": True}
        out = run("stat", "kernels:/null")[1]
        assert "  device  1, 3\n" in out
        assert "type  char, a mount point\n" in out

    def test_json(self, run: Run) -> None:
        found = json.loads(run("stat", "--json", "kernels:link")[1])
        assert (found["type"], found["target"], found["mtime_ns"]) == (
            "symlink",
            "/image",
            MTIME_NS,
        )


class TestCat:
    def test_files(self, start: Start) -> None:
        process = start("cat", "kernels:image", "kernels:link", stdout=subprocess.PIPE)
        assert process.communicate()[0] == IMAGE * 2
        assert process.returncode == 0

    def test_one_is_missing(self, run: Run, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children[b"image"].content = b"text\n"
        code, out, err = run("cat", "kernels:no", "kernels:image")
        assert (code, out) == (1, "text\n")
        assert err == "vuserctl: kernels:no: no such file or directory (ENOENT)\n"

    def test_nobody_reads(self, fake_daemon: FakeDaemon, start: Start) -> None:
        fake_daemon.root.children[b"image"].content = bytes(5_000_000)
        process = start("cat", "kernels:image", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == -signal.SIGPIPE


@pytest.fixture(params=["lent", "reads"])
def way(
    request: pytest.FixtureRequest, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Take a file either way: from a daemon that takes no memory it comes in reads."""
    monkeypatch.setattr(transfer, "LENT_LEAST", 1)
    if request.param == "reads":
        fake_daemon.unknown.add("attach")


@pytest.mark.usefixtures("way")
class TestGet:
    def test_to_the_working_directory(self, run: Run, here: Path, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children[b"image"].permissions = 0o4577
        assert run("get", "kernels:/image") == (0, "", "")
        assert (here / "image").read_bytes() == IMAGE
        found = (here / "image").stat()
        assert found.st_mtime_ns == MTIME_NS
        assert stat.S_IMODE(found.st_mode) == 0o555
        assert os.listdir(here) == ["image"]

    def test_to_a_directory_and_to_a_name(self, run: Run, here: Path) -> None:
        (here / "sub").mkdir()
        assert run("get", "kernels:image", "sub")[0] == 0
        assert run("get", "kernels:image", "sub/other")[0] == 0
        assert sorted(os.listdir(here / "sub")) == ["image", "other"]
        assert (here / "sub/other").read_bytes() == IMAGE

    def test_over_another_file(self, run: Run, here: Path) -> None:
        (here / "real").write_text("old")
        (here / "image").symlink_to("real")
        assert run("get", "kernels:image")[0] == 0
        assert (here / "image").is_symlink()
        assert (here / "real").read_bytes() == IMAGE

    def test_a_long_name(self, run: Run, here: Path, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children[b"\xff" * 255] = Node(content=b"x")
        assert run("get", "kernels:" + "\udcff" * 255)[0] == 0
        assert os.listdir(os.fsencode(here)) == [b"\xff" * 255]

    def test_to_standard_output(self, start: Start) -> None:
        process = start("get", "kernels:image", "-", stdout=subprocess.PIPE)
        assert process.communicate()[0] == IMAGE

    def test_to_what_is_no_regular_file(self, run: Run, here: Path) -> None:
        (here / "null").symlink_to("/dev/null")
        assert run("get", "kernels:image", "null") == (0, "", "")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        assert run("get", "kernels:image", "/dev/full") == (
            1,
            "",
            "vuserctl: /dev/full: no space left on device (ENOSPC)\n",
        )

    def test_to_a_pipe(self, run: Run, here: Path, fake_daemon: FakeDaemon) -> None:
        """As a shell's ``>(...)`` names one, or with a name of its own."""
        fake_daemon.root.children[b"image"].content = IMAGE[:1000]  # which a pipe holds
        os.mkfifo(here / "fifo")
        (here / "link").symlink_to("fifo")
        out, into = os.pipe()
        fifo = os.open(here / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        try:
            for name, reader in ((f"/dev/fd/{into}", out), ("fifo", fifo), ("link", fifo)):
                assert run("get", "kernels:image", name) == (0, "", "")
                assert os.read(reader, 5000) == IMAGE[:1000]
        finally:
            for descriptor in (out, into, fifo):
                os.close(descriptor)
        assert sorted(os.listdir(here)) == ["fifo", "link"]
        assert stat.S_ISFIFO(os.stat(here / "fifo").st_mode)

    def test_to_a_file_without_a_name(self, run: Run, here: Path) -> None:
        """What its link leads to is another file, or none."""
        for leave in (lambda: None, lambda: (here / "f (deleted)").write_text("other")):
            with open(here / "f", "w+b") as file:
                file.write(b"older and longer" * 30_000)
                file.flush()
                (here / "f").unlink()
                leave()
                assert run("get", "kernels:image", f"/dev/fd/{file.fileno()}") == (0, "", "")
                file.seek(0)
                assert file.read() == IMAGE
        assert os.listdir(here) == ["f (deleted)"]
        assert (here / "f (deleted)").read_text() == "other"

    def test_over_what_a_chain_of_links_leads_to(self, run: Run, here: Path) -> None:
        (here / "there").mkdir()
        (here / "there/link").symlink_to("real")  # which is not there yet
        (here / "image").symlink_to("there/link")
        for _ in range(2):
            assert run("get", "kernels:image")[0] == 0
            assert (here / "there/real").read_bytes() == IMAGE
            assert (here / "there/link").is_symlink()
            assert (here / "image").is_symlink()

    def test_to_a_directory_that_is_missing(self, run: Run, here: Path) -> None:
        words = "vuserctl: new/image: no such file or directory (ENOENT)\n"
        assert run("get", "kernels:image", "new/") == (1, "", words)
        assert run("get", "-r", "kernels:image", "new/") == (1, "", words)
        assert os.listdir(here) == []

    def test_to_a_directory_that_is_a_file(self, run: Run, here: Path) -> None:
        (here / "file").write_text("old")
        words = "vuserctl: file/image: not a directory (ENOTDIR)\n"
        assert run("get", "kernels:image", "file/") == (1, "", words)
        assert (here / "file").read_text() == "old"

    def test_a_tree_to_standard_output(self, run: Run, here: Path) -> None:
        words = "vuserctl: kernels:boot is a directory, and cannot go to standard output\n"
        assert run("get", "-r", "kernels:boot", "-") == (1, "", words)
        assert run("get", "-r", "kernels:", "-")[0] == 1
        assert os.listdir(here) == []
        assert run("get", "-r", "kernels:boot", "./-")[0] == 0
        assert sorted(os.listdir(here / "-")) == ["a", "b"]

    @pytest.mark.parametrize("path", ["boot", "pipe", "missing"])
    def test_what_cannot_be_had(self, run: Run, here: Path, path: str) -> None:
        code, _, err = run("get", f"kernels:{path}")
        assert code == 1
        assert err.startswith(f"vuserctl: kernels:{path}: ")
        assert os.listdir(here) == []

    def test_a_connection_that_is_cut(self, run: Run, here: Path, fake_daemon: FakeDaemon) -> None:
        (here / "image").write_text("old")
        fake_daemon.unknown.add("attach")
        fake_daemon.cut_after = 100_000
        assert run("get", "kernels:image")[0] == 1
        assert os.listdir(here) == ["image"]
        assert (here / "image").read_text() == "old"

    @pytest.mark.usefixtures("here")
    def test_where_one_may_not_write(self, run: Run) -> None:
        code, _, err = run("get", "kernels:image", "no/such/place")
        assert code == 1
        assert err == "vuserctl: no/such/place: no such file or directory (ENOENT)\n"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal(
        self, here: Path, fake_daemon: FakeDaemon, start: Start, number: signal.Signals
    ) -> None:
        left: list[list[str]] = []

        def interrupt(request: Request) -> None:
            if request.method in ("load", "read") and not left:
                left.append(os.listdir(here))
                process.send_signal(number)
                process.wait()

        fake_daemon.before = interrupt
        process = start("get", "kernels:image", stderr=subprocess.PIPE)
        assert process.communicate()[1] == b""
        assert process.returncode == -number
        assert left[0][0].startswith(".vuserctl-")
        assert os.listdir(here) == []

    def test_progress_on_a_terminal(self, here: Path, start: Start) -> None:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        process = start("get", "kernels:image", stderr=theirs)
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how Linux says that the other side is closed
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
        assert process.wait() == 0
        assert b"image: 100%" in shown
        assert (here / "image").read_bytes() == IMAGE


class TestCompletion:
    def complete(self, fake_daemon: FakeDaemon, *words: str) -> list[str]:
        return candidates(["--socket", fake_daemon.address, *words])

    def test_commands_and_options(self) -> None:
        assert candidates(["st"]) == ["stat", "status"]
        assert "completion" in candidates([])
        assert candidates(["--v"]) == ["--version"]
        assert candidates(["help", "st"]) == ["stat", "status"]
        assert candidates(["ls", "--"]) == ["--color", "--help", "--json", "--socket", "--timeout"]
        assert {"-h", "-l", "-1", "-R"} < set(candidates(["ls", "-"]))
        assert candidates(["completion", ""]) == ["bash", "zsh", "fish"]
        assert candidates(["completion", "bash", ""]) == []
        assert candidates(["--socket", ""]) == []
        assert candidates(["--socket=", "tr"]) == ["tree", "trace"]
        assert candidates(["exports", ""]) == []
        assert candidates(["nonsense", "-"]) == []

    def test_exports_and_paths(self, fake_daemon: FakeDaemon) -> None:
        assert self.complete(fake_daemon, "ls", "") == ["kernels:", "broken:"]
        assert self.complete(fake_daemon, "ls", "-l", "ker") == ["kernels:"]
        assert self.complete(fake_daemon, "get", "kernels:b") == ["kernels:boot/"]
        assert self.complete(fake_daemon, "get", "kernels:/b") == ["kernels:/boot/"]
        assert self.complete(fake_daemon, "cat", "x", "kernels:boot/") == [
            "kernels:boot/a",
            "kernels:boot/b",
        ]
        assert self.complete(fake_daemon, "get", "kernels:image", "") == []
        assert candidates(["--socket=" + fake_daemon.address, "ls", "k"]) == ["kernels:"]

    def test_exports_alone(self, fake_daemon: FakeDaemon) -> None:
        assert self.complete(fake_daemon, "reload", "") == ["kernels", "broken"]
        assert self.complete(fake_daemon, "reload", "k") == ["kernels"]
        assert self.complete(fake_daemon, "reload", "kernels", "") == []
        assert candidates(["top", "--i"]) == ["--interval"]
        assert candidates(["top", "--interval", ""]) == []
        assert candidates(["top", "--interval", "2", "-n", ""]) == []
        assert candidates(["top", "--interval", "2", "--j"]) == ["--json"]
        assert candidates(["ri"]) == ["rigs"]

    def test_every_command_and_option_is_completed(self) -> None:
        [commands] = [act.choices for act in main.parser()._actions if act.dest == "command"]
        assert commands is not None
        assert candidates([""]) == [*commands]
        for name, parser in dict(commands).items():
            options = {flag for action in parser._actions for flag in action.option_strings}
            assert candidates([name, "-"]) == sorted(options)

    def test_faults_say_nothing(self, fake_daemon: FakeDaemon, tmp_path: Path) -> None:
        assert candidates(["--socket", str(tmp_path / "none"), "ls", ""]) == []
        assert self.complete(fake_daemon, "ls", "nothing:") == []

    def test_the_hidden_command(self, run: Run, fake_daemon: FakeDaemon) -> None:
        words = ("--socket", fake_daemon.address, "ls", "kernels:")
        _, out, _ = run("__complete", *words, socket=False)
        assert out.splitlines()[0] == "kernels:boot/"
        assert "\udcff" not in out

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_scripts(self, run: Run, shell: str) -> None:
        code, out, _ = run("completion", shell, socket=False)
        assert (code, out) == (0, script(shell))
        assert "__complete" in out

    @pytest.mark.parametrize(
        ("line", "found"),
        [
            ("ls kernels:boot/", b"<boot/a><boot/b>"),
            ("ls kernels:boot/ ker", b"<kernels:>"),
            ("ls kernels:boot/ ", b"<kernels:><broken:>"),
            (r"ls kernels:a\ file\ ", rb"<a\ file\ \(1\)>"),
            (r"ls kernels:a\ f", rb"<a\ file\ \(1\)>"),
            (r"ls kernels:boot/a\ ", b"<>"),
        ],
    )
    def test_in_bash(self, fake_daemon: FakeDaemon, line: str, found: bytes) -> None:
        fake_daemon.root.children[b"a file (1)"] = Node()
        code = "from vuserd.ctl.main import main; main()"
        lines = [
            script("bash"),
            f"vuserctl() {{ {sys.executable} -c '{code}' \"$@\"; }}",
            "compopt() { :; }",
            f"export VUSERD_SOCKET={fake_daemon.address}",
            "COMP_WORDBREAKS=' :'",
            'COMP_LINE="vuserctl $1" COMP_POINT=$((9 + ${#1}))',
            "_vuserctl",
            'printf "<%s>" "${COMPREPLY[@]}"',
        ]
        shell = subprocess.run(
            ["bash", "-c", "\n".join(lines), "bash", line],
            capture_output=True,
            check=True,
            cwd=os.getcwd(),
        )
        assert shell.stdout == found

    @pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here")
    def test_in_fish(self, here: Path, fake_daemon: FakeDaemon) -> None:
        fake_daemon.root.children[b"it's (1)"] = Node()
        (here / "a file").touch()
        code = "from vuserd.ctl.main import main; main()"
        lines = [
            script("fish"),
            f"function vuserctl; {sys.executable} -c '{code}' $argv; end",
            'for line in $argv; complete -C "vuserctl $line"; echo =; end',
        ]
        typed = [
            "ls kernels:boot/",
            r"ls kernels:it\'",
            "ls \"kernels:it's (",
            r"get kernels:x ./a\ ",
        ]
        shell = subprocess.run(
            ["fish", "--no-config", "-c", "\n".join(lines), *typed],
            capture_output=True,
            check=True,
            env={**os.environ, "VUSERD_SOCKET": fake_daemon.address, "HOME": str(here)},
        )
        assert shell.stdout.decode().split("=\n") == [
            "kernels:boot/a\nkernels:boot/b\n",
            "kernels:it's (1)\n",
            "kernels:it's (1)\n",
            "./a file\n",
            "",
        ]


class TestOutput:
    @pytest.mark.parametrize(
        ("count", "text"),
        [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB"), (None, "-")],
    )
    def test_sizes(self, count: object, text: str) -> None:
        assert output.binary_size(count) == text

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0 s"),
            (61, "1 min 1 s"),
            (90_000, "1 d 1 h"),
            (3600, "1 h 0 min"),
            (None, "-"),
            (float("inf"), "inf"),
        ],
    )
    def test_durations(self, seconds: object, text: str) -> None:
        assert output.duration(seconds) == text


class TestUnknownAndOdd:
    @staticmethod
    def of(**fields: Any) -> Stat:
        plain: dict[str, Any] = Stat.from_wire(Node().stat())._asdict()
        return Stat(**(plain | fields))

    @pytest.fixture
    def answer(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Stat], None]:
        """Make the client return one stat, for a file and for the one entry of a directory."""

        def use(found: Stat) -> None:
            entry = Entry("file", found.type, found.ino, found)
            monkeypatch.setattr(Client, "stat", lambda *_, **__: found)
            monkeypatch.setattr(PatientClient, "iterdir", lambda *_, **__: iter([entry]))

        return use

    def test_an_owner_that_is_not_known(self, run: Run, answer: Callable[[Stat], None]) -> None:
        answer(self.of(uid=None, gid=None))
        assert run("ls", "-l", "kernels:")[1] == "-rw-r--r-- 1 ? ? 0 2020-09-13 12:26 file\n"
        assert "   owner  ?:?\n" in run("stat", "kernels:file")[1]
        assert json.loads(run("stat", "--json", "kernels:file")[1])["uid"] is None
        assert json.loads(run("ls", "--json", "kernels:")[1])[0]["gid"] is None
        assert run("tree", "kernels:")[0] == run("tree", "--json", "kernels:")[0] == 0

    @pytest.mark.parametrize("number", [-1, (1 << 64) - 1, -(1 << 63), 10**30])
    def test_numbers_out_of_range(
        self, run: Run, answer: Callable[[Stat], None], number: int
    ) -> None:
        fields = ("mode", "size", "ino", "nlink", "uid", "rdev", "atime_ns", "mtime_ns", "ctime_ns")
        answer(self.of(type="char", **dict.fromkeys(fields, number)))
        for arguments in (("ls", "-l", "kernels:"), ("stat", "kernels:file")):
            code, out, err = run(*arguments)
            assert (code, err) == (0, "")
            assert "file" in out


def test_the_fault_of_a_fake_is_an_error_map() -> None:
    assert FaultError("EIO", "x", errno=5).wire == {"code": "EIO", "message": "x", "errno": 5}
