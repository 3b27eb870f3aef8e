"""Completion of vuserctl's command line in bash, zsh and fish.

The scripts are small: they hand the words up to the cursor to the hidden command ``vuserctl
__complete``, which prints what the last one can become, a candidate a line.
"""

import posixpath
import signal
from collections.abc import Iterable

from vuserd.client.errors import ClientError
from vuserd.client.sync_client import Client
from vuserd.ctl.ls import sorted_entries
from vuserd.ctl.output import emit
from vuserd.ctl.target import Target

_COMMANDS = {
    "exports": ("--json", "--socket"),
    "ls": ("--json", "--socket", "-l"),
    "tree": ("--json", "--socket"),
    "stat": ("--follow", "--json", "--socket", "-L"),
    "cat": ("--socket",),
    "get": ("--growing", "--socket", "-r"),
    "load": ("--address", "--length", "--memory", "--offset", "--socket"),
    "reload": ("--json", "--socket"),
    "rigs": ("--json", "--socket"),
    "status": ("--json", "--socket"),
    "top": ("--interval", "--json", "--socket", "-n"),
    "metrics": ("--socket",),
    "trace": ("--json", "--read", "--socket", "--write", "-n"),
    "completion": (),
}
_TOP_OPTIONS = ("--help", "--json", "--socket", "--version")
_SHELLS = ("bash", "fish", "zsh")
_WITH_TARGET = ("ls", "tree", "stat", "cat", "get", "load")
_WITH_EXPORT = ("reload", "trace")
_WITH_VALUE = (
    "--socket",
    "--address",
    "--interval",
    "--length",
    "--memory",
    "--offset",
    "--read",
    "--write",
    "-n",
)

#: A shell waits for this: no longer than a person would.
_TIMEOUT_SECONDS = 2.0
#: And for this at most, where a daemon says ever more.
_MOST_SECONDS = 3.0

# bash takes ':' for the end of a word, so what stands before the last one is cut from candidates.
_BASH = r"""_vuserctl() {
    local line=${COMP_LINE:0:COMP_POINT} words current prefix candidate
    read -a words <<<"$line"  # without -r: it takes the backslashes away
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]} - 1]}
    prefix=
    [[ $COMP_WORDBREAKS == *:* && $current == *:* ]] && prefix=${current%:*}:
    COMPREPLY=()
    while IFS= read -r candidate; do
        [[ $candidate ]] || continue
        [[ $candidate == *[:/] ]] && compopt -o nospace
        COMPREPLY+=("$(printf %q "${candidate#"$prefix"}")")
    done <<<"$(vuserctl __complete "${words[@]:1}" 2>/dev/null)"
    [[ ${#COMPREPLY[@]} -eq 0 ]] && compopt -o default
}
complete -F _vuserctl vuserctl
"""

_ZSH = r"""#compdef vuserctl
_vuserctl() {
    local -a candidates open closed
    candidates=("${(@f)$(vuserctl __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    open=(${(M)candidates:#*[:/]})
    closed=(${candidates:#*[:/]})
    (( $#open )) && compadd -S '' -- $open
    (( $#closed )) && compadd -- $closed
    (( $#open + $#closed )) || _files
}
if [ "$funcstack[1]" = "_vuserctl" ]; then _vuserctl "$@"; else compdef _vuserctl vuserctl; fi
"""

_FISH = r"""function __vuserctl_complete
    set -l words (commandline -opc) (commandline -ct)
    vuserctl __complete $words[2..-1] 2>/dev/null
end
complete -c vuserctl -f -a '(__vuserctl_complete)'
complete -c vuserctl -n '__fish_seen_subcommand_from get' -F
"""


def script(shell: str) -> str:
    """Give the completion script for bash, zsh or fish."""
    return {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[shell]


def complete(words: list[str]) -> int:
    """Print what the last of ``words`` can become; nothing where nobody can tell.

    SIGALRM ends this process where a daemon says ever more and comes to no end.
    """
    signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
    found = candidates(words)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for candidate in found:
        if candidate.isprintable():  # a shell cannot take the others back
            emit(candidate)
    return 0


def candidates(words: list[str]) -> list[str]:
    """Give the completions of the last of the words that follow ``vuserctl``."""
    *before, current = words or [""]
    socket, command, operands = _read(before)
    if before and before[-1] in _WITH_VALUE:
        return []
    if command is None:
        return _matching(current, _TOP_OPTIONS if current.startswith("-") else _COMMANDS)
    if current.startswith("-"):
        return _matching(current, _COMMANDS.get(command, ()))
    if command == "completion":
        return _matching(current, _SHELLS)
    if command not in (*_WITH_TARGET, *_WITH_EXPORT) or (operands and command != "cat"):
        return []
    try:
        with Client.connect(socket, timeout=_TIMEOUT_SECONDS, reconnect=0) as client:
            if command in _WITH_EXPORT:
                return _matching(current, [found.name for found in client.exports()])
            return _targets(client, current)
    except ClientError:
        return []


def _read(words: list[str]) -> tuple[str | None, str | None, int]:
    """Find the socket, the command and how many operands it has got."""
    socket = command = None
    operands = 0
    rest = iter(words)
    for word in rest:
        if word == "--socket":
            socket = next(rest, None)
        elif word.startswith("--socket="):
            socket = word.partition("=")[2]
        elif word in _WITH_VALUE:
            next(rest, None)
        elif word.startswith("-"):
            continue
        elif command is None:
            command = word
        else:
            operands += 1
    return socket, command, operands


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
