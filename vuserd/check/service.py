"""The system's service as systemd knows it: who serves, on which socket, and what it may reach.

``vuserd check`` of root examines the service's configuration as the service's user.
"""

import contextlib
import ctypes
import grp
import os
import pwd
import re
import resource
import subprocess
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from vuserd.check.machine import Mark, Result
from vuserd.config.model import DaemonConfig, ListenConfig
from vuserd.errors import ConfigurationError

_SERVICE: Final = "vuserd.service"
_SOCKET: Final = "vuserd.socket"
_PROPERTIES: Final = (
    "Id,LoadState,ActiveState,ExecStart,User,Documentation,ProtectHome,PrivateTmp,ProtectSystem,"
    "ReadWritePaths,StateDirectory,AmbientCapabilities,LimitNOFILE,Listen,SocketMode,SocketGroup"
)
_PATIENCE: Final = 10.0
_STREAM: Final = re.compile(r"(\S+) \(Stream\)")

#: linux/capability.h, linux/prctl.h
_CAPABILITIES: Final = {
    "cap_dac_override": 1,
    "cap_dac_read_search": 2,
    "cap_sys_chroot": 18,
    "cap_sys_admin": 21,
}
_CAPABILITY_VERSION: Final = 0x20080522
_PR_SET_KEEPCAPS: Final = 8
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2


class Service(NamedTuple):
    """The service that is installed: properties of its units, by systemd's names."""

    service: Mapping[str, str]
    socket: Mapping[str, str]

    @property
    def config(self) -> str:
        """The configuration file that it reads."""
        found = re.search(r"--config[ =](\S+)", self.service.get("ExecStart", ""))
        return found[1] if found else ""

    @property
    def user(self) -> str:
        """The user that serves."""
        return self.service.get("User") or "root"

    @property
    def listeners(self) -> tuple[ListenConfig, ...]:
        """The sockets that systemd holds for it."""
        group = 0
        with contextlib.suppress(KeyError):
            group = grp.getgrnam(self.socket.get("SocketGroup", "")).gr_gid
        mode = int(self.socket.get("SocketMode") or "0666", 8)
        paths = _STREAM.findall(self.socket.get("Listen", ""))
        return tuple(ListenConfig(path, mode, group) for path in paths)

    def drop_in(self, name: str) -> str:
        """Return the advice to use a drop-in of the documentation's folder."""
        page = re.search(r"file:(\S+)/service\.md", self.service.get("Documentation", ""))
        place = f"{page[1]}/{name}" if page else name
        return (
            f"copy {place} to /etc/systemd/system/{_SERVICE}.d/, then systemctl daemon-reload and"
            " systemctl restart vuserd"
        )

    def may(self, capability: str) -> bool:
        """Return whether its processes have a capability."""
        return self.user == "root" or capability in self._ambient

    @property
    def _ambient(self) -> list[str]:
        return self.service.get("AmbientCapabilities", "").lower().split()

    def become(self) -> None:
        """Become the service's user, with its groups, capabilities and limit of open files.

        Raises:
            ConfigurationError: the user does not exist.

        """
        try:
            user = pwd.getpwnam(self.user)
        except KeyError:
            raise ConfigurationError(f"there is no user {self.user}") from None
        limit = self.service.get("LimitNOFILE", "")
        if limit.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), int(limit)))
        if user.pw_uid == 0:
            return
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        numbers = [_CAPABILITIES[each] for each in self._ambient if each in _CAPABILITIES]
        mask = sum(1 << number for number in numbers)
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0))
        for number in numbers:
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)


def installed_service() -> Service | None:
    """Ask systemd for the service; None where it has none, or does not run."""
    command = ["systemctl", "show", f"--property={_PROPERTIES}", _SERVICE, _SOCKET]
    try:
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    units: dict[str, dict[str, str]] = {}
    for block in told.stdout.decode(errors="replace").split("\n\n"):
        properties: dict[str, str] = {}
        for name, _, value in (line.partition("=") for line in block.splitlines()):
            properties[name] = " ".join(
                filter(None, (properties.get(name), value))
            )  # Listen= again
        units[properties.get("Id", "")] = properties
    service = units.get(_SERVICE, {})
    if service.get("LoadState") != "loaded":
        return None
    return Service(service, units.get(_SOCKET, {}))


def service_results(service: Service, config: DaemonConfig) -> Iterator[Result]:
    """Report what the service's confinement keeps it from."""
    name = "service"
    yield Result(name, Mark.OK, f"{_SERVICE} serves as {service.user}: checked as that user")
    for held in service.listeners:
        if service.socket.get("ActiveState") == "active":
            yield Result("socket", Mark.OK, f"{held.address}: systemd holds it for the service")
        else:
            detail = f"{held.address}: systemd does not hold it for the service yet"
            yield Result("socket", Mark.WARNING, detail, f"systemctl enable --now {_SOCKET}")
    for listener in config.listeners:
        if (
            not listener.address.startswith("@")
            and service.service.get("ProtectSystem") == "strict"
        ):
            detail = f"{listener.address}: the service can make no sockets of its own"
            advice = f"leave [[listen]] out; ListenStream= in a drop-in for {_SOCKET} adds sockets"
            yield Result("socket", Mark.PROBLEM, detail, advice)
    for export in config.exports:
        if export.directory is not None:
            yield from _hidden(service, f"export {export.name}", export.directory)
    if config.rigs and not service.may("cap_sys_admin"):
        detail = "the service may not enter network namespaces"
        yield Result("rigs", Mark.PROBLEM, detail, service.drop_in("rigs.conf"))
    if config.metrics_file is not None:
        yield from _metrics(service, config.metrics_file)


def _hidden(service: Service, name: str, path: str) -> Iterator[Result]:
    """Report what of the host the service does not see at a path."""
    there = os.path.realpath(path)
    home = service.service.get("ProtectHome", "no")
    homes = next((top for top in ("/home", "/root", "/run/user") if _is_below(there, top)), None)
    if homes is not None and home not in ("no", "read-only"):
        detail = f"{there}: the service does not see what is in {homes} (ProtectHome={home})"
        yield Result(name, Mark.PROBLEM, detail, service.drop_in("homes.conf"))
    temporary = next((top for top in ("/tmp", "/var/tmp") if _is_below(there, top)), None)
    if temporary is not None and service.service.get("PrivateTmp", "no") != "no":
        detail = f"{there}: the service has another {temporary} of its own (PrivateTmp=)"
        yield Result(name, Mark.PROBLEM, detail, "move the directory, to /srv, say")


def _metrics(service: Service, file: str) -> Iterator[Result]:
    """Report a metrics file in a folder that the service may not write."""
    if service.service.get("ProtectSystem") != "strict":
        return
    folders = [f"/var/lib/{each}" for each in service.service.get("StateDirectory", "").split()]
    folders += [each.lstrip("-+") for each in service.service.get("ReadWritePaths", "").split()]
    if not any(_is_below(os.path.dirname(file), folder) for folder in folders):
        detail = f"the service may not write {os.path.dirname(file)} (ProtectSystem=strict)"
        advice = (
            f'metrics_file = "/var/lib/vuserd/vuserd.prom", and {service.drop_in("metrics.conf")}'
        )
        yield Result("metrics", Mark.PROBLEM, detail, advice)


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")
