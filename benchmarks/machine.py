"""What the numbers were measured on, and with what."""

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from benchmarks.contenders.ring_session import kind_of, version_of
from benchmarks.processes import cpu_seconds

#: Peers that are packages: the package's name, by the peer's.
_PACKAGES: Final = {
    "nginx": "nginx-core nginx-light nginx",
    "sftp-server": "openssh-sftp-server",
    "sshd": "openssh-server",
    "diod": "diod",
    "rsync": "rsync",
    "tar": "tar",
    "coreutils": "coreutils",
}


def describe(programs: Sequence[str], place: str) -> list[tuple[str, str]]:
    """Return pairs of a thing and what it is here."""
    backends = ", ".join(f"{version_of(one)} ({kind_of(one)})" for one in programs)
    python = f"{_interpreter()}; trio {_version('trio')}, msgpack {_version('msgpack')}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        ("processor", f"{_processor()}, {os.cpu_count()} cores{_hypervisor()}"),
        ("memory", f"{memory:.0f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("system", platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")),
        ("files on", _file_system(place)),
        ("Python", python),
        ("vuserd", f"{_version('vuserd')}{_commit()}"),
        ("virtiofsd", backends),
        ("peers", "; ".join(f"{name} {_package(names)}" for name, names in _PACKAGES.items())),
        ("load before", f"{os.getloadavg()[0]:.2f}"),
    ]


class Others:
    """What the processors do meanwhile for processes that were there before, the kernel's too."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = _spent_by_others()

    def share(self) -> str:
        """Return their part of the time of all processors, and who had most of it."""
        total = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        now = _spent_by_others()
        shares = {
            name: (now[name, number] - spent) / total
            for (name, number), spent in self._before.items()
            if (name, number) in now
        }
        name, most = max(shares.items(), key=lambda one: one[1], default=("nobody", 0.0))
        return f"{sum(shares.values()):.1%} of the processors, most of it {name} ({most:.1%})"


def _spent_by_others() -> dict[tuple[str, int], float]:
    """Return the processor time of each other process, by its name and number."""
    spent = {}
    for number in {int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid()}:
        with contextlib.suppress(OSError), open(f"/proc/{number}/comm") as file:
            spent[file.read().rstrip("\n"), number] = cpu_seconds([number])
    return spent


def _interpreter() -> str:
    """Return the version of Python, and who built it how: that makes a quarter of what it costs."""
    program = os.path.realpath(sys.executable)
    owner = _said(["dpkg-query", "--search", program]) if shutil.which("dpkg-query") else ""
    if owner:
        package = owner.split(":", 1)[0]
        return f"{platform.python_version()} of {package} {_package(package)}"
    options = shlex.split(sysconfig.get_config_var("CONFIG_ARGS") or "")
    told = " ".join(
        option for option in options if re.fullmatch(r"--(enable|with)-[a-z-]+", option)
    )
    how = f" with {told}" if told else ""
    return (
        f"{platform.python_version()}, not of the distribution: {platform.python_compiler()}{how}"
    )


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        match = re.search(r"^model name\s*: (.*)$", file.read(), re.MULTILINE)
    return match[1] if match else platform.machine()


def _hypervisor() -> str:
    with open("/proc/cpuinfo") as file:
        return " of a virtual machine" if " hypervisor" in file.read() else ""


def _file_system(folder: str) -> str:
    return _said(["stat", "--file-system", "--format=%T", folder])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    here = os.path.dirname(__file__)
    commit = _said(["git", "-C", here, "rev-parse", "--short", "HEAD"])
    changed = _said(["git", "-C", here, "status", "--porcelain", "--untracked-files=no"])
    return f" at {commit}{' with changes' if changed else ''}" if commit else ""


def _package(names: str) -> str:
    """Return the version of the first of these packages that is installed."""
    for name in names.split():
        if shutil.which("dpkg-query") and (
            found := _said(["dpkg-query", "--show", "--showformat=${Version}", name])
        ):
            return found
    return "of unknown version"


def _said(command: Sequence[str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
