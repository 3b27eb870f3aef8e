"""The words of errors."""

import errno
import os

import pytest

from vuserd.errors import in_a_sentence, os_reason


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("No such file or directory", "no such file or directory"),
        ("Input/output error", "input/output error"),
        ("A file", "a file"),
        ("X", "x"),
        ("", ""),
        (" Leading space", " Leading space"),
        ("already small", "already small"),
        ("'Quoted' words", "'Quoted' words"),
        ("1st of all", "1st of all"),
    ],
)
def test_a_message_loses_its_capital_within_a_sentence(text: str, within: str) -> None:
    assert in_a_sentence(text) == within


@pytest.mark.parametrize(
    "text",
    ["AF_UNIX path too long", "I/O error", "UTF-8", "TypeError: no", "SELinux denies it", "IPv6"],
)
def test_acronyms_and_names_keep_their_capitals(text: str) -> None:
    assert in_a_sentence(text) == text


def test_only_the_first_word_decides() -> None:
    assert in_a_sentence("Not a XENIX file") == "not a XENIX file"


def test_the_reason_of_a_system_error_is_the_systems_own() -> None:
    error = FileNotFoundError(errno.ENOENT, "other words", "name")
    assert os_reason(error) == in_a_sentence(os.strerror(errno.ENOENT))


def test_the_reason_of_an_error_without_a_number_is_its_text() -> None:
    assert os_reason(OSError("AF_UNIX path too long")) == "AF_UNIX path too long"
