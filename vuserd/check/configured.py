"""Check that what a configuration names exists and is usable, without using it."""

import grp
import os
import pwd
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from vuserd.backend import landlock
from vuserd.backend.find import PLACES, BackendKind, Program, find_program, identify, require_ours
from vuserd.backend.process import command_line, sandboxes
from vuserd.check.machine import Mark, Result, may_change_owners, may_enter_namespaces
from vuserd.check.unix_diag import is_listened_on
from vuserd.config.model import DaemonConfig, ExportConfig, ListenConfig, RigConfig
from vuserd.errors import BackendDown, ConfigurationError, UnsafePath, os_reason
from vuserd.trust.path import keeps_entries, name_of, own_trust, require_answers, route
from vuserd.wire.address import SYSTEM_SOCKET

_OWN_NAMESPACE: Final = "/proc/self/ns/net"


# -- backends --------------------------------------------------------------------------------------


async def candidate_results(exports: Sequence[ExportConfig], uid: int) -> list[Result]:
    """Identify every virtiofsd that is configured or stands in one of the known places."""
    configured = [export.program for export in exports if export.program]
    results = []
    for path in _different(filter(None, map(shutil.which, (*configured, "virtiofsd", *PLACES)))):
        try:
            program = await identify(path)
        except ConfigurationError as error:
            if uid == 0 or path in map(
                shutil.which, configured
            ):  # the C one says only root what it is
                results.append(Result("backend", Mark.WARNING, str(error), "remove it, or mend it"))
            continue
        try:
            require_ours(path)
        except ConfigurationError as error:
            results.append(Result("backend", Mark.WARNING, str(error)))
            continue
        detail = f"{path}: {program.kind} {program.version}"
        takes_root = program.kind is BackendKind.C and uid != 0
        results.append(Result("backend", Mark.OK, f"{detail}, for root" if takes_root else detail))
    return results


async def fitness_results(exports: Sequence[ExportConfig], uid: int) -> list[Result]:
    """Report exports that have no fitting virtiofsd; without exports, whether there is any."""
    results = []
    own = [export for export in exports if export.directory is not None]
    for wanted in dict.fromkeys(export.program for export in own) if exports else [None]:
        served = [export for export in own if export.program == wanted]
        try:
            program = await find_program(wanted, uid)
        except ConfigurationError as error:
            name = f"export {served[0].name}" if len(served) == 1 else "backend"
            results.append(Result(name, Mark.PROBLEM, str(error)))
        else:
            results += (
                Result(f"export {export.name}", Mark.PROBLEM, reason, "choose another, or leave it")
                for export in served
                if (reason := _unfit(export, program, uid))
            )
    return results


def _different(paths: Iterable[str]) -> Iterable[str]:
    """Return one path for each different file."""
    return {os.path.realpath(path): path for path in paths}.values()


def _unfit(export: ExportConfig, program: Program, uid: int) -> str:
    """Return what the export wants that the backend cannot do; empty where it can do all."""
    assert export.directory is not None
    options = export.options
    mode = options.sandbox or sandboxes(program.kind, uid)[0]
    if mode == "chroot" and uid != 0:
        return 'sandbox = "chroot" takes root'
    if mode == "landlock" and not landlock.is_available():
        return 'this kernel has no Landlock for sandbox = "landlock", which is Linux 6.2 or newer'
    if mode == "none" and program.kind is BackendKind.C:
        return 'the C virtiofsd has no sandbox "none"'
    if options.inode_file_handles == "mandatory" and uid != 0:
        return "inode_file_handles takes root"
    try:
        command_line(program, export.directory, 0, mode, options)
    except BackendDown as error:
        return str(error)
    return ""


# -- exports ---------------------------------------------------------------------------------------


def export_result(export: ExportConfig, permit: str = "serve as another user") -> Result:
    """Report whether this user can read an export's directory, or whether its socket is there.

    Args:
        export: what is to be served.
        permit: what else may be done where this user may not read it.

    """
    name = f"export {export.name}"
    if export.directory is not None:
        return _directory_result(name, export.directory, permit)
    assert export.socket is not None
    # Not by connecting: a backend takes a single connection in its life.
    try:
        is_socket = stat.S_ISSOCK(os.stat(export.socket).st_mode)
    except OSError as error:
        detail = f"{export.socket}: {os_reason(error)}"
        return Result(name, Mark.WARNING, detail, "start a virtiofsd there: it is waited for")
    if not is_socket:
        detail = f"{export.socket} is no socket"
        return Result(name, Mark.PROBLEM, detail, "name the socket of a virtiofsd")
    if not os.access(export.socket, os.W_OK, effective_ids=True):
        detail = f"{name_of(os.geteuid())} may not connect to {export.socket}"
        return Result(name, Mark.PROBLEM, detail, "permit it, or serve as another user")
    if is_listened_on(export.socket) is False:  # a backend leaves its socket behind when it ends
        detail = f"no process in this network namespace listens on {export.socket}"
        return Result(name, Mark.WARNING, detail, "start a virtiofsd there: it is waited for")
    return Result(name, Mark.OK, f"the backend on {export.socket}")


def _directory_result(name: str, directory: str, permit: str) -> Result:
    if (closed := _closed_folder(directory)) is not None:
        place, status = closed
        mode = f"{stat.filemode(status.st_mode)} {name_of(status.st_uid)} {_group(status.st_gid)}"
        detail = f"{directory} cannot be read by {name_of(os.geteuid())}: {place} is {mode}"
        right = "x" if place != directory else "rx"
        return Result(name, Mark.PROBLEM, detail, f"chmod o+{right} {place}, or {permit}")
    try:
        with route(directory, own_trust()) as found:
            there, keeper, risks = found.resolved, found.keeper, found.risks
            is_directory = stat.S_ISDIR(found.status.st_mode)
    except UnsafePath as unsafe:
        return Result(name, Mark.PROBLEM, f"{directory}: {unsafe.wrong}", unsafe.right)
    except OSError as error:
        detail = f"{directory}: {os_reason(error)}"
        return Result(name, Mark.PROBLEM, detail, "make or mount it: it is waited for")
    detail = directory if there == directory else f"{directory}, now {there}"
    if not is_directory:
        return Result(name, Mark.PROBLEM, f"{detail} is not a directory", "give a directory")
    if risks:
        return Result(name, Mark.WARNING, f"{detail}: {risks[0]}", "chmod go-w it, or chmod +t")
    if keeper is not None:
        detail += f"; {name_of(keeper)} decides where this leads, among what is {name_of(keeper)}'s"
    return Result(name, Mark.OK, detail)


def _closed_folder(directory: str) -> tuple[str, os.stat_result] | None:
    """Return the first folder on the way to a directory that keeps this user out, with its status.

    Return None where the directory can be read, or what is wrong is no folder's mode.
    """
    for way in dict.fromkeys((os.path.abspath(directory), os.path.realpath(directory))):
        ends = [end for end, letter in enumerate(way) if letter == "/"]
        for place in dict.fromkeys(("/", *(way[:end] for end in ends if end), way)):
            try:
                status = os.stat(place)
            except OSError:
                return None
            wanted = os.X_OK if place != way else os.R_OK | os.X_OK
            if stat.S_ISDIR(status.st_mode) and not os.access(place, wanted, effective_ids=True):
                return place, status
    return None


def account_results(config: DaemonConfig) -> Iterator[Result]:
    """Report users and groups that are named and do not exist."""
    named = [(f"export {each.name}", each.access.missing) for each in config.exports]
    named += [("socket", frozenset({each.missing})) for each in config.listeners if each.missing]
    for name, missing in named:
        for account in sorted(missing):
            advice = f"add the {account.word}, or take the name out: it is waited for"
            yield Result(name, Mark.PROBLEM, str(account), advice)


# -- sockets ---------------------------------------------------------------------------------------


def listener_result(config: ListenConfig) -> Result:
    """Report whether the daemon can listen there, or a process does already."""
    address = config.address
    if address.startswith("@"):
        return Result("socket", Mark.OK, address)
    if is_taken := is_listened_on(address):
        detail = f"{address}: a daemon serves it, or systemd holds it for one"
        return Result("socket", Mark.OK, detail)
    if os.path.lexists(address):
        status = os.lstat(address)
        if not stat.S_ISSOCK(status.st_mode):
            return Result("socket", Mark.PROBLEM, f"{address} is no socket", "remove it")
        if is_taken is not None and status.st_uid != os.geteuid():
            detail = f"{address}: {name_of(status.st_uid)} has left a socket there"
            return Result("socket", Mark.PROBLEM, detail, "remove it")
    if config.group is not None and not _may_give_to(config.group):
        who, group = name_of(os.geteuid()), _group(config.group)
        detail = f"{address}: {who} may not give it to group {group}"
        return Result("socket", Mark.PROBLEM, detail, "join that group, or leave it out")
    folder = os.path.dirname(address) or "."
    if not os.path.isdir(folder):
        if address == SYSTEM_SOCKET and os.geteuid() == 0:
            return Result("socket", Mark.OK, f"{address}; its folder will be made")
        detail = f"{address}: there is no folder {folder}"
        return Result("socket", Mark.PROBLEM, detail, f"mkdir {folder}, or choose another socket")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        detail = f"{address}: {name_of(os.geteuid())} may not write {folder}"
        return Result("socket", Mark.PROBLEM, detail, "choose another socket, or permit it")
    return _folder_result(address, folder)


def _may_give_to(group: int) -> bool:
    """Return whether this process may give files of its own to a group (chown(2))."""
    return group in (os.getegid(), *os.getgroups()) or may_change_owners()


def _folder_result(address: str, folder: str) -> Result:
    """Warn where others can replace the socket, since clients know the daemon by its path alone."""
    detail = f"{address}: others can put a socket of theirs in its place, for clients to talk to"
    advice = f"choose one below /run, or chmod go-w {folder}"
    warning = Result("socket", Mark.WARNING, detail, advice)
    return _kept_result(folder, Result("socket", Mark.OK, address), warning)


def _kept_result(folder: str, kept: Result, warning: Result) -> Result:
    """Return ``kept`` where others cannot replace a folder's entries, else a warning or problem."""
    trust = own_trust()
    try:
        with route(folder, trust) as found:
            require_answers(found, folder, trust)
            return kept if keeps_entries(found, trust) else warning
    except UnsafePath as unsafe:
        return Result(kept.name, Mark.PROBLEM, f"{kept.detail}: {unsafe.wrong}", unsafe.right)
    except OSError as error:
        detail = f"{kept.detail}: {os_reason(error)}"
        return Result(kept.name, Mark.PROBLEM, detail, "choose another")


def listener_there(address: str) -> ListenConfig:
    """Return the listener of an address, with the mode and group it has where it exists already."""
    if address.startswith("@") or not is_listened_on(address):
        return ListenConfig(address)
    status = os.stat(address)
    return ListenConfig(address, stat.S_IMODE(status.st_mode), status.st_gid)


def access_results(config: DaemonConfig, listeners: Sequence[ListenConfig]) -> Iterator[Result]:
    """Warn of exports for users whom no socket lets in; rigs have sockets of their own."""
    in_rigs = {name for rig in config.rigs for name in rig.exports}
    for export in config.exports:
        if export.name in in_rigs:
            continue
        shut_out = sorted(
            name_of(user)
            for user in export.access.users - {0, os.geteuid()}
            if not any(_lets_in(listener, user) for listener in listeners)
        )
        shut_out += sorted(
            f"group {_group(group)}"
            for group in export.access.groups
            if not any(_lets_group_in(listener, group) for listener in listeners)
        )
        if export.access.everyone and not any(_is_open(listener) for listener in listeners):
            shut_out.append("everybody")
        if shut_out:
            yield Result(
                f"export {export.name}",
                Mark.WARNING,
                f"it is for {', '.join(shut_out)}, but no socket lets them connect",
                'give a [[listen]] a mode such as "0666", or "0660" and their group',
            )


def _is_open(listener: ListenConfig) -> bool:
    return listener.address.startswith("@") or bool(listener.mode & stat.S_IWOTH)


def _lets_in(listener: ListenConfig, uid: int) -> bool:
    if _is_open(listener):
        return True
    if not listener.mode & stat.S_IWGRP:
        return False
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return _socket_group(listener) in os.getgrouplist(user.pw_name, user.pw_gid)


def _lets_group_in(listener: ListenConfig, gid: int) -> bool:
    """Return whether a group, or every known member of it, can connect."""
    if _is_open(listener):
        return True
    if listener.mode & stat.S_IWGRP and _socket_group(listener) == gid:
        return True
    try:
        members = grp.getgrgid(gid).gr_mem
        return bool(members) and all(
            _lets_in(listener, pwd.getpwnam(member).pw_uid) for member in members
        )
    except KeyError:
        return False


def _socket_group(listener: ListenConfig) -> int:
    return os.getegid() if listener.group is None else listener.group


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


# -- rigs and the rest -----------------------------------------------------------------------------


def rig_results(rigs: Sequence[RigConfig], *, may_enter: bool = False) -> Iterator[Result]:
    """Report whether the namespaces of rigs exist and, unless that is known, can be entered."""
    if rigs and not may_enter and not may_enter_namespaces():
        yield Result(
            "rigs",
            Mark.PROBLEM,
            f"{name_of(os.geteuid())} may not enter network namespaces",
            "serve as root, or with CAP_SYS_ADMIN (AmbientCapabilities= of a unit)",
        )
    for rig in rigs:
        name = f"rig {rig.netns}"
        try:
            there, own = os.stat(rig.path), os.stat(_OWN_NAMESPACE)
        except OSError as error:
            detail = f"{rig.path}: {os_reason(error)}"
            advice = f"ip netns add {rig.netns}: it is waited for"
            yield Result(name, Mark.WARNING, detail, advice)
            continue
        if there.st_dev != own.st_dev:
            detail = f"{rig.path} is no namespace"
            yield Result(name, Mark.PROBLEM, detail, "name one that ip netns shows")
        else:
            yield Result(name, Mark.OK, f"{rig.path}: {', '.join(rig.exports)} on {rig.address}")


def metrics_result(file: str) -> Result:
    """Report whether the metrics file can be replaced by a new one in its folder."""
    folder = os.path.dirname(file)
    if not os.path.isdir(folder):
        detail = f"{file}: there is no folder {folder}"
        return Result("metrics", Mark.PROBLEM, detail, f"mkdir {folder}, or give another file")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        detail = f"{name_of(os.geteuid())} may not write {folder}"
        return Result("metrics", Mark.PROBLEM, detail, "permit it, or give another metrics_file")
    detail = f"{file}: others can put numbers of theirs in its place"
    advice = f"chmod go-w {folder}, or choose another"
    warning = Result("metrics", Mark.WARNING, detail, advice)
    return _kept_result(folder, Result("metrics", Mark.OK, file), warning)
