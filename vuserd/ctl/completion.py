"""Complete vuserctl's command line in bash, zsh and fish.

The scripts are small: they pass the words up to the cursor to the hidden command ``vuserctl
__complete``, which prints the completions of the last word, one on each line.
"""

import posixpath
import signal
from argparse import Action, ArgumentParser
from collections.abc import Iterable

from vuserd.client.errors import ClientError
from vuserd.client.sync_client import Client
from vuserd.ctl.listing import sorted_entries
from vuserd.ctl.output import emit
from vuserd.ctl.parser import parser
from vuserd.ctl.target import Target
from vuserd.ctl.usage.arguments import EXPORT, FILE

#: How long the shell waits for each answer of the daemon.
_TIMEOUT_SECONDS = 2.0
#: How long the shell waits in all, even if the daemon goes on sending.
_MOST_SECONDS = 3.0


def script(shell: str) -> str:
    """Return the completion script for bash, zsh or fish, of the folder ``scripts``."""
    from pkgutil import get_data  # completing itself has to be quick, and needs none of it

    text = get_data("vuserd.ctl", f"scripts/vuserctl.{shell}")
    assert text is not None  # Python's loaders of files and of zip files can read data
    return text.decode()


def complete(words: list[str]) -> int:
    """Print what the last of ``words`` can become, a candidate a line.

    SIGALRM ends this process if a daemon goes on sending for ever.
    """
    signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
    found = candidates(words)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for candidate in found:
        if candidate.isprintable():  # the scripts cannot pass on others
            emit(candidate)
    return 0


def candidates(words: list[str]) -> list[str]:
    """Return the completions of the last of the words that follow ``vuserctl``."""
    *before, current = words or [""]
    line = _Line(before)
    if line.waits_for_value:
        return []
    if current.startswith("-"):
        return _matching(current, sorted(line.options))
    operand = line.operand
    if operand is None:
        return []
    if operand.choices is not None:
        return _matching(current, operand.choices)
    if operand.metavar not in (EXPORT, FILE) or (line.may_be_local and ":" not in current):
        return []
    try:
        with Client.connect(line.socket, timeout=_TIMEOUT_SECONDS, reconnect=0) as client:
            if operand.metavar == EXPORT:
                return _matching(current, [found.name for found in client.exports()])
            return _targets(client, current)
    except ClientError:
        return []


class _Line:
    """The words before the one to complete, read by vuserctl's own parser."""

    def __init__(self, words: list[str]) -> None:
        self._read_by(parser())
        self.socket: str | None = None
        self.waits_for_value = False
        #: Whether the word at the cursor may be DEST, which the shell completes.
        self.may_be_local = False
        rest = iter(words)
        for word in rest:
            name, equals, value = word.partition("=")
            option = self.options.get(name)
            if option is None:
                self._take(word)
            elif option.nargs != 0:  # it has a value: after "=", or in the next word
                given = value if equals else next(rest, None)
                self.waits_for_value = given is None
                self.socket = given if option.dest == "socket" else self.socket

    @property
    def operand(self) -> Action | None:
        """What stands at the cursor; None where the command takes no more."""
        return self._operands[0] if self._operands else None

    def _read_by(self, command: ArgumentParser) -> None:
        actions = command._actions  # noqa: SLF001 - argparse has no public way to list them
        self.options = {name: action for action in actions for name in action.option_strings}
        self._operands = [action for action in actions if not action.option_strings]

    def _take(self, word: str) -> None:
        """Take a word that is no option: the command, or one of its operands."""
        operand = self.operand
        if word.startswith("-") or operand is None:
            return
        if isinstance(operand.choices, dict):  # the commands, each with a parser
            if (command := operand.choices.get(word)) is not None:
                self._read_by(command)
            else:
                self.options, self._operands = {}, []
        elif operand.nargs in ("+", "*"):
            self.may_be_local = len(self._operands) > 1
        else:
            del self._operands[0]


def _targets(client: Client, current: str) -> list[str]:
    export, colon, path = current.partition(":")
    if not colon:
        return _matching(export, [f"{found.name}:" for found in client.exports()])
    directory, name = posixpath.split(path)
    parent = path[: len(path) - len(name)]  # as it was typed, with its slash
    entries = sorted_entries(client, Target(export, directory))
    return [
        f"{export}:{parent}{entry.name}" + ("/" if entry.type == "dir" else "")
        for entry in entries
        if entry.name.startswith(name)
    ]


def _matching(prefix: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(prefix)]
