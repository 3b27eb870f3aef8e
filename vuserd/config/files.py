"""Find the configuration files and read them into one configuration: vuserd.toml(5)."""

import os
import pwd
from collections.abc import Mapping, Sequence
from typing import Final

from vuserd.config.assembly import Assembly
from vuserd.config.documents import Section, read_document
from vuserd.config.model import DaemonConfig
from vuserd.errors import ConfigurationErrors, Problem, os_reason

SYSTEM_FOLDER: Final = "/etc/vuserd"
MAIN_FILE: Final = "vuserd.toml"
DROP_INS: Final = "conf.d"


def config_files(explicit: str | None, environ: Mapping[str, str], uid: int) -> list[str]:
    """Return the files to read, in this order: the main one, then those of ``conf.d`` beside it.

    The main file is ``explicit``, which is listed even if it does not exist. Without it, the main
    file is in ``/etc/vuserd`` for root, and in ``$XDG_CONFIG_HOME/vuserd`` for another user: a
    user's daemon never reads the system's file by itself, so the unit of a system service names it.
    Then the main file may be missing, and so may all of them.

    Raises:
        ConfigurationErrors: ``conf.d`` cannot be listed.

    """
    main = explicit
    if main is None:
        folder = SYSTEM_FOLDER if uid == 0 else _user_folder(environ, uid)
        main = os.path.join(folder, MAIN_FILE)
    drop_ins = os.path.join(os.path.dirname(main), DROP_INS)
    try:
        names = sorted(os.listdir(drop_ins))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise ConfigurationErrors(
            [Problem(drop_ins, None, "", f"cannot be listed: {os_reason(error)}", "")]
        ) from error
    files = [main] if explicit is not None or os.path.lexists(main) else []
    return files + [
        os.path.join(drop_ins, name)
        for name in names
        if name.endswith(".toml") and not name.startswith(".")
    ]


def _user_folder(environ: Mapping[str, str], uid: int) -> str:
    """Return a user's folder by the XDG Base Directory Specification."""
    base = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):  # the specification says to ignore it
        home = environ.get("HOME") or _home(uid)
        base = os.path.join(home, ".config")
    return os.path.join(base, "vuserd")


def _home(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/"


def read_config(files: Sequence[str], socket: str) -> DaemonConfig:
    """Return the configuration of all files, with defaults for what they do not give.

    A value at the top or in ``[limits]`` replaces that of an earlier file; exports, listeners and
    rigs of all files add up. There may be no export and no listener.

    Args:
        files: in the order in which they apply.
        socket: where the daemon listens if no file has ``[[listen]]``: no export may be there.

    Raises:
        ConfigurationErrors: with all mistakes of all files.

    """
    problems: list[Problem] = []
    sections: list[Section] = []
    for file in files:
        sections += read_document(file, problems)
    assembly = Assembly(sections, socket, problems)
    assembly.check()
    if problems:
        order = {file: number for number, file in enumerate(files)}
        problems.sort(key=lambda problem: (order.get(problem.file, -1), problem.line or 0))
        raise ConfigurationErrors(problems)
    return assembly.config()
