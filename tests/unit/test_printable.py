"""What others have named or said, in a log."""

import logging

import pytest

from vuserd.errors import ConfigurationErrors, Problem, UnsafePath, printable
from vuserd.service.log_lines import PrintableFormatter


@pytest.mark.parametrize(
    ("text", "as_printed"),
    [
        ("Äpfel, ÷ and 世界", "Äpfel, ÷ and 世界"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2J\x7f\x9b", "\\x1b[2J\\x7f\\x9b"),
        ("\u202egnp.exe\u2028", "\\u202egnp.exe\\u2028"),
        ("\udcff", "\\udcff"),
        ("\\n", "\\n"),
    ],
)
def test_what_is_escaped(text: str, as_printed: str) -> None:
    assert printable(text) == printable(printable(text)) == as_printed


def formatted(message: str, *args: object, fault: BaseException | None = None) -> str:
    info = None if fault is None else (type(fault), fault, None)
    record = logging.LogRecord("vuserd", logging.INFO, "", 0, message, args, info)
    text = PrintableFormatter("vuserd: %(message)s").format(record)
    assert record.args == args  # other handlers have it as it was
    return text


def test_a_name_makes_no_line_of_a_log() -> None:
    assert formatted("export %s: %d", "a\nvuserd: b", 7) == "vuserd: export a\\nvuserd: b: 7"
    assert formatted("nothing\x1b") == "vuserd: nothing\\x1b"
    assert formatted("%s", UnsafePath("/a\nb", "\x07", "c")) == "vuserd: /a\\nb: \\x07; c"


def test_lines_that_are_meant_stay() -> None:
    problems = [Problem("f", line, "key", "wrong\x1b", "") for line in (1, 2)]
    wanted = "vuserd: all: f:1: key: wrong\\x1b\nf:2: key: wrong\\x1b"
    assert formatted("all: %s", ConfigurationErrors(problems)) == wanted
    assert formatted("fault", fault=ValueError("\x1b")) == "vuserd: fault\nValueError: \\x1b"
