"""Colours of names by LS_COLORS, the variable that ``dircolors`` writes for ``ls``."""

import os
import re
import stat as modes
import sys
from typing import Final

from vuserd.client.records import Entry
from vuserd.ctl.output import is_dumb

#: What ls uses where the variable is not set.
_DEFAULT: Final = (
    "di=01;34:ln=01;36:pi=33:so=01;35:bd=01;33:cd=01;33:"
    "su=37;41:sg=30;43:tw=30;42:ow=34;42:st=37;44:ex=01;32"
)
#: What a terminal is sent; anything else of the variable is ignored.
_CODE: Final = re.compile(r"[0-9;]+")
_KINDS: Final = {"dir": "di", "symlink": "ln", "fifo": "pi", "socket": "so", "block": "bd"}
_OF_DIRECTORIES: Final = {
    modes.S_ISVTX | modes.S_IWOTH: "tw",
    modes.S_IWOTH: "ow",
    modes.S_ISVTX: "st",
}


class Colours:
    """The colours of a value of LS_COLORS."""

    def __init__(self, text: str) -> None:
        self._kinds: dict[str, str] = {}
        self._endings: dict[str, str] = {}
        for part in text.split(":"):
            key, _, code = part.partition("=")
            if _CODE.fullmatch(code):
                (self._endings if key[:1] == "*" else self._kinds)[key.removeprefix("*")] = code

    def paint(self, entry: Entry, text: str) -> str:
        """Return ``text``, which is how the entry's name is shown, in the entry's colour."""
        code = self._code(entry)
        return f"\x1b[{code}m{text}\x1b[0m" if code and code.strip("0") else text

    def _code(self, entry: Entry) -> str | None:
        mode = 0 if entry.stat is None else entry.stat.mode
        kind = "cd" if entry.type == "char" else _KINDS.get(entry.type)
        if entry.type == "dir":
            special = _OF_DIRECTORIES.get(mode & (modes.S_ISVTX | modes.S_IWOTH), "di")
            return self._kinds.get(special, self._kinds.get("di"))
        if kind is not None:
            return self._kinds.get(kind)
        for bits, special in ((modes.S_ISUID, "su"), (modes.S_ISGID, "sg"), (0o111, "ex")):
            if mode & bits and special in self._kinds:
                return self._kinds[special]
        endings = [code for end, code in self._endings.items() if entry.name.endswith(end)]
        return endings[-1] if endings else self._kinds.get("fi")


def colours(when: str) -> Colours | None:
    """Return the colours to use by --color (auto, always or never); None for none."""
    if when == "auto":
        plain = os.environ.get("NO_COLOR") or is_dumb()
        when = "always" if sys.stdout.isatty() and not plain else "never"
    if when == "never":
        return None
    return Colours(os.environ.get("LS_COLORS") or _DEFAULT)
