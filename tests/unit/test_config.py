"""The daemon's command line: what it accepts, and its messages about the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vuserd import cli
from vuserd.config.arguments import (
    check_names,
    parse_adopted,
    parse_export,
    parse_seconds,
    parse_size,
)
from vuserd.config.model import ExportConfig
from vuserd.errors import ConfigurationError


def test_an_export(tmp_path: Path) -> None:
    export = parse_export(f"kernels={tmp_path}")
    assert (export.name, export.directory, export.socket) == ("kernels", str(tmp_path), None)
    assert export.source == str(tmp_path)


def test_an_adopted_backend() -> None:
    export = parse_adopted("root=/run/vfs.sock")
    assert (export.name, export.directory, export.source) == (
        "root",
        None,
        "unix:/run/vfs.sock",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernels", "give it as NAME=DIR"),
        ("kernels=", "give it as NAME=DIR"),
        ("=/boot", "export name ''"),
        ("a:b=/", "export name 'a:b'"),
    ],
)
def test_a_wrong_export(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_export(text)


@pytest.mark.parametrize("text", ["root", "root=", "a b=/run/vfs.sock"])
def test_a_wrong_adopted_backend(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_adopted(text)


@pytest.mark.parametrize("parse", [parse_export, parse_adopted])
def test_a_working_directory_that_was_removed(
    parse: Callable[[str], ExportConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert parse("a=/x").name == "a"
    with pytest.raises(ConfigurationError, match="x is relative to the working directory: no such"):
        parse("a=x")


def test_two_of_one_name() -> None:
    with pytest.raises(ConfigurationError, match="two exports are named a: / and unix:/s"):
        check_names((parse_export("a=/"), parse_adopted("a=/s")))


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("64K", 65536), ("3M", 3 << 20), ("2G", 2 << 30)]
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size("--image-cache", text) == size


@pytest.mark.parametrize("text", ["", "-1", "1T", "G", "1.5G", "1 G", "\u0661"])
def test_no_size(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a size"):
        parse_size("--image-cache", text)


def test_a_time() -> None:
    assert parse_seconds("--timeout", "2.5") == 2.5


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "ten", "1e9"])
def test_no_time(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a time"):
        parse_seconds("--timeout", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve"),
        (["--export", "a="], "give it as NAME=DIR"),
        (["--export", "a=/", "--export", "a=/usr"], "two exports are named a"),
        (["--adopt", "a=/run//s", "--socket", "/run/s"], "--adopt a=/run/s: it is where clients"),
        (["--adopt", "a=/s", "--adopt", "b=/./s"], "--adopt b=/s: export a has this socket"),
        (["--export", "a=/", "--image-cache", "lots"], "--image-cache lots: not a size"),
        (["--export", "a=/", "--image-cache", ""], "--image-cache : not a size"),
        (["--export", "a=/", "--timeout", ""], "--timeout : not a time"),
        (["--export", "a=/", "--socket", ""], "--socket is an empty string"),
        (["--export", "a=/", "--backend", ""], "--backend is an empty string"),
        (["--config", ""], "--config is an empty string"),
    ],
)
def test_wrong_usage_gives_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vuserd: ")
    assert message in err
