"""Configuration files: each key with right and wrong values, and the messages about wrong ones."""

import contextlib
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vuserd.backend.process import BackendOptions
from vuserd.config.files import config_files, read_config
from vuserd.config.lines import find_lines
from vuserd.config.model import (
    Access,
    ClientLimits,
    DaemonConfig,
    ExportConfig,
    ListenConfig,
    RigConfig,
)
from vuserd.config.schema import BACKEND, SHARED, TABLES
from vuserd.device.session import SessionOptions
from vuserd.errors import ConfigurationErrors

SOCKET: Final = "/run/the-default.sock"


def read(*files: Path) -> DaemonConfig:
    return read_config([str(file) for file in files], SOCKET)


def problems(*files: Path) -> list[str]:
    with pytest.raises(ConfigurationErrors) as caught:
        read(*files)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vuserd.toml"


# -- one key at a time -----------------------------------------------------------------------------


class Sample(NamedTuple):
    """A key, what it may be, where that is in the model then, and what it may not be."""

    key: str
    #: As the file has it; DIR stands for a folder that is there.
    right: str
    found: Callable[[DaemonConfig], Any]
    expected: Any
    #: As the file has it, and what is said of it.
    wrong: Sequence[tuple[str, str]]


def export(config: DaemonConfig) -> ExportConfig:
    return config.exports[0]


def option(name: str) -> Callable[[DaemonConfig], Any]:
    return lambda config: getattr(config.exports[0].options, name)


def limit(name: str) -> Callable[[DaemonConfig], Any]:
    return lambda config: getattr(config.limits, name)


NOT_A_STRING: Final = ("3", "an integer is the wrong type")
RANGE: Final = "is out of range; give"
NO_SIZE: Final = (
    ('"1T"', '"1T" is not a size; give bytes'),
    ("-1", RANGE),
    ("1.5", "a number is the wrong type"),
    ("0xfffffffffffffffffff", "so large a number is out of range"),
)
NO_SECONDS: Final = (
    ('"5"', "a string is the wrong type; give seconds"),
    ("nan", f"nan {RANGE} seconds"),
    ("inf", RANGE),
    ("86401", RANGE),
    ("-0.1", RANGE),
    ("true", "a boolean is the wrong type"),
)
NO_COUNT: Final = (
    ("-1", RANGE),
    ("1.0", "a number is the wrong type; give an integer"),
    ("true", "a boolean is the wrong type"),
    ("9223372036854775808", RANGE),
)
NO_PATH: Final = (
    NOT_A_STRING,
    ('""', '"" is not a path'),
    ('"a\\u0000"', '"a\\u0000" is not a path'),
    ('"srv"', '"srv": a relative path; give the path from the root on, such as "DIR/srv"'),
    ('"~/srv"', "'~' stands for nothing here; give the path from the root on, such as \"/"),
)
NO_IDS: Final = (
    ('["a:b"]', '"a:b" cannot be the name of a '),
    ('["1000"]', '"1000" is a string; give a number without quotes'),
    ('["\\u0000"]', " cannot be the name of a "),
    ("[-1, 1.5]", "-1 cannot be the number of a "),
    ("[-1, 1.5]", ", a number is the wrong type; give"),
    ("[4294967295]", "4294967295 cannot be the number"),
    ("[[]]", "an array is the wrong type"),
    ('"root"', "a string is the wrong type; give names and numbers, such as ["),
)

SHARED_SAMPLES: Final = (
    Sample("timeout", "2", lambda c: export(c).session.timeout, 2.0, [*NO_SECONDS, ("0", RANGE)]),
    Sample("idle_nodes", "0", lambda c: export(c).idle_nodes, 0, NO_COUNT),
    Sample("idle_time", "0", lambda c: export(c).idle_time, 0.0, NO_SECONDS),
    Sample(
        "backend",
        '"/usr/libexec/virtiofsd"',
        lambda c: export(c).program,
        "/usr/libexec/virtiofsd",
        [NOT_A_STRING, ('"./virtiofsd"', "a relative path"), ('""', '"" is not a path')],
    ),
    Sample("restarts", "3", lambda c: export(c).restarts, 3, NO_COUNT),
    Sample(
        "sandbox",
        '"chroot"',
        option("sandbox"),
        "chroot",
        [NOT_A_STRING, ('"jail"', '"jail" is none of the choices; give one of "auto"')],
    ),
    Sample(
        "cache",
        '"metadata"',
        option("cache"),
        "metadata",
        [NOT_A_STRING, ('"none"', '"none" is none of the choices; give one of "never"')],
    ),
    Sample("thread_pool", "4", option("thread_pool"), 4, [*NO_COUNT, ("257", RANGE)]),
    Sample(
        "xattr",
        "true",
        option("xattr"),
        True,
        [('"true"', "a string is the wrong type; give true or false"), ("1", "an integer is")],
    ),
    Sample(
        "inode_file_handles",
        '"prefer"',
        option("inode_file_handles"),
        "prefer",
        [NOT_A_STRING, ('"yes"', '"yes" is none of the choices; give one of "never", "prefer"')],
    ),
    Sample("descriptors", "2048", option("descriptors"), 2048, [*NO_COUNT, ("1023", RANGE)]),
)

SAMPLES: Final = {
    "": (
        Sample("image_cache", '"64M"', lambda c: c.image_cache, 64 << 20, NO_SIZE),
        Sample("drain", "0", lambda c: c.drain, 0.0, NO_SECONDS),
        Sample(
            "metrics_file",
            '"DIR/vuserd.prom"',
            lambda c: c.metrics_file,
            "DIR/vuserd.prom",
            [
                *NO_PATH,
                ('"DIR/"', '"DIR/" is a directory; give the path of a file'),
            ],
        ),
        Sample("metrics_interval", "60", lambda c: c.metrics_interval, 60.0, NO_SECONDS),
        *SHARED_SAMPLES,
    ),
    "limits": (
        Sample("requests", "128", limit("requests"), 128, [*NO_COUNT, ("0", RANGE)]),
        Sample("payload", '"8M"', limit("payload"), 8 << 20, [*NO_SIZE, ("1000", RANGE)]),
        Sample("memories", "0", limit("memories"), 0, NO_COUNT),
        Sample("memory", '"1G"', limit("memory"), 1 << 30, NO_SIZE),
        Sample("walks", "1", limit("walks"), 1, [*NO_COUNT, ("0", RANGE)]),
        Sample("listings", "2", limit("listings"), 2, [*NO_COUNT, ("0", RANGE)]),
        Sample("files", "3", limit("files"), 3, [*NO_COUNT, ("0", RANGE)]),
        Sample("frame", "4096", limit("frame"), 4096, [*NO_SIZE, ("4095", RANGE)]),
        Sample("depth", "8", limit("depth"), 8, [*NO_COUNT, ("65", RANGE)]),
        Sample("stall", "0.5", limit("stall"), 0.5, [*NO_SECONDS, ("0", RANGE)]),
        Sample("user_connections", "9", limit("user_connections"), 9, [*NO_COUNT, ("0", RANGE)]),
        Sample("user_requests", "64", limit("user_requests"), 64, [*NO_COUNT, ("0", RANGE)]),
        Sample("user_payload", '"16M"', limit("user_payload"), 16 << 20, NO_SIZE),
        Sample("user_kept", "77", limit("user_kept"), 77, [*NO_COUNT, ("0", RANGE)]),
        Sample("user_remembered", '"8M"', limit("user_remembered"), 8 << 20, NO_SIZE),
        Sample("user_frames", '"8M"', limit("user_frames"), 8 << 20, NO_SIZE),
        Sample("user_images", '"8M"', limit("user_images"), 8 << 20, NO_SIZE),
        Sample("user_descriptors", "9", limit("user_descriptors"), 9, [*NO_COUNT, ("0", RANGE)]),
    ),
    "export": (
        Sample(
            "name",
            '"lib-2.x"',
            lambda c: export(c).name,
            "lib-2.x",
            [
                NOT_A_STRING,
                ('"a:b"', '"a:b" cannot be a name; use letters, digits'),
                ('"-a"', "the first no '-'"),
                (f'"{"n" * 65}"', "64 at most"),
            ],
        ),
        Sample(
            "path",
            '"DIR"',
            lambda c: export(c).directory,
            "DIR",
            [
                *NO_PATH,
            ],
        ),
        Sample(
            "socket",
            '"/run/vfs.sock"',
            lambda c: (export(c).socket, export(c).directory),
            ("/run/vfs.sock", None),
            [
                *NO_PATH,
                ('"@abstract"', "a relative path"),
                (f'"/{"s" * 107}"', "108 bytes are too long for a socket; give 107 at most"),
            ],
        ),
        Sample(
            "users",
            '["root", 1001, 1001]',
            lambda c: export(c).access,
            Access(users=frozenset({0, 1001})),
            NO_IDS,
        ),
        Sample(
            "groups",
            '["root", 2001]',
            lambda c: export(c).access,
            Access(groups=frozenset({0, 2001})),
            [
                *NO_IDS,
                ('["*"]', '"*" cannot be the name of a group'),
                ('"*"', "a string is the wrong type"),
            ],
        ),
        *SHARED_SAMPLES,
    ),
    "listen": (
        Sample(
            "socket",
            '"DIR/d.sock"',
            lambda c: c.listeners,
            (ListenConfig("DIR/d.sock"),),
            [
                *NO_PATH,
                ('"@"', '"@" is no abstract socket; give the path of a socket, or'),
                (f'"@{"s" * 107}"', "108 bytes are too long for a socket"),
                ('"DIR/"', '"DIR/" is a directory'),
            ],
        ),
        Sample(
            "mode",
            '"0660"',
            lambda c: c.listeners[0].mode,
            0o660,
            [
                ("660", "660 is a decimal number here; give the octal digits as a string, such as"),
                ("0o660", "432 is a decimal number here"),
                ('"rw"', '"rw" is no mode of a file; give three octal digits'),
                ('"4777"', '"4777" is no mode of a file'),
                ("true", "a boolean is the wrong type"),
            ],
        ),
        Sample(
            "group",
            '"root"',
            lambda c: c.listeners[0].group,
            0,
            [('"a:b"', '"a:b" cannot be the name of a group; give a name'), ("-1", "cannot be")],
        ),
    ),
    "rig": (
        Sample(
            "netns",
            '"rig-7"',
            lambda c: c.rigs[0].path,
            "/run/netns/rig-7",
            [
                NOT_A_STRING,
                ('""', '"" is no name of a namespace; give a name that "ip netns" shows, or'),
                ('".."', '".." is no name of a namespace'),
                ('"a/b"', "a relative path; give the path from the root on"),
            ],
        ),
        Sample(
            "exports",
            '["e"]',
            lambda c: c.rigs[0].exports,
            ("e",),
            [
                ('"e"', "a string is the wrong type; give names of exports, such as ["),
                ("[]", "none is given; give names of exports"),
                ('["e", "e"]', '"e" is there twice; give each once'),
                ("[1]", "an integer is the wrong type"),
                ('["e", "f"]', "there is no export f; the exports are: e"),
            ],
        ),
        Sample(
            "socket",
            '"@kernels"',
            lambda c: c.rigs[0].address,
            "@kernels",
            [
                NOT_A_STRING,
                ('"/run/d.sock"', "\"/run/d.sock\" is no abstract socket; give '@' and a name"),
            ],
        ),
    ),
}

#: What a table has to have, whatever else it has.
NEEDED: Final = {
    "export": {"name": '"e"', "path": '"/"'},
    "listen": {"socket": '"/d.sock"'},
    "rig": {"netns": '"n"', "exports": '["e"]'},
}
EACH: Final = [(table, sample) for table, samples in SAMPLES.items() for sample in samples]
EACH_WRONG: Final = [(*each, *wrong) for each in EACH for wrong in each[1].wrong]


def written(table: str, given: Mapping[str, str]) -> str:
    """Write a file in which one table has these keys, from line 3 on."""
    if not table:
        heading = "# the top"
    else:
        heading = f"[[{table}]]" if TABLES[table].repeated else f"[{table}]"
    lines = ["", heading, *(f"{key} = {value}" for key, value in given.items())]
    if table != "export":
        lines += ["[[export]]", *(f"{key} = {value}" for key, value in NEEDED["export"].items())]
    return "\n".join(lines)


def sampled(table: str, key: str, value: str) -> str:
    """Write a file for one key, on line 3."""
    instead_of = "path" if (table, key) == ("export", "socket") else key
    needed = {k: v for k, v in NEEDED.get(table, {}).items() if k not in (key, instead_of)}
    return written(table, {key: value} | needed)


def with_folder(value: Any, folder: Path) -> Any:
    """Put the folder in place of DIR."""
    if isinstance(value, ListenConfig):
        return ListenConfig(with_folder(value.address, folder))
    if isinstance(value, tuple):
        return tuple(with_folder(each, folder) for each in value)
    return value.replace("DIR", str(folder)) if isinstance(value, str) else value


def test_every_key_has_samples() -> None:
    sampled = {table: {sample.key for sample in samples} for table, samples in SAMPLES.items()}
    assert sampled == {table: set(content.keys) for table, content in TABLES.items()}
    assert all(sample.wrong for _, sample in EACH)


@pytest.mark.parametrize(("table", "sample"), EACH, ids=lambda each: getattr(each, "key", each))
def test_a_right_value(table: str, sample: Sample, file: Path) -> None:
    file.write_text(with_folder(sampled(table, sample.key, sample.right), file.parent))
    assert sample.found(read(file)) == with_folder(sample.expected, file.parent)


@pytest.mark.parametrize(
    ("table", "sample", "value", "message"),
    EACH_WRONG,
    ids=lambda each: getattr(each, "key", each),
)
def test_a_wrong_value(table: str, sample: Sample, value: str, message: str, file: Path) -> None:
    value, message = with_folder(value, file.parent), with_folder(message, file.parent)
    file.write_text(sampled(table, sample.key, value))
    (problem,) = problems(file)
    key = f"{table}.{sample.key}" if table else sample.key
    assert problem.startswith(f"{file}:3: {key}: ")
    assert message in problem
    assert "; " in problem  # and what would be right


@pytest.mark.parametrize("table", TABLES)
def test_the_defaults_are_those_of_the_model(table: str, file: Path) -> None:
    needed = NEEDED.get(table, {})
    defaults = {name: key.default for name, key in TABLES[table].keys.items() if key.default}
    file.write_text(written(table, needed))
    without = read(file)
    file.write_text(written(table, needed | defaults))
    assert read(file) == without


@pytest.mark.parametrize("table", ["export", "listen", "rig"])
def test_what_has_to_be_there(table: str, file: Path) -> None:
    file.write_text(written(table, {}))
    required = {name for name, key in TABLES[table].keys.items() if key.required}
    missing = {f"{table}.{name}" for name in required | ({"path"} if table == "export" else set())}
    found = problems(file)
    assert {problem.split(": ")[1] for problem in found} == missing
    assert all(problem.startswith(f"{file}:2: ") for problem in found)
    assert all(": is missing; " in problem for problem in found)


@pytest.mark.parametrize("sample", SHARED_SAMPLES, ids=lambda each: each.key)
def test_an_export_has_what_the_top_says_unless_it_says_else(sample: Sample, file: Path) -> None:
    default = SHARED[sample.key].default or '"virtiofsd"'
    top = f"{sample.key} = {sample.right}\n"
    mine = f'[[export]]\nname = "a"\npath = "/"\n{sample.key} = {default}\n'
    theirs = '[[export]]\nname = "b"\npath = "/"\n'
    file.write_text(top + mine + theirs)
    config = read(file)
    assert sample.found(config) != sample.expected
    assert sample.found(replace(config, exports=config.exports[1:])) == sample.expected


# -- several keys ----------------------------------------------------------------------------------


def test_without_files_there_are_the_defaults() -> None:
    assert read() == DaemonConfig((), ())


def test_a_whole_configuration(file: Path) -> None:
    file.write_text("""
        timeout = 3
        cache = "never"
        limits.requests = 9
        [[export]]
        name = "kernels"
        path = "/usr"
        users = "*"
        thread_pool = 2
        cache = "always"
        [[export]]
        name = "root"
        socket = "/run/vfs.sock"
        idle_nodes = 7
        [[listen]]
        socket = "/a.sock"
        mode = "0666"
        group = 0
        [[listen]]
        socket = "@b"
        [[rig]]
        netns = "one"
        exports = ["kernels"]
        [[rig]]
        netns = "one"
        exports = ["root", "kernels"]
        socket = "@more"
    """)
    session = SessionOptions(timeout=3.0)
    assert read(file) == DaemonConfig(
        (ListenConfig("/a.sock", 0o666, 0), ListenConfig("@b")),
        (
            ExportConfig(
                "kernels",
                directory="/usr",
                access=Access(everyone=True),
                options=BackendOptions(cache="always", thread_pool=2),
                session=session,
            ),
            ExportConfig(
                "root",
                socket="/run/vfs.sock",
                options=BackendOptions(cache="never"),
                session=session,
                idle_nodes=7,
            ),
        ),
        (RigConfig("one", ("kernels",)), RigConfig("one", ("root", "kernels"), "@more")),
        ClientLimits(requests=9),
    )


def test_everything_wrong_is_said_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("""timeot = 1
drain = "soon"
[[export]]
name = "e"
path = "no/such"
[[export]]
name = "e"
cache = 1
nonsense = 2
""")
    second.write_text("""[limits]
depth = 1
[[rig]]
netns = "r"
exports = ["f"]
""")
    assert [line.replace(f"{tmp_path}/", "") for line in problems(first, second)] == [
        'a.toml:1: timeot: there is no such key; did you mean "timeout"?',
        "a.toml:2: drain: a string is the wrong type; give seconds from 0 to 86400, such as 2.5",
        (
            'a.toml:5: export.path: "no/such": a relative path; give the path from the root on,'
            f' such as "{tmp_path}/no/such"'.replace(f"{tmp_path}/", "")
        ),
        "a.toml:6: export.path: is missing; give a directory, or socket for a virtiofsd's socket",
        'a.toml:7: export.name: "e": another export has this name: a.toml:4; choose another name',
        (
            "a.toml:8: export.cache: an integer is the wrong type;"
            ' give one of "never", "metadata", "auto", "always"'
        ),
        (
            "a.toml:9: export.nonsense: there is no such key;"
            f" those of [[export]] are {', '.join(TABLES['export'].keys)}"
        ),
        "b.toml:2: limits.depth: 1 is out of range; give an integer from 4 to 64",
        "b.toml:5: rig.exports: there is no export f; the exports are: e",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiemout = 1", 'tiemout: there is no such key; did you mean "timeout"?'),
        ("exports = 1", "exports: there is no such key here; write it below [[rig]]"),
        ("depth = 1", "depth: there is no such key here; write it below [limits]"),
        (
            'socket = "/s"',
            (
                "socket: there is no such key here;"
                " write it below [[export]] or below [[listen]] or below [[rig]]"
            ),
        ),
        (
            "[limits]\ndrain = 1",
            "limits.drain: there is no such key here; write it above the first [table]",
        ),
        ('"" = 1', '"": there is no such key; those of the top of the file are image_cache, '),
        ('"a\\nb" = 1', '"a\\nb": there is no such key; those'),
        ("[[exprot]]", "exprot: there is no such table; did you mean [[export]]?"),
        ("[[exports]]", "exports: there is no such table; did you mean [[export]]?"),
        ("[Limits]", "Limits: there is no such table; did you mean [limits]?"),
        ("[[listener]]\nsocket = 1", "listener: there is no such table; did you mean [[listen]]?"),
        (
            "[server]",
            "server: there is no such table; there are [limits], [[export]], [[listen]], [[rig]]",
        ),
        ("Timeout = 1", 'Timeout: there is no such key; did you mean "timeout"?'),
        ('sandbox = "None"', 'sandbox: "None" is none of the choices; did you mean "none"?'),
        ("sandbox = none", 'invalid value; did you mean sandbox = "none"?'),
        ("xattr = True", "invalid value; did you mean xattr = true?"),
        ("[[export]]\npath = /srv/a  # b", 'invalid value; did you mean path = "/srv/a"?'),
        ("[[export]]\nusers = [joe, ann]", 'invalid value; did you mean "joe"?'),
        ("image_cache = 1G", 'after a statement; did you mean image_cache = "1G"?'),
        ("timeout = ", "invalid value; write it as TOML: toml.io"),
        ("[export]", "export: a table is wrong here; write it below [[export]]"),
        ("[[limits]]", "limits: an array is wrong here; write it below [limits]"),
        ("limits = 3", "limits: 3 is wrong here; write it below [limits]"),
        ("rig = [1979-05-27]", "rig: a date or time is wrong here; write it below [[rig]]"),
        ("drain = 07:32:00", "drain: a date or time is the wrong type; give seconds from 0"),
        (
            "limits.payload = 2000000000",
            (
                "limits.payload: one connection (payload) may use more than its user"
                " (user_payload); give user_payload as much as payload, or more"
            ),
        ),
        (
            "limits.user_requests = 8",
            (
                "limits.user_requests: one connection (requests) may use more than its user"
                " (user_requests); give user_requests as much as requests, or more"
            ),
        ),
        (
            'limits.frame = "128M"',
            (
                "limits.frame: one connection (frame) may use more than its user"
                " (user_frames); give user_frames as much as frame, or more"
            ),
        ),
        (
            '[[export]]\nname = "e"\npath = "/"\nsocket = "/s"',
            "export.socket: path is given, too; give one of the two",
        ),
        *(
            (
                f'[[export]]\nname = "e"\nsocket = "/s"\n{name} = {key.default or 1}',
                f"export.{name}: the daemon does not start the backend behind a socket; leave it",
            )
            for name, key in BACKEND.items()
            if key.default
        ),
        *(
            (
                f'[[listen]]\nsocket = "@s"\n{line}',
                f"listen.{line[:5].strip()}: an abstract socket has none: all may connect who",
            )
            for line in ('mode = "0600"', "group = 0")
        ),
        (
            '[[listen]]\nsocket = "@s"\n[[listen]]\nsocket = "@s"',
            'listen.socket: "@s": this socket is taken: FILE:2; choose another socket',
        ),
        (
            '[[listen]]\nsocket = "/usr/../s"\n[[listen]]\nsocket = "/s"',
            'listen.socket: "/s": this socket is taken: FILE:2; choose another socket',
        ),
        (
            '[[export]]\nname = "e"\nsocket = "/s"\n[[listen]]\nsocket = "/s"',
            'export.socket: "/s": this socket is taken: FILE:5; choose another socket',
        ),
        (
            '[[export]]\nname = "e"\nsocket = "/s"\n[[export]]\nname = "f"\nsocket = "/s"',
            'export.socket: "/s": this socket is taken: FILE:3; choose another socket',
        ),
        (
            f'[[export]]\nname = "e"\nsocket = "{SOCKET}"',
            f'export.socket: "{SOCKET}": it is where clients connect; write [[listen]] with',
        ),
        (
            (
                'export = [{name = "e", path = "/"}]\n'
                '[[rig]]\nnetns = "r"\nexports = ["e"]\n'
                '[[rig]]\nnetns = "/run/netns/r"\nexports = ["e"]'
            ),
            'rig.socket: "@vuserd": another rig has it in the same namespace: FILE:2; choose',
        ),
        ('[[rig]]\nnetns = "r"\nexports = ["e"]', "there is no export e; the exports are: none"),
    ],
)
def test_what_is_wrong_between_keys(text: str, expected: str, file: Path) -> None:
    file.write_text(text)
    (problem,) = problems(file)
    assert expected.replace("FILE", str(file)) in problem


def test_an_export_whose_path_is_wrong_is_one_to_the_rigs(file: Path) -> None:
    file.write_text("""[[rig]]
netns = "r"
exports = ["e"]
[[export]]
name = "e"
path = "srv"
""")
    (problem,) = problems(file)
    assert "a relative path" in problem


# -- the files -------------------------------------------------------------------------------------


def test_later_files_replace_values_and_add_tables(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("""
        drain = 1
        timeout = 1
        [limits]
        walks = 1
        depth = 8
        [[export]]
        name = "a"
        path = "/"
    """)
    second.write_text("""
        timeout = 2
        limits = {walks = 2}
        [[export]]
        name = "b"
        path = "/"
        [[listen]]
        socket = "@x"
    """)
    config = read(first, second)
    assert [export.name for export in config.exports] == ["a", "b"]
    assert [export.session.timeout for export in config.exports] == [2.0, 2.0]
    assert (config.drain, config.limits.walks, config.limits.depth) == (1.0, 2, 8)
    assert config.listeners == (ListenConfig("@x"),)
    assert read(second, first).limits.walks == 1


def test_a_name_that_another_file_has(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    for file in (first, second):
        file.write_text('[[export]]\npath = "/"\nname = "e"\n')
    (problem,) = problems(first, second)
    assert problem == (
        f'{second}:3: export.name: "e": another export has this name: {first}:3;'
        " choose another name"
    )


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (b"a =\n", ":1: ", "invalid value; write it as TOML"),
        (b"drain = 1\n\n[[export", ":3: ", "; write it as TOML"),
        (b"drain = 1\ndrain = 2\n", ":2: ", "cannot overwrite a value; write it as TOML"),
        (b"drain = 1\n# \xff", ": ", "line 2 is not UTF-8; save the file as UTF-8"),
        (b"drain = " + b"[" * 5000, ": ", "values are nested too deeply"),
        (b"drain = " + b"9" * 5000, ": ", "a number has too many digits"),
        (b"#" * (2 << 20), ": ", "is too large; write 1048576 bytes at most"),
    ],
    ids=lambda each: each[:20],
)
def test_what_is_no_toml(content: bytes, place: str, message: str, file: Path) -> None:
    file.write_bytes(content)
    (problem,) = problems(file)
    assert problem.startswith(f"{file}{place}")
    assert message in problem


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert problems(tmp_path, tmp_path / "pipe", tmp_path / "none", tmp_path / "loop") == [
        f"{tmp_path}: is a directory; give a file, such as {tmp_path}/vuserd.toml",
        f"{tmp_path}/pipe: is not a file; give a file",
        f"{tmp_path}/none: cannot be read: no such file or directory",
        f"{tmp_path}/loop: cannot be read: too many levels of symbolic links",
    ]
    assert problems(Path("/dev/zero")) == ["/dev/zero: is too large; write 1048576 bytes at most"]
    assert problems(Path("a\0")) == ["'a\\x00': cannot be read: no path has a NUL byte"]


def test_a_byte_order_mark_and_line_ends_of_dos_are_no_fault(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfdrain = 1\r\n\r\nnone = 2\r\n")
    (problem,) = problems(file)
    assert problem.startswith(f"{file}:3: none: ")


def test_which_files_there_are(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "vuserd"
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path / "home")}
    assert config_files(None, environ, 1000) == []
    drop_ins = folder / "conf.d"
    drop_ins.mkdir(parents=True)
    for name in ("20-b.toml", "10-a.toml", "README", ".#10-a.toml", "old.toml~"):
        (drop_ins / name).touch()
    both = [str(drop_ins / "10-a.toml"), str(drop_ins / "20-b.toml")]
    assert config_files(None, environ, 1000) == both
    (folder / "vuserd.toml").touch()
    assert config_files(None, environ, 1000) == [str(folder / "vuserd.toml"), *both]
    missing = str(folder / "other.toml")
    assert config_files(missing, {}, 0) == [missing, *both]


def test_where_users_have_their_files(tmp_path: Path) -> None:
    own = tmp_path / ".config" / "vuserd" / "vuserd.toml"
    own.parent.mkdir(parents=True)
    own.touch()
    for environ in ({"HOME": str(tmp_path)}, {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "x"}):
        assert config_files(None, environ, 1000) == [str(own)]
    assert config_files(None, {}, 4_000_000_000) == []


def test_the_system_s_files_are_root_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vuserd.config.files.SYSTEM_FOLDER", str(tmp_path))
    (tmp_path / "vuserd.toml").touch()
    assert config_files(None, {"HOME": "/none"}, 0) == [str(tmp_path / "vuserd.toml")]
    assert config_files(None, {"HOME": "/none"}, 1000) == []


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "conf.d").symlink_to("conf.d")
    with pytest.raises(ConfigurationErrors, match=r"conf.d: cannot be listed: too many levels"):
        config_files(str(tmp_path / "vuserd.toml"), {}, 0)


# -- lines -----------------------------------------------------------------------------------------

_WINDING: Final = r'''# [[export]]
a = [ # ]
  "]", ']', 1,
  {b = 1},
] # x = 1
b = """
[[export]]
c = 1 \""" """""
"c d" = """ " ' """ # "
'e' . "\u0066" = {g = 1, "h" = "}"} # i = 2
  [[ export ]] # j = 1
  k = "#"
[[export]]

[export.l.m]
n = 1979-05-27 07:32:00
[[export.o]]
[[export.o]]
p.q = 1
[r]
s = ""
t = "\""
'''
_LITERALS: Final = """u = ''
v = '''
'[export]'
w = 1'''''
x = '\\'
"""


def test_lines_are_found_whatever_stands_between() -> None:
    text = _WINDING + _LITERALS
    tomllib.loads(text)
    lines = find_lines(text)
    expected: dict[tuple[str | int, ...], int | None] = {
        ("a",): 2,
        ("b",): 6,
        ("c",): None,
        ("c d",): 9,
        ("e",): 10,
        ("e", "f", "g"): 10,
        ("export",): 11,
        ("export", 0): 11,
        ("export", 0, "k"): 12,
        ("export", 1): 13,
        ("export", 1, "l", "m", "n"): 16,
        ("export", 1, "o", 0): 17,
        ("export", 1, "o", 1, "p", "q"): 19,
        ("r", "s"): 21,
        ("r", "t"): 22,
        ("r", "u"): 23,
        ("r", "v"): 24,
        ("r", "w"): 20,  # no key: the table's own line
        ("r", "x"): 27,
        ("none",): None,
    }
    assert {path: lines.line(path) for path in expected} == expected


_NAMES: Final = st.sampled_from(
    ["a", "'b c'", '"d\\"["', "e.f", "export", "name", "timeout", "limits", "limits.depth"]
)
_SCALARS: Final = st.one_of(
    st.integers().map(str),
    st.booleans().map(lambda flag: str(flag).lower()),
    st.floats().map(str),
    st.text(max_size=8).map(json.dumps),
    st.sampled_from(
        [
            "'#'",
            "'''\n[x]\n'''''",
            '"""\na = 1\n\\"""""""',
            '"/"',
            '"*"',
            '"1G"',
            "1979-05-27",
            "0x" + "f" * 6000,
        ]
    ),
)
_VALUES: Final = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: f"[ # ]\n{', '.join(each)}]")
        | st.lists(inner, max_size=2).map(
            lambda each: f"{{{', '.join(f'k{n} = {value}' for n, value in enumerate(each))}}}"
        )
    ),
    max_leaves=6,
)
_HEADERS: Final = ["[[export]]", "[limits]", "[[listen]] # x", "[[rig]]", "[a.b]", "# c = 1", ""]
_DOCUMENTS: Final = st.lists(
    st.sampled_from(_HEADERS)
    | st.tuples(_NAMES | st.sampled_from(sorted(TABLES["export"].keys)), _VALUES).map(" = ".join),
    max_size=8,
).map("\n".join)


def test_an_integer_of_thousands_of_digits(file: Path) -> None:
    """Python puts none of more than 4,300 digits into words."""
    file.write_text(f"[[listen]]\nsocket = 0x{'f' * 5000}\n")
    [problem] = problems(file)
    assert "an integer is the wrong type" in problem


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(_DOCUMENTS | st.text(max_size=60))
def test_no_document_gives_anything_but_the_one_exception(file: Path, text: str) -> None:
    file.write_bytes(text.encode(errors="replace"))
    with contextlib.suppress(ConfigurationErrors):
        read(file)


def paths(content: Mapping[str, Any]) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of a document's keys, down to those of tables."""
    for key, value in content.items():
        yield (key,)
        if isinstance(value, list):
            for number, element in enumerate(value):
                if isinstance(element, dict):
                    yield from ((key, number, name) for name in element)
        elif isinstance(value, dict):
            yield from ((key, name) for name in value)


@settings(deadline=None)
@given(_DOCUMENTS)
def test_a_document_that_ends_before_the_line_of_a_key_has_no_such_key(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except ValueError:
        return
    lines = find_lines(text)
    split = text.split("\n")
    for path in paths(document):
        line = lines.line(path)
        assert line is not None
        with contextlib.suppress(ValueError):  # it ends in the middle of something else
            assert path not in set(paths(tomllib.loads("\n".join(split[: line - 1]))))
