"""The manual pages agree with the code about commands, options and keys, and render."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.running import REPOSITORY
from vuserd import cli
from vuserd.client.errors import TimedOut
from vuserd.config.files import read_config
from vuserd.config.schema import SHARED, TABLES, Key, heading
from vuserd.ctl import main

PAGES: Final = sorted((REPOSITORY / "docs" / "man").iterdir())
HELP: Final = {"-h", "--help"}
#: A macro's name, which is no word of the text.
_MACRO: Final = re.compile(
    r"^\.[A-Z][a-z]\b|(?<=\s)(?:Li|Ar|Fl|Ic|Cm|Pa|Ns|Oo|Oc|Op|Xr|Ev|Dv|Er)\s"
)


def source(name: str) -> str:
    """Return a page, with quotes for their escapes."""
    return (REPOSITORY / "docs" / "man" / name).read_text().replace(r"\(dq", '"')


def section(page: str, title: str) -> str:
    """Return what stands below a heading, up to the next one of any rank."""
    parts = re.split(r"^\.S[hs] (.+)\n", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def words(text: str) -> str:
    """Return what a reader sees, more or less: enough to look for a sentence."""
    lines = (_MACRO.sub("", line) for line in text.splitlines())
    return re.sub(r"\s+", " ", " ".join(lines)).casefold()


class Item(NamedTuple):
    """An entry of a list: what stands in its head, and the text below up to the next one."""

    head: str
    text: str


def items(text: str) -> list[Item]:
    """Return the entries of the lists of a section; those of lists inside them follow."""
    parts = re.split(r"^\.It (.+)\n", text, flags=re.MULTILINE)
    return [Item(*parts[at : at + 2]) for at in range(1, len(parts), 2)]


def flags(head: str) -> set[str]:
    """Return the options in an entry's head: ``Fl l`` is -l, and ``Fl -long`` is --long."""
    return {f"-{flag}" for flag in re.findall(r"\bFl (\S+)", head)}


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    return dict(action.choices)


def options(parser: argparse.ArgumentParser) -> set[str]:
    return set(parser._option_string_actions)


def _is_help(parser: argparse.ArgumentParser, option: str) -> bool:
    return isinstance(parser._option_string_actions[option], argparse._HelpAction)


def arguments(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of positional arguments, as usage shows them."""
    actions = parser._get_positional_actions()
    return [str(action.metavar or action.dest.upper()) for action in actions]


# -- options ---------------------------------------------------------------------------------------


def test_the_commands_and_options_of_the_daemon() -> None:
    page = source("vuserd.8")
    parser = cli._parser()
    sections = set(re.findall(r"^\.Ss vuserd (\w+)$", page, re.MULTILINE))
    assert sections == set(subcommands(parser))
    for name, command in subcommands(parser).items():
        documented = [flags(item.head) for item in items(section(page, f"vuserd {name}"))]
        assert set().union(*documented) == options(command) - HELP, name
        assert sum(map(len, documented)) == len(options(command) - HELP), f"{name}: one is twice"
    assert options(parser) - HELP == {"--version"}
    synopsis = section(page, "SYNOPSIS")
    for name, command in subcommands(parser).items():
        lines = re.findall(rf"^\.Cm {name}\n((?:\.(?!Nm).*\n)*)", synopsis, re.MULTILINE)
        assert lines, name
        longest = {option for option in options(command) - HELP if option != "--verbose"}
        assert set().union(*map(flags, lines)) == longest


def test_the_values_that_options_of_the_daemon_take() -> None:
    page = source("vuserd.8")
    for name, command in subcommands(cli._parser()).items():
        heads = [item.head for item in items(section(page, f"vuserd {name}"))]
        for action in command._actions:
            if action.metavar and action.option_strings:
                flag = action.option_strings[-1].removeprefix("-")
                assert f"Fl {flag} Ar {action.metavar}" in heads


def test_the_commands_and_options_of_the_client() -> None:
    page = source("vuserctl.1")
    parser = main.parser()
    common = set().union(*(flags(item.head) for item in items(section(page, "Options"))))
    assert common == options(parser)
    found: dict[str, tuple[str, set[str]]] = {}
    name = ""
    for item in items(section(page, "Commands")):
        if match := re.match(r"Cm (\S+)", item.head):
            name = match[1]
            assert name not in found
            found[name] = (item.head, set())
        else:
            found[name][1].update(flags(item.head))
    commands = subcommands(parser)
    assert set(found) == set(commands)
    for name, command in commands.items():
        head, documented = found[name]
        own_h = {"-h"} if "-h" in options(command) and not _is_help(command, "-h") else set()
        assert documented == options(command) - common | own_h, name
        assert re.findall(r"Ar ([A-Z:]+)", head) == arguments(command), name
        optional = set(re.findall(r"Op Ar ([A-Z:]+)", head))
        assert optional == {
            str(action.metavar)
            for action in command._get_positional_actions()
            if action.nargs == "?"
        }


# -- keys ------------------------------------------------------------------------------------------

_KEY: Final = re.compile(
    r"Ic (?P<name>\w+) Pq (?P<kind>\w+)(?: , (?P<required>required)| , default Li (?P<default>.+))?"
)


def documented_keys(title: str) -> Iterator[tuple[str, re.Match[str], Item]]:
    for item in items(section(source("vuserd.toml.5"), title)):
        match = _KEY.fullmatch(item.head)
        assert match is not None, item.head
        yield match["name"], match, item


@pytest.mark.parametrize("table", TABLES)
def test_the_keys_of_the_configuration(table: str) -> None:
    keys = TABLES[table].keys
    expected = [name for name in keys if table != "export" or name not in SHARED]
    found = list(documented_keys(heading(table) if table else "The top"))
    assert [name for name, _, _ in found] == expected
    for name, match, item in found:
        key: Key = keys[name]
        assert match["kind"] == key.kind.name
        assert bool(match["required"]) is key.required
        assert (match["default"] or "") == key.default, name
        assert words(key.text) in words(item.text)
        if key.kind.name == "choice":
            for word in re.findall(r'"(\w+)"', key.kind.right):
                assert re.search(rf"^\.Li {word}\b", item.text, re.MULTILINE), (name, word)


def test_the_keys_that_exports_share_with_the_top_are_between_these() -> None:
    names = list(SHARED)
    text = words(section(source("vuserd.toml.5"), "[[export]]"))
    assert f"the keys from {names[0]} to {names[-1]} , above, may follow" in text


ReadExample = Callable[[str], list[str]]


@pytest.fixture
def read_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReadExample:
    """Read a configuration where its users and groups exist; return its exports' names."""
    monkeypatch.setattr("vuserd.config.values.number_of", lambda _: 1000)

    def read(text: str) -> list[str]:
        moved = re.sub(r'^path = "(?=/)', f'path = "{tmp_path}', text, flags=re.MULTILINE)
        for path in re.findall(r'^path = "(.+)"', moved, re.MULTILINE):
            Path(path).mkdir(parents=True, exist_ok=True)
        file = tmp_path / "vuserd.toml"
        file.write_text(moved)
        return [export.name for export in read_config([str(file)], "@d").exports]

    return read


def test_the_example_of_the_page_is_right(read_example: ReadExample) -> None:
    text = section(source("vuserd.toml.5"), "EXAMPLES")
    examples = re.findall(r"^\.Bd .*\n((?:.*\n)*?)\.Ed", text, re.MULTILINE)
    assert read_example("\n".join(examples)) == ["kernels", "trees"]


# -- the example file ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vuserd.toml", "vuserd.toml.example"])
def test_the_files_to_begin_with_are_right(name: str, read_example: ReadExample) -> None:
    read_example((REPOSITORY / "systemd" / name).read_text())


def test_the_example_file_has_every_key_and_is_right(read_example: ReadExample) -> None:
    text = (REPOSITORY / "systemd" / "vuserd.toml.example").read_text()
    assert read_example(text) == ["kernels"]
    whole = re.sub(r"^#(?=\w+ = |\[)", "", text, flags=re.MULTILINE)
    assert read_example(whole) == ["kernels", "root"]
    parts = re.split(r"^\[+(\w+)\]+\n", whole, flags=re.MULTILINE)
    for name, table in TABLES.items():
        stands = "".join(
            text
            for title, text in zip(["", *parts[1::2]], parts[::2], strict=True)
            if title == name
        )
        given = dict(re.findall(r"^(\w+) = (.+)$", stands, re.MULTILINE))
        assert set(given) == set(table.keys) - (set(SHARED) if name == "export" else set())
        if not table.repeated:
            for key, value in given.items():
                assert value == (table.keys[key].default or value)


# -- rendering -------------------------------------------------------------------------------------


def test_there_are_three_pages() -> None:
    assert [page.name for page in PAGES] == ["vuserctl.1", "vuserd.8", "vuserd.toml.5"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_renders_without_a_warning(page: Path) -> None:
    commands = []
    if shutil.which("man") and shutil.which("groff"):
        commands.append("man --warnings -E UTF-8 -l -Tutf8 -Z")
    if shutil.which("mandoc"):
        commands.append("mandoc -T lint -W warning")
    if not commands:
        pytest.skip("there is neither man-db with groff nor mandoc")
    for command in commands:
        rendered = subprocess.run(
            [*shlex.split(command), str(page)],
            env=os.environ | {"LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        words = rendered.stderr + (rendered.stdout if command.startswith("mandoc") else "")
        complaints = [line for line in words.splitlines() if "outdated mandoc.db" not in line]
        assert (rendered.returncode, complaints) == (0, [])


@pytest.mark.skipif(shutil.which("mandb") is None, reason="there is no mandb (man-db)")
def test_apropos_finds_the_pages(tmp_path: Path) -> None:
    for page in PAGES:
        folder = tmp_path / f"man{page.suffix[1:]}"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(page, folder / page.name)
    plain = os.environ | {"LC_ALL": "C.UTF-8"}
    command = ["mandb", "--quiet", "--create", str(tmp_path)]
    subprocess.run(command, env=plain, capture_output=True, check=True)
    found = {
        word: subprocess.run(
            ["man", "-M", str(tmp_path), "-k", word],
            env=plain,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for word in ("vuserctl", "vuserd")
    }
    assert [line.split(" - ")[0].split() for line in found["vuserd"]] == [
        ["vuserctl", "(1)"],
        ["vuserd", "(8)"],
        ["vuserd.toml", "(5)"],
    ]
    [line] = found["vuserctl"]
    assert line.endswith(" - list and fetch what the vuserd daemon exports")


def test_the_manual_says_what_a_timeout_prints() -> None:
    message = str(TimedOut.after(5)).replace("5", "N")
    assert f".Dq {message}\n" in source("vuserctl.1")


def test_each_command_has_examples_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in subcommands(main.parser()).items():
        command.print_help()
        _, colon, examples = capsys.readouterr().out.partition("examples:")
        assert colon, name
        assert f"vuserctl {name}" in examples
