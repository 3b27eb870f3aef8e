"""Which configuration files there are, and what they say together: vuserd.toml(5)."""

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
    """Return the files to read, in this order: the main one, and those of ``conf.d`` beside it.

    The main file is ``explicit``, which is on the list whether it is there or not. Else it is
    root's in ``/etc/vuserd``, and another user's in ``$XDG_CONFIG_HOME/vuserd``: what is the
    system's is never a user's daemon's, so its unit names the file. It may be missing then, and so
    may all of them.

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
    if not os.path.isabs(base):  # which it says to ignore
        home = environ.get("HOME") or _home(uid)
        base = os.path.join(home, ".config")
    return os.path.join(base, "vuserd")


def _home(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:
        return "/"


def read_config(files: Sequence[str], socket: str) -> DaemonConfig:
    """Return what the files say together, and of what they do not say the default.

    A value at the top or in ``[limits]`` replaces that of a file before; exports, listeners and
    rigs of all files add up. There may be no export, and no listener: the daemon knows what then.

    Args:
        files: in their order.
        socket: where the daemon listens if no file has ``[[listen]]``: no export may be there.

    Raises:
        ConfigurationErrors: with all that is wrong in all of the files.

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
