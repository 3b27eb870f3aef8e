"""The kinds of values in configuration files: how each is checked and converted."""

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

from vuserd.config.accounts import number_of
from vuserd.config.arguments import DAY, NAME, SIZE, SIZE_SHIFTS
from vuserd.config.model import Access, Account

#: Bytes of sun_path, without the NUL that ends a path or begins an abstract name: unix(7).
_LONGEST_SOCKET: Final = 107
_LONGEST_NAME: Final = 255
_LONGEST_SHOWN: Final = 200
#: The next number is the kernel's "no such id".
_HIGHEST_ID: Final = (1 << 32) - 2
_MOST: Final = (1 << 63) - 1

T = TypeVar("T")


class WrongValue(ValueError):  # noqa: N818 - reads as the sentence it is
    """What is wrong with a value; ``right`` if there is better advice than the kind's own."""

    def __init__(self, wrong: str, right: str = "") -> None:
        super().__init__(wrong)
        self.right = right


class Kind(NamedTuple):
    """A kind of value, with the function that checks and converts it."""

    name: str
    #: Takes the value and the folder of its file. Raises WrongValue, whose text completes "KEY: ".
    check: Callable[[Any, str], Any]
    #: What would be right, for people: "give ...".
    right: str


def shown(value: object) -> str:
    """Return a value as a file would spell it, shortened, on one line."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not value.isprintable())
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > 64:
        text = "so large a number"
    elif isinstance(value, int | float):
        text = str(value)
    else:
        text = _type_name(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _type_name(value: object) -> str:
    names = {str: "a string", bool: "a boolean", int: "an integer", float: "a number"}
    names |= {list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


def _wanted(value: Any, *types: type) -> Any:
    if type(value) not in types:
        raise WrongValue(f"{_type_name(value)} is the wrong type")
    return value


def _each(value: Any, check: Callable[[Any], T]) -> tuple[T, ...]:
    """Check all elements of an array; raise one error for all that are wrong."""
    checked: list[T] = []
    wrong: list[str] = []
    rights: set[str] = set()
    for element in _wanted(value, list):
        try:
            checked.append(check(element))
        except WrongValue as error:
            wrong.append(str(error))
            rights.add(error.right)
    if wrong:
        raise WrongValue(", ".join(wrong), rights.pop() if len(rights) == 1 else "")
    return tuple(checked)


def integer(least: int, most: int = _MOST) -> Kind:
    """Return the kind of an integer in a range."""

    def check(value: Any, _: str) -> int:
        number: int = _wanted(value, int)
        if not least <= number <= most:
            raise WrongValue(f"{shown(number)} is out of range")
        return number

    bounds = f"from {least} to {most}" if most < _MOST else f"of {least} or more"
    return Kind("integer", check, f"give an integer {bounds}")


def size(least: int) -> Kind:
    """Return the kind of a number of bytes, which may be a string with a suffix."""

    def check(value: Any, _: str) -> int:
        number: int | str = _wanted(value, int, str)
        if isinstance(number, str):
            match = SIZE.fullmatch(number)
            if match is None:
                raise WrongValue(f"{shown(number)} is not a size")
            number = int(match[1]) << SIZE_SHIFTS[match[2]]
        if not least <= number <= _MOST:
            raise WrongValue(f"{shown(value)} is out of range")
        return number

    bound = f", {least} at least" if least else ""
    return Kind("size", check, f'give bytes{bound}, or a string such as "512K", "16M" or "2G"')


def seconds(least: float) -> Kind:
    """Return the kind of a time, up to a day."""

    def check(value: Any, _: str) -> float:
        number: float = _wanted(value, int, float)
        if not least <= number <= DAY:
            raise WrongValue(f"{shown(number)} is out of range")
        return float(number)

    return Kind("seconds", check, f"give seconds from {least:g} to {DAY}, such as 2.5")


def choice(*words: str) -> Kind:
    """Return the kind of a choice between some words."""

    def check(value: Any, _: str) -> str:
        word: str = _wanted(value, str)
        if word not in words:
            close = difflib.get_close_matches(word.lower(), words, 1)
            meant = f"did you mean {json.dumps(close[0])}?" if close else ""
            raise WrongValue(f"{shown(word)} is none of the choices", meant)
        return word

    return Kind("choice", check, f"give one of {', '.join(map(json.dumps, words))}")


def _flag(value: Any, _: str) -> bool:
    flag: bool = _wanted(value, bool)
    return flag


def _name(value: Any, _: str) -> str:
    name: str = _wanted(value, str)
    if not NAME.fullmatch(name):
        raise WrongValue(f"{shown(name)} cannot be a name")
    return name


def _names(value: Any, folder: str) -> tuple[str, ...]:
    names = _each(value, lambda name: _name(name, folder))
    if not names:
        raise WrongValue("none is given")
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise WrongValue(f"{shown(twice[0])} is there twice", "give each once")
    return names


def _path(value: Any, folder: str) -> str:
    path: str = _wanted(value, str)
    if not path or "\0" in path:
        raise WrongValue(f"{shown(path)} is not a path")
    if not path.startswith("/"):
        if path.startswith("~"):
            wrong, meant = "'~' stands for nothing here", os.path.expanduser(path)
        else:
            wrong, meant = "a relative path", os.path.join(os.path.abspath(folder), path)
        example = os.path.normpath(meant)
        raise WrongValue(
            f"{shown(path)}: {wrong}", f"give the path from the root on, such as {shown(example)}"
        )
    return path


def _program(value: Any, folder: str) -> str:
    program: str = _wanted(value, str)
    return _path(program, folder) if "/" in program or not program else program


def _file(value: Any, folder: str) -> str:
    path = _path(value, folder)
    if path.endswith("/"):
        raise WrongValue(f"{shown(path)} is a directory")
    return path


def _short_enough(address: str) -> str:
    if (length := len(os.fsencode(address))) > _LONGEST_SOCKET:
        raise WrongValue(
            f"{length} bytes are too long for a socket", f"give {_LONGEST_SOCKET} at most"
        )
    return address


def _abstract(value: Any, _: str) -> str:
    address: str = _wanted(value, str)
    if not address.startswith("@") or len(address) < 2 or "\0" in address:
        raise WrongValue(f"{shown(address)} is no abstract socket")
    return _short_enough(address)


def _socket(value: Any, folder: str) -> str:
    address: str = _wanted(value, str)
    if address.startswith("@"):
        return _abstract(address, folder)
    return _short_enough(_file(address, folder))


def _socket_path(value: Any, folder: str) -> str:
    return _short_enough(_path(value, folder))


def _mode(value: Any, _: str) -> int:
    if type(value) is int:
        raise WrongValue(
            f"{shown(value)} is a decimal number here",
            'give the octal digits as a string, such as "0660"',
        )
    digits: str = _wanted(value, str)
    if not re.fullmatch(r"0?[0-7]{3}", digits):
        raise WrongValue(f"{shown(digits)} is no mode of a file")
    return int(digits, 8)


def _netns(value: Any, folder: str) -> str:
    netns: str = _wanted(value, str)
    if "/" in netns:
        return _path(netns, folder)
    if netns in ("", ".", "..") or "\0" in netns or len(os.fsencode(netns)) > _LONGEST_NAME:
        raise WrongValue(f"{shown(netns)} is no name of a namespace")
    return netns


def _id(value: Any, word: str) -> int | Account:
    """Return a number; or the account that has none, which is no mistake: it may come later."""
    if type(value) is int:
        if not 0 <= value <= _HIGHEST_ID:
            raise WrongValue(f"{shown(value)} cannot be the number of a {word}")
        return value
    name: str = _wanted(value, str)
    if re.fullmatch(r"[0-9]+", name):
        raise WrongValue(f"{shown(name)} is a string", "give a number without quotes")
    if not re.fullmatch(r"[^\0\n:*]+", name):
        raise WrongValue(f"{shown(name)} cannot be the name of a {word}")
    account = Account(word, name)
    number = number_of(account)
    return account if number is None else number


def _users(value: Any, _: str) -> Access:
    given = _each([value] if value == "*" else value, _user)
    return replace(_access(given, "users"), everyone=None in given)


def _user(value: Any) -> int | Account | None:
    return None if value == "*" else _id(value, "user")


def _groups(value: Any, _: str) -> Access:
    return _access(_each(value, lambda each: _id(each, "group")), "groups")


def _access(given: Iterable[int | Account | None], field: str) -> Access:
    given = list(given)
    numbers = frozenset(each for each in given if isinstance(each, int))
    missing = frozenset(each for each in given if isinstance(each, Account))
    return Access(**{field: numbers, "missing": missing})  # type: ignore[arg-type]


def _group(value: Any, _: str) -> int | Account:
    return _id(value, "group")


FLAG: Final = Kind("boolean", _flag, "give true or false")
EXPORT_NAME: Final = Kind(
    "name", _name, "use letters, digits, '_', '-' and '.', 64 at most, the first no '-' or '.'"
)
EXPORT_NAMES: Final = Kind("names", _names, 'give names of exports, such as ["kernels"]')
DIRECTORY: Final = Kind("directory", _path, "give the path of a directory")
PROGRAM: Final = Kind("program", _program, "give a path, or a name that is on the PATH, in quotes")
NEW_FILE: Final = Kind("path", _file, "give the path of a file")
SOCKET: Final = Kind(
    "socket", _socket, "give the path of a socket, or '@' and a name for an abstract one"
)
SOCKET_PATH: Final = Kind("socket", _socket_path, "give the path of a socket")
ABSTRACT: Final = Kind("socket", _abstract, "give '@' and a name, such as \"@vuserd\"")
MODE: Final = Kind("mode", _mode, 'give three octal digits as a string, such as "0660"')
NETNS: Final = Kind(
    "namespace", _netns, 'give a name that "ip netns" shows, or the path of a namespace'
)
USERS: Final = Kind(
    "users", _users, 'give names and numbers, such as ["rig", 1001], or "*" for all'
)
GROUPS: Final = Kind("groups", _groups, 'give names and numbers, such as ["lab", 2001]')
GROUP: Final = Kind("group", _group, 'give a name such as "lab", or a number')
