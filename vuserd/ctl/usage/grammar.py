"""The parser of one command: options and operands in any order, and help with examples."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from vuserd.ctl.output import screen_width
from vuserd.ctl.usage.arguments import COMMAND, FILE, target_argument
from vuserd.ctl.usage.suggestions import suggestion

# argparse asks for a translation of each of its words, again for each parser, and looks for files
# that have it each time: hundreds of looks, where nobody has translated them.
vars(argparse)["_"] = str


class _NoTheme:
    """The colours of Python 3.14's argparse: none."""

    def __getattr__(self, name: str) -> str:
        return ""


_LISTED = "; 'vuserctl help' lists them"


class Help(argparse.HelpFormatter):
    """Formats help as wide as the terminal; a text of several lines stays as it is written.

    It has no colours: from Python 3.14 on, argparse loads 30 ms of modules to find out whether it
    may have some, even where it formats nothing.
    """

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, width=screen_width() - 2)

    def _set_color(self, *_: object) -> None:
        self._theme = _NoTheme()
        self._decolor = str

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Says what was probably meant by an option or a command that is unknown."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Read the words; an unknown option before the command would take that for its value."""
        rest = iter(args or ())
        for word in rest:
            name = word.partition("=")[0]
            if not name.startswith("--") or name == "--":
                break
            if name not in self._option_string_actions:
                self.refuse_words([word])
            if self._option_string_actions[name].nargs is None and name == word:
                next(rest, None)
        return super().parse_known_args(args, namespace)

    def refuse_words(self, unknown: Sequence[str]) -> NoReturn:
        """Report words that the parser has no use for."""
        for word in unknown:
            name = word.partition("=")[0]
            if name.startswith("-") and name != "-":
                hint = suggestion(name, self._option_string_actions)
                self.error(f"unknown option {name!r}{hint}")
        self.error(f"unrecognized arguments: {' '.join(unknown)}")

    def error(self, message: str) -> NoReturn:
        """End the process with status 2, after the usage and what is wrong."""
        super().error(f"{message}{_LISTED if message.endswith(f'required: {COMMAND}') else ''}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        known = action.choices
        if action.metavar == COMMAND and known is not None and value not in known:
            hint = suggestion(value, known) or _LISTED
            raise argparse.ArgumentError(None, f"unknown command {value!r}{hint}")
        super()._check_value(action, value)


class CommandParser(Parser):
    """Takes options before, between and behind operands, as GNU's getopt does.

    argparse alone takes no operand behind an option once it has taken one before it.
    """

    #: The option that a number is the value of which stands as an option itself, such as -20.
    number_option: str | None = None

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Read a command's words; what is unknown is an error of this command."""
        words = self._options_first(args or ())
        found, unknown = argparse.ArgumentParser.parse_known_args(self, words, namespace)
        if unknown:
            self.refuse_words([word for word in unknown if word != "--"])
        return found, unknown

    def _options_first(self, words: Sequence[str]) -> list[str]:
        """Move the operands behind the options; write an option and its value as one word."""
        options: list[str] = []
        operands: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--":
                operands += rest
            elif word[:1] != "-" or word == "-":
                operands.append(word)
            elif self.number_option is not None and word[1:].isdecimal():
                options.append(f"{self.number_option}={word[1:]}")
            elif self._waits_for_value(word) and (value := next(rest, None)) is not None:
                options.append(f"{word}={value}" if word in self._option_string_actions else word)
                options += [] if word in self._option_string_actions else [value]
            else:
                options.append(word)
        return [*options, "--", *operands] if operands else options

    def _waits_for_value(self, word: str) -> bool:
        """Return whether an option's value is the next word; refuse what is no option."""
        action = self._option_string_actions.get(word)
        if action is None and word.startswith("--"):
            if word.partition("=")[0] not in self._option_string_actions:
                self.refuse_words([word])  # here, as what it has for a value is no operand
            return False
        if action is not None:
            return action.nargs is None
        for at, letter in enumerate(word[1:], 2):  # several of one letter, such as -rn 5
            action = self._option_string_actions.get(f"-{letter}")
            if action is None:
                self.refuse_words([f"-{letter}" if at > 2 else word])
            if action.nargs is None:
                return at == len(word)
        return False


class AddCommand(Protocol):
    """Adds a command to ``vuserctl``."""

    def __call__(self, name: str, text: str, *examples: str, own_h: bool = False) -> CommandParser:
        """Return its parser; with ``own_h`` its -h is its own, and help is --help alone."""


def add_commands(
    commands: "argparse._SubParsersAction[CommandParser]", common: CommandParser
) -> AddCommand:
    """Return the function that adds commands, with the options that all have in common."""

    def command(name: str, text: str, *examples: str, own_h: bool = False) -> CommandParser:
        parser = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog="\n  ".join(["examples:", *(f"vuserctl {each}" for each in examples)]),
            parents=[common],
            allow_abbrev=False,
            formatter_class=Help,
            add_help=not own_h,
        )
        if own_h:
            parser.add_argument("--help", action="help", help="show this help message and exit")
        parser.set_defaults(usage=parser)
        return parser

    return command


def add_flags(parser: argparse.ArgumentParser, **flags: tuple[str, str]) -> None:
    """Add options without a value: for each destination, the option and its help."""
    for destination, (option, text) in flags.items():
        parser.add_argument(option, dest=destination, action="store_true", help=text)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the operand EXPORT:PATH."""
    parser.add_argument("target", type=target_argument, metavar=FILE)


def add_targets(
    parser: argparse.ArgumentParser,
    nargs: str = "+",
    kind: Callable[[str], Any] = target_argument,
) -> None:
    """Add the operands EXPORT:PATH ..., in which ``*``, ``?`` and ``[...]`` are patterns."""
    parser.add_argument("targets", type=kind, metavar=FILE, nargs=nargs)
