"""Find a virtiofsd on this machine and identify which of the two implementations it is."""

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

import trio

from vuserd.backend.children import CHILDREN
from vuserd.errors import BackendNotFound, ConfigurationError, UnsafePath, os_reason
from vuserd.tasks.threads import starting_in_thread
from vuserd.trust.path import own_trust, require_own, route

#: Where distributions put the program: as a helper of QEMU it is mostly not on the PATH.
PLACES: Final = (
    "/usr/libexec/virtiofsd",  # Debian 13, Ubuntu 24.04, Fedora
    "/usr/lib/virtiofsd",  # Arch
    "/usr/lib/virtiofsd/virtiofsd",
    "/usr/lib/qemu/virtiofsd",  # Debian 12 and Ubuntu 22.04: the C one
    "/usr/lib/qemu/vhost-user/virtiofsd",
    "/usr/local/libexec/virtiofsd",
)

_VERSION_TIMEOUT: Final = 10.0


class BackendKind(StrEnum):
    """The two implementations of virtiofsd, and the unknown one of an adopted backend."""

    RUST = "rust"  #: https://gitlab.com/virtio-fs/virtiofsd
    C = "c"  #: QEMU's tools/virtiofsd, up to QEMU 7.2
    UNKNOWN = "unknown"


#: Who has which of them.
_ORIGINS: Final = {
    BackendKind.RUST: "Debian 13, Ubuntu 24.04, Fedora and Arch package it as virtiofsd",
    BackendKind.C: "Debian 12 and Ubuntu 22.04 have it in qemu-system-common",
}


class Program(NamedTuple):
    """A virtiofsd that can be started."""

    path: str
    kind: BackendKind
    version: str


async def find_program(
    configured: str | None,
    uid: int,
    places: Sequence[str] = PLACES,
    kind: BackendKind | None = None,
) -> Program:
    """Return the program to start as ``uid``: the configured one, else the first usable one.

    With a ``kind``, those of the other one are passed over.

    Raises:
        BackendNotFound: no such program; the message says what to install.
        ConfigurationError: what was found cannot be used.

    """
    if configured is not None:
        path = shutil.which(configured)
        if path is None:
            raise BackendNotFound(f"the backend {configured} is not an executable file")
        return _usable(await identify(path), uid)
    unusable: ConfigurationError | None = None
    for path in filter(None, [shutil.which("virtiofsd"), *map(shutil.which, places)]):
        try:
            program = await identify(path)
            if kind in (None, program.kind):
                return _usable(program, uid)
        except ConfigurationError as error:
            unusable = unusable or error
    if unusable is not None:
        raise unusable
    if kind is not None:
        raise BackendNotFound(f"no {kind} virtiofsd on this machine: {_ORIGINS[kind]}")
    raise BackendNotFound(f"no virtiofsd on this machine: {install_hint(_os_release())}")


def _usable(program: Program, uid: int) -> Program:
    if program.kind is BackendKind.C and uid != 0:
        raise ConfigurationError(
            f"{program.path} is the C virtiofsd, which only root can run: install the Rust one"
            f" ({_ORIGINS[BackendKind.RUST]})"
        )
    return program


async def identify(path: str) -> Program:
    """Ask the program for its version.

    Raises:
        ConfigurationError: it cannot be run, does not answer, is not a virtiofsd, or is controlled
            by another user where root would run it.

    """
    if own_trust().reads_all:
        require_ours(path)
    try:
        with CHILDREN.starting(), starting_in_thread(), trio.fail_after(_VERSION_TIMEOUT):
            answer = await trio.run_process(
                [path, "--version"],
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
    except (OSError, trio.TooSlowError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "no answer to --version"
        raise ConfigurationError(f"the backend {path} cannot be run: {reason}") from error
    return parse_version(path, answer.stdout.decode(errors="replace"))


def require_ours(path: str) -> None:
    """Refuse a program that other users have written or could replace.

    Raises:
        ConfigurationError: they could; the message names them.

    """
    trust = own_trust()
    try:
        with route(path, trust) as found:
            require_own(found, path, trust)
            if found.risks:  # by the next start it may be another program
                raise UnsafePath(path, found.risks[0], "install it where root alone may write")
    except UnsafePath as error:
        raise ConfigurationError(f"the backend {error}") from None
    except OSError as error:
        raise ConfigurationError(f"the backend {path} cannot be run: {os_reason(error)}") from error


def parse_version(path: str, text: str) -> Program:
    """Return the program's kind and version by what ``--version`` printed."""
    # C: "virtiofsd version 7.2.22 (Debian ...)", Rust: "virtiofsd 1.13.2"
    match = re.search(r"^virtiofsd (version )?(\d[\w.+-]*)", text, re.MULTILINE)
    if match is None:
        said = text.strip().splitlines()[:1]
        raise ConfigurationError(f"{path} is no virtiofsd: its version is {said or 'empty'}")
    kind = BackendKind.C if match[1] else BackendKind.RUST
    return Program(path, kind, match[2])


def install_hint(release: dict[str, str]) -> str:
    """Return how to install a virtiofsd on the system that ``/etc/os-release`` describes."""
    family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    version = release.get("VERSION_ID", "")
    if release.get("ID") == "debian" and version.isdigit() and int(version) <= 12:
        return "apt install qemu-system-common"
    if release.get("ID") == "ubuntu" and version < "23.04":
        return "apt install qemu-system-common"
    if family & {"debian", "ubuntu"}:
        return "apt install virtiofsd"
    if family & {"fedora", "rhel", "centos"}:
        return "dnf install virtiofsd"
    if "arch" in family:
        return "pacman -S virtiofsd"
    return "install the package virtiofsd, or name the program with --backend"


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except (OSError, UnicodeDecodeError):
        return {}
