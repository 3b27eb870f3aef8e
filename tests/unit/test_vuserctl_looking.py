"""vuserctl's ls, tree and stat as people type them: options, operands, patterns, a terminal."""

import json
import math
import os
import pty
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fake.rpc_server import IMAGE, FakeDaemon, FaultError, Node, directory
from tests.running import RunningDaemon
from tests.unit.conftest import Run, Start
from vuserd.client.records import Entry
from vuserd.ctl.looking.colours import Colours
from vuserd.ctl.looking.layout import name_columns
from vuserd.ctl.output import rounded_size
from vuserd.wire.codec import Request, encode_response

YEAR_NS = 365 * 86400 * 10**9


@pytest.fixture(autouse=True)
def _tree(fake_daemon: FakeDaemon) -> None:
    """Have kernels of several ages and sizes, a hidden one, and no name that is odd."""
    boot = fake_daemon.root.children[b"boot"].children
    boot.clear()
    for number in range(1, 4):
        stamp = number * YEAR_NS
        boot[b"vmlinuz-%d" % number] = Node(content=bytes(7000 // number), mtime_ns=stamp)
    boot[b".hidden"] = Node()
    boot[b"dtbs"] = directory(**{"a.dtb": Node(), "b.dtb": Node()})
    for name in (b"\xff", b"odd"):
        del fake_daemon.root.children[name]


def on_terminal(start: Start, *arguments: str, columns: int = 60) -> str:
    """Return what a command prints on a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    plain = {key: os.environ[key] for key in os.environ if key not in ("COLUMNS", "NO_COLOR")}
    process = start(*arguments, stdout=theirs, env=plain | {"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that the other side is closed
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert process.wait() == 0
    return shown.decode().replace("\r\n", "\n")


class TestLs:
    def test_sizes_that_a_person_reads(self, run: Run) -> None:
        out = run("ls", "-lh", "kernels:")[1]
        assert "-rw-r--r-- 1 1000 100 293K 2020-09-13 12:26 image\n" in out
        assert "usage: vuserctl ls" in run("ls", "--help")[1]

    @pytest.mark.parametrize(
        ("count", "text"),
        [
            (0, "0"), (1023, "1023"), (1024, "1.0K"), (1025, "1.1K"), (10_137, "9.9K"),
            (10_240, "10K"), (1023 << 10, "1023K"), ((1023 << 10) + 1, "1.0M"), (5 << 40, "5.0T"),
            (3 << 80, str(3 << 80)), (-5, "-5"),
        ],
    )  # fmt: skip
    def test_sizes(self, count: int, text: str) -> None:
        """As coreutils rounds them: up."""
        assert rounded_size(count) == text

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ([], [".hidden", "dtbs", "vmlinuz-1", "vmlinuz-2", "vmlinuz-3"]),
            (["-r"], ["vmlinuz-3", "vmlinuz-2", "vmlinuz-1", "dtbs", ".hidden"]),
            (["-t"], [".hidden", "dtbs", "vmlinuz-3", "vmlinuz-2", "vmlinuz-1"]),
            (["-Sr"], ["dtbs", ".hidden", "vmlinuz-3", "vmlinuz-2", "vmlinuz-1"]),
            (["-a1"], [".", "..", ".hidden", "dtbs", "vmlinuz-1", "vmlinuz-2", "vmlinuz-3"]),
            (["-d"], ["boot"]),
        ],
    )
    def test_order(self, run: Run, options: list[str], names: list[str]) -> None:
        # What is typed behind the operand counts, too.
        assert run("ls", "kernels:boot", *options) == (0, "".join(f"{n}\n" for n in names), "")

    def test_what_a_link_leads_to(self, run: Run) -> None:
        out = run("ls", "-l", "kernels:")[1]
        assert "      6 2020-09-13 12:26 link -> /image\n" in out
        out = run("ls", "-lL", "kernels:")[1]
        assert " 300001 2020-09-13 12:26 link\n" in out
        assert run("ls", "-ldL", "kernels:link")[1].startswith("-rw-r--r-- 1 1000 100 300001")

    def test_a_link_that_leads_nowhere(self, run: Run, fake_daemon: FakeDaemon) -> None:
        """As coreutils have it: it is there."""
        fake_daemon.root.children[b"dangling"] = Node("symlink", b"nowhere")
        assert run("ls", "kernels:dang*") == (0, "dangling\n", "")
        assert run("ls", "-l", "kernels:dangling")[1].endswith(" dangling -> nowhere\n")
        said = "vuserctl: kernels:dangling: no such file or directory (ENOENT)\n"
        assert run("ls", "-L", "kernels:dangling") == (1, "", said)

    def test_several(self, run: Run) -> None:
        code, out, err = run(
            "ls", "kernels:boot/dtbs", "kernels:no", "kernels:image", "kernels:link"
        )
        assert (code, out) == (1, "image\nlink\n\nkernels:boot/dtbs:\na.dtb\nb.dtb\n")
        assert err == "vuserctl: kernels:no: no such file or directory (ENOENT)\n"

    def test_links_of_that_name_in_several_exports(
        self, run: Run, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find = fake_daemon.find
        others = Node("symlink", b"of-others")

        def find_in(export: object, path: object, *, follow: bool = True) -> Node:
            return others if export == "others" else find(export, path, follow=follow)

        monkeypatch.setattr(fake_daemon, "find", find_in)
        out = run("ls", "-l", "kernels:link", "others:link")[1]
        assert [line.split()[-3:] for line in out.splitlines()] == [
            ["kernels:link", "->", "/image"],
            ["others:link", "->", "of-others"],
        ]
        found = json.loads(run("ls", "--json", "kernels:link", "others:link")[1])[""]
        assert [entry["target"] for entry in found] == ["/image", "of-others"]

    def test_all_below(self, run: Run) -> None:
        assert run("ls", "-R", "kernels:boot")[1] == (
            "kernels:boot:\n.hidden\ndtbs\nvmlinuz-1\nvmlinuz-2\nvmlinuz-3\n\n"
            "kernels:boot/dtbs:\na.dtb\nb.dtb\n"
        )
        assert run("ls", "-Ra", "kernels:boot/dtbs")[1] == (
            "kernels:boot/dtbs:\n.\n..\na.dtb\nb.dtb\n"
        )

    @pytest.mark.parametrize("options", ["-RL", "-lRL"])
    def test_links_that_lead_upwards(self, run: Run, fake_daemon: FakeDaemon, options: str) -> None:
        """They are told, as ls does: listed each time, two of them would take for ever."""
        boot = fake_daemon.root.children[b"boot"].children
        boot[b"up"] = boot[b"dtbs"].children[b"again"] = Node("symlink", b"/boot")
        boot[b"dtbs"].children[b"self"] = Node("symlink", b"/boot/dtbs")
        boot[b"other"] = Node("symlink", b"/kits")
        fake_daemon.root.children[b"kits"] = directory(kit=Node())
        code, out, err = run("ls", options, "kernels:boot")
        assert (code, [line for line in out.splitlines() if line.endswith(":")]) == (
            1,
            ["kernels:boot:", "kernels:boot/dtbs:", "kernels:boot/other:"],
        )
        words = "leads to a directory above it, and is not listed"
        assert err.splitlines() == [
            f"vuserctl: kernels:boot/{name}: {words}" for name in ("up", "dtbs/again", "dtbs/self")
        ]

    def test_all_below_but_one(self, run: Run, fake_daemon: FakeDaemon) -> None:
        def refuse(request: Request) -> None:
            if request.method == "readdir" and request.params[1] == "boot/dtbs":
                fake_daemon.root.children[b"boot"].children.pop(b"dtbs", None)

        fake_daemon.before = refuse
        code, out, err = run("ls", "-R", "kernels:")
        assert (code, out.count("boot:")) == (1, 1)
        assert err == "vuserctl: kernels:boot/dtbs: no such file or directory (ENOENT)\n"

    def test_json(self, run: Run) -> None:
        several = json.loads(run("ls", "--json", "kernels:boot/dtbs", "kernels:image")[1])
        assert [entry["name"] for entry in several["kernels:boot/dtbs"]] == ["a.dtb", "b.dtb"]
        assert several[""][0]["size"] == len(IMAGE)
        assert [*json.loads(run("ls", "-R", "--json", "kernels:boot")[1])] == [
            "kernels:boot",
            "kernels:boot/dtbs",
        ]
        assert run("ls", "--json", "kernels:no")[:2] == (1, "[]\n")
        assert run("ls", "--json", "kernels:no", "kernels:nor")[:2] == (1, "{}\n")

    def test_exports(self, run: Run) -> None:
        assert run("ls") == (0, "kernels:\nbroken:\n", "")
        assert "no virtiofsd" in run("ls", "-l")[1]
        assert json.loads(run("ls", "--json")[1])[0]["name"] == "kernels"


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "found"),
        [
            ("boot/vmlinuz-[12]", ["boot/vmlinuz-1", "boot/vmlinuz-2"]),
            ("/b*/vmlinuz-?", ["/boot/vmlinuz-1", "/boot/vmlinuz-2", "/boot/vmlinuz-3"]),
            ("boot/.h*", ["boot/.hidden"]),
            ("boot/*dd*", []),
            ("*/dtbs/a.dtb", ["boot/dtbs/a.dtb"]),
            ("*/dtbs/no", []),
            (r"*/dtb\s/*", ["boot/dtbs/a.dtb", "boot/dtbs/b.dtb"]),
            (r"boot/\*", []),
            ("image/*", []),
        ],
    )
    def test_matches(self, run: Run, pattern: str, found: list[str]) -> None:
        code, out, err = run("ls", "-d", f"kernels:{pattern}")
        assert out == "".join(f"{path}\n" for path in found)
        none = f"vuserctl: kernels:{pattern}: ".replace("\\", "\\\\")
        assert (code, err.startswith(none)) == ((0, False) if found else (1, True))

    def test_a_file_that_is_named_so(self, run: Run, fake_daemon: FakeDaemon) -> None:
        """What was fetched by its name before there were patterns still is."""
        names = {b"a[1]": b"x", b"a1": b"y", b"*": b"star", b"back\\slash": b"z"}
        for name, content in names.items():
            fake_daemon.root.children[name] = Node(content=content)
        assert run("cat", "kernels:a[1]", "kernels:*", "kernels:back\\slash")[1] == "xstarz"
        assert run("cat", r"kernels:\*")[1] == "star"
        assert run("cat", r"kernels:a\[1]")[1] == "x"
        assert run("cat", "kernels:a[!2]")[1] == "y"

    def test_closed_directories(
        self, run: Run, fake_daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They hold back no others; where nothing matches, they may be why."""
        fake_daemon.root.children[b"a"] = directory(dtbs=Node())

        really = fake_daemon.find

        def find(export: object, path: object, *, follow: bool = True) -> Node:
            if path in ("a", "a/dtbs"):
                raise FaultError("EACCES", "permission denied", errno=13)
            return really(export, path, follow=follow)

        monkeypatch.setattr(fake_daemon, "find", find)
        assert run("ls", "-d", "kernels:*/dtbs") == (0, "boot/dtbs\n", "")
        assert run("ls", "-d", "kernels:*/d*") == (0, "boot/dtbs\n", "")
        for pattern in ("a/d*", "[a]/dtbs"):
            said = f"vuserctl: kernels:{pattern}: permission denied (EACCES)\n"
            assert run("ls", "-d", f"kernels:{pattern}") == (1, "", said)

    def test_faults(self, run: Run) -> None:
        said = "vuserctl: nothing:*: no export nothing (UNKNOWN_EXPORT)\n"
        assert run("cat", "nothing:*") == (1, "", said)


class TestTerminal:
    def test_columns_and_colours(self, start: Start) -> None:
        out = on_terminal(start, "ls", "kernels:boot")
        assert out == (
            ".hidden  vmlinuz-1  vmlinuz-3\n\x1b[01;34mdtbs\x1b[0m     vmlinuz-2\n"
        ) or out == (".hidden  \x1b[01;34mdtbs\x1b[0m  vmlinuz-1  vmlinuz-2  vmlinuz-3\n")
        assert on_terminal(start, "ls", "-1", "--color=never", "kernels:boot/dtbs") == (
            "a.dtb\nb.dtb\n"
        )

    def test_columns_are_read_downwards(self) -> None:
        names = ["a", "bbbb", "cc", "d", "e", "ff", "日本"]
        entries = [Entry(name, "file", 1) for name in names]

        def laid_out(width: int) -> list[str]:
            return list(name_columns(entries, lambda _, text: text, width))

        assert laid_out(80) == ["a  bbbb  cc  d  e  ff  日本"]
        assert laid_out(15) == ["a     d   日本", "bbbb  e", "cc    ff"]
        assert laid_out(1) == names
        assert list(name_columns([], lambda _, text: text, 80)) == []

    def test_colours_in_a_pipe(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LS_COLORS", "*.dtb=35:di=0:fi=1\x1b[31m")
        assert run("ls", "--color", "always", "kernels:boot/dtbs")[1] == (
            "\x1b[35ma.dtb\x1b[0m\n\x1b[35mb.dtb\x1b[0m\n"
        )
        assert run("ls", "--color=always", "kernels:")[1].startswith("boot\n")
        assert "\x1b" not in run("ls", "kernels:boot/dtbs")[1]

    @pytest.mark.parametrize(
        ("kind", "permissions", "name", "code"),
        [
            ("dir", 0o755, "d", "di"), ("dir", 0o1777, "d", "tw"), ("dir", 0o1755, "d", "di"),
            ("symlink", 0o777, "l", "ln"), ("char", 0o644, "c", "cd"), ("fifo", 0o644, "p", "pi"),
            ("file", 0o755, "x.c", "ex"), ("file", 0o644, "x.c", "*.c"), ("file", 0o644, "x", "-"),
        ],
    )  # fmt: skip
    def test_which(self, kind: str, permissions: int, name: str, code: str) -> None:
        keys = ["di", "tw", "ln", "cd", "pi", "ex", "*.c"]
        palette = Colours(":".join(f"{key}={at}" for at, key in enumerate(keys, 1)) + ":bad:x=\x07")
        stat = Node(kind, permissions=permissions).stat()
        entry = Entry.from_wire(stat | {"name": name})
        painted = f"\x1b[{keys.index(code) + 1}mx\x1b[0m" if code in keys else "x"
        assert palette.paint(entry, "x") == painted


class TestTreeAndStat:
    def test_depth(self, run: Run) -> None:
        out = run("tree", "-L", "1", "kernels:")[1]
        assert out.startswith("kernels:\n├── boot\n├── empty\n")
        assert out.endswith("\n\n1 directory, 4 files\n")
        assert "a.dtb" not in run("tree", "-L", "2", "--json", "kernels:")[1]

    def test_stat_of_several(self, run: Run) -> None:
        code, out, err = run("stat", "kernels:image", "kernels:no", "kernels:link")
        assert code == 1
        assert out.count("    file  ") == 2
        assert err == "vuserctl: kernels:no: no such file or directory (ENOENT)\n"
        image, link = json.loads(run("stat", "--json", "kernels:image", "kernels:link")[1])
        assert (image["size"], link["target"]) == (len(IMAGE), "/image")


class TestFind:
    @pytest.mark.parametrize(
        ("tests", "found"),
        [
            (["-name", "*.dtb"], ["dtbs/a.dtb", "dtbs/b.dtb"]),
            (["-iname", "A.DT?"], ["dtbs/a.dtb"]),
            (["-type", "d"], ["", "dtbs"]),
            (["-type", "d,f", "-name", "d*"], ["dtbs"]),
            (["-size", "+3k"], ["vmlinuz-1", "vmlinuz-2"]),
            (["-size", "7000c"], ["vmlinuz-1"]),
            (["-type", "f", "-size", "-1k"], [".hidden", "dtbs/a.dtb", "dtbs/b.dtb"]),
            (["-size", "14"], ["vmlinuz-1"]),
            (["-newer", "kernels:boot/vmlinuz-2", "-name", "v*"], ["vmlinuz-3"]),
            (["-maxdepth", "0"], [""]),
            (["-maxdepth", "1", "-name", "d*"], ["dtbs"]),
            (["-name", "boot"], [""]),
        ],
    )
    def test_tests(self, run: Run, tests: list[str], found: list[str]) -> None:
        names = [f"kernels:boot/{name}".rstrip("/") for name in found]
        assert run("find", "kernels:boot", *tests) == (0, "".join(f"{n}\n" for n in names), "")

    def test_newer_than_a_local_file(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "a:b").touch()
        os.utime(tmp_path / "a:b", ns=(0, 2 * YEAR_NS))
        assert run("find", "kernels:boot", "-name", "v*", "-newer", str(tmp_path / "a:b"))[1] == (
            "kernels:boot/vmlinuz-3\n"
        )
        code, _, err = run("find", "kernels:boot", "-newer", "./no:file")
        assert (code, err) == (1, "vuserctl: ./no:file: no such file or directory (ENOENT)\n")
        code, _, err = run("find", "kernels:boot", "-newer", "kernels:no")
        assert (code, err) == (1, "vuserctl: kernels:no: no such file or directory (ENOENT)\n")

    def test_several_and_how_they_are_printed(self, run: Run) -> None:
        both = ("kernels:image", "kernels:no", "kernels:link")
        code, out, err = run("find", "-print0", *both)
        assert (code, out) == (1, "kernels:image\0kernels:link\0")
        assert err == "vuserctl: kernels:no: no such file or directory (ENOENT)\n"
        [found] = json.loads(run("find", "--json", "kernels:", "-type", "l")[1])
        assert (found["path"], found["size"]) == ("kernels:link", 6)

    @pytest.mark.parametrize(
        "tests", [["-type", "x"], ["-size", "big"], ["-size", "-1.5M"], ["-newer", ":no"]]
    )
    def test_wrong(self, run: Run, tests: list[str]) -> None:
        code, _, err = run("find", "kernels:", *tests)
        assert (code, err.startswith("usage: vuserctl find")) == (2, True)

    def test_what_cannot_be_listed(self, run: Run, fake_daemon: FakeDaemon) -> None:
        def refuse(request: Request) -> None:
            if request.method == "readdir" and request.params[1] == "boot/dtbs":
                fake_daemon.root.children[b"boot"].children.pop(b"dtbs", None)

        fake_daemon.before = refuse
        said = "vuserctl: kernels:boot/dtbs: no such file or directory (ENOENT)\n"
        assert run("find", "kernels:boot", "-type", "d") == (
            1,
            "kernels:boot\nkernels:boot/dtbs\n",
            said,
        )


class TestDu:
    @pytest.fixture(autouse=True)
    def _blocks(self, fake_daemon: FakeDaemon) -> None:
        boot = fake_daemon.root.children[b"boot"]
        for node in (boot, *boot.children.values()):
            node.blocks = 8
        dtbs = boot.children[b"dtbs"].children
        dtbs[b"a.dtb"].blocks = 2048
        dtbs[b"b.dtb"].blocks = 1

    def test_directories(self, run: Run) -> None:
        dtbs, boot = 4 + 1024 + 0.5, 4 + 4 * 4
        assert run("du", "kernels:boot")[1] == (
            f"{math.ceil(dtbs)}\tkernels:boot/dtbs\n{math.ceil(boot + dtbs)}\tkernels:boot\n"
        )
        assert run("du", "-sh", "kernels:boot")[1] == "1.1M\tkernels:boot\n"
        assert run("du", "-d", "1", "-h", "kernels:", "kernels:image")[1].splitlines()[0] == (
            "1.1M\tkernels:boot"
        )
        [found] = json.loads(run("du", "-s", "--json", "kernels:boot/dtbs")[1])
        assert found == {"path": "kernels:boot/dtbs", "bytes": int(dtbs * 1024)}

    def test_a_file_and_what_is_missing(self, run: Run) -> None:
        code, out, err = run("du", "kernels:boot/dtbs/a.dtb", "kernels:no")
        assert (code, out) == (1, "1024\tkernels:boot/dtbs/a.dtb\n")
        assert err == "vuserctl: kernels:no: no such file or directory (ENOENT)\n"

    def test_another_file_system_has_numbers_of_its_own(
        self, run: Run, fake_daemon: FakeDaemon
    ) -> None:
        stat = Node().stat() | {"nlink": 2, "ino": 7, "blocks": 8}
        mounted = Node("dir").stat() | {"submount": True, "blocks": 0, "name": "mounted"}
        pages = {"": [stat | {"name": "a"}, mounted], "mounted": [stat | {"name": "b"}]}

        def listed(request: Request) -> bytes:
            answer = {"entries": pages[request.params[1]], "next": None}
            return encode_response(request.msgid, None, answer)

        fake_daemon.raw["readdir"] = listed
        fake_daemon.root.blocks = 0
        assert run("du", "kernels:")[1] == "4\tkernels:mounted\n8\tkernels:\n"

    def test_what_cannot_be_listed(self, run: Run, fake_daemon: FakeDaemon) -> None:
        def refuse(request: Request) -> None:
            if request.method == "readdir" and request.params[1] == "boot/dtbs":
                fake_daemon.root.children[b"boot"].children.pop(b"dtbs", None)

        fake_daemon.before = refuse
        code, out, err = run("du", "-s", "kernels:boot")
        assert (code, out) == (1, "24\tkernels:boot\n")
        assert err == "vuserctl: kernels:boot/dtbs: no such file or directory (ENOENT)\n"

    def test_hard_links(self, run: Run, fake_daemon: FakeDaemon) -> None:
        """A file is counted once on its file system; on another one it is another file."""
        stat = Node().stat() | {"nlink": 2, "ino": 7, "blocks": 8}
        entries = [stat | {"name": name} for name in ("a", "b")]
        fake_daemon.results["readdir"] = {"entries": entries, "next": None}
        fake_daemon.root.blocks = 0
        assert run("du", "-s", "kernels:")[1] == "4\tkernels:\n"
        assert run("du", "-s", "kernels:", "kernels:")[1] == "4\tkernels:\n4\tkernels:\n"


def test_over_a_real_backend(virtiofsd: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "top/boot").mkdir(parents=True)
    (tmp_path / "top/boot/vmlinuz-1").write_bytes(bytes(5000))
    (tmp_path / "top/boot/latest").symlink_to("vmlinuz-1")
    with RunningDaemon({"files": tmp_path / "top"}, tmp_path / "s", virtiofsd) as running:
        out = run("--socket", running.socket, "ls", "-lhSL", "files:/b*", socket=False)[1]
        tests = ("-name", "vm*", "-size", "+4k", "-newer", "/etc/os-release")
        assert run("--socket", running.socket, "find", "files:", *tests, socket=False) == (
            0,
            "files:boot/vmlinuz-1\n",
            "",
        )
        space = run("--socket", running.socket, "du", "-s", "files:", socket=False)[1]
    measured = subprocess.run(["du", "-s", tmp_path / "top"], capture_output=True, check=True)
    assert space.split()[0] == measured.stdout.decode().split()[0]
    assert [line.split()[4::3] for line in out.splitlines()] == [
        ["4.9K", "latest"],
        ["4.9K", "vmlinuz-1"],
    ]
