"""Try out what the machine grants the daemon and its backends."""

import contextlib
import errno
import fcntl
import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from memory.fence import NoFenceError, find_fence, needs_fence
from vuserd.backend import landlock
from vuserd.config.descriptor_limits import LEAST_DESCRIPTORS, cuts, limits_within
from vuserd.config.model import ClientLimits
from vuserd.errors import in_a_sentence, os_reason

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
#: asm-generic/socket.h
_SO_PEERGROUPS: Final = 59
#: linux/capability.h
_CAP_CHOWN: Final = 0
_CAP_SYS_CHROOT: Final = 18
_CAP_SYS_ADMIN: Final = 21
_PATIENCE: Final = 10.0

#: A program that makes the namespaces of argument 1, as a sandbox does first. The constants are
#: from linux/sched.h and linux/mount.h: MS_REC | MS_PRIVATE.
_UNSHARE: Final = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def must(result):
    if result:
        sys.exit(os.strerror(ctypes.get_errno()))
must(libc.unshare(int(sys.argv[1])))
must(libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None))
"""
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWPID: Final = 0x20000000
_CLONE_NEWNET: Final = 0x40000000
#: The namespaces that a backend's sandbox makes first: for root, and for other users.
_NAMESPACES: Final = (
    _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET,
    _CLONE_NEWNS | _CLONE_NEWUSER,
)

#: Settings that deny users namespaces: sysctl, the value that denies them, what to do.
_USER_NAMESPACES: Final = (
    ("user/max_user_namespaces", "0", "set sysctl user.max_user_namespaces to 10000, say"),
    ("kernel/unprivileged_userns_clone", "0", "set sysctl kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "set sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give virtiofsd a profile",
    ),
)


class Mark(StrEnum):
    """How serious a result is."""

    OK = "ok"
    WARNING = "warning"  #: it works, but not as well as it could
    PROBLEM = "problem"  #: something will not work


class Result(NamedTuple):
    """What was found out about one thing."""

    name: str
    mark: Mark
    #: What was found.
    detail: str
    #: What to do about it; empty if nothing.
    advice: str = ""


def machine_results(
    uid: int, descriptors: int = 0, *, namespaces_wanted: bool = False
) -> list[Result]:
    """Try out what the machine grants to ``uid``, which has to be this process's.

    Args:
        uid: the effective user.
        descriptors: the highest limit of descriptors that is configured for a backend.
        namespaces_wanted: whether an export accepts no sandbox but ``namespace``.

    """
    return [
        _kernel(),
        fence_result(platform.machine()),
        sandbox_result(uid, wanted=namespaces_wanted),
        descriptor_result(resource.getrlimit(resource.RLIMIT_NOFILE)[1], descriptors),
        _memory_locks(),
        huge_pages_result(_meminfo()),
    ]


def _kernel() -> Result:
    """Try what the kernel has to have: sealed memory, proc(5), the groups of a peer."""
    name = f"{platform.system()} {platform.release()} on {platform.machine()}"
    needed = "take a newer kernel, or a container that allows it"
    trials: tuple[tuple[str, Callable[[], None], Mark, str], ...] = (
        ("sealed memory (memfd_create)", _try_memory, Mark.PROBLEM, needed),
        ("/proc", _try_proc, Mark.PROBLEM, "mount it, which every file is opened by"),
        (
            "supplementary groups of clients (SO_PEERGROUPS)",
            _try_peer_groups,
            Mark.WARNING,
            "name users in the configuration, or take Linux 4.13 or newer",
        ),
    )
    for what, trial, mark, advice in trials:
        try:
            trial()
        except OSError as error:
            return Result("kernel", mark, f"{name}: {what}: {os_reason(error)}", advice)
    return Result("kernel", Mark.OK, name)


def fence_result(machine: str, byteorder: str = sys.byteorder) -> Result:
    """Look for the memory fence that virtqueues need on ``machine`` (as ``uname -m``)."""
    name = "memory order"
    try:
        find_fence(machine, byteorder)
    except NoFenceError as error:
        return Result(name, Mark.PROBLEM, str(error), "no export can be served before")
    if needs_fence(machine):
        return Result(name, Mark.OK, f"{machine}, by the fences of libatomic")
    return Result(name, Mark.OK, f"kept by {machine} itself")


def _try_memory() -> None:
    descriptor = os.memfd_create("vuserd-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, 4096)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    finally:
        os.close(descriptor)


def _try_proc() -> None:
    os.stat("/proc/self/fd")


def _try_peer_groups() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            ours.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
        except OSError as error:
            if error.errno != errno.ERANGE:  # it works, but this user is in very many groups
                raise


def sandbox_result(uid: int, settings: str = "/proc/sys", *, wanted: bool = False) -> Result:
    """Report whether ``uid`` can make the namespaces of a backend's sandbox.

    A user's backend needs none where there is Landlock.
    """
    if uid != 0 and not wanted and landlock.is_available():
        detail = f"backends can be shut in by Landlock (version {landlock.version()})"
        return Result("sandbox", Mark.OK, detail)
    advice = namespace_advice(uid, settings)
    reason = _unshare(_NAMESPACES[uid != 0])
    if reason is None:
        return Result("sandbox", Mark.OK, "backends can be shut in by namespaces")
    if wanted:
        detail = f'namespaces: {reason}; an export wants sandbox = "namespace"'
        return Result("sandbox", Mark.PROBLEM, detail, advice)
    return Result("sandbox", Mark.WARNING, f"namespaces: {reason}; others are tried", advice)


def namespace_advice(uid: int, settings: str = "/proc/sys") -> str:
    """Return what to do where ``uid`` may not make the namespaces of a backend's sandbox."""
    if uid == 0:
        return "give this container CAP_SYS_ADMIN"
    for sysctl, culprit, remedy in _USER_NAMESPACES:
        if _first_line(os.path.join(settings, sysctl)) == culprit:
            return remedy
    return "allow user namespaces here (user_namespaces(7))"


def start_advice(sandbox: str, uid: int) -> str:
    """Return what to do where a backend does not start in ``sandbox``, the best there is."""
    if uid == 0 and not may_enter_namespaces() and not _has(_CAP_SYS_CHROOT):
        return "give this container CAP_SYS_ADMIN, or at least CAP_SYS_CHROOT"
    if sandbox == "namespace" and _unshare(_NAMESPACES[uid != 0]) is not None:
        return namespace_advice(uid)
    return "see what it says; run its command by hand"


def _unshare(namespaces: int) -> str | None:
    """Make namespaces in another process; return what prevents that, None if nothing does."""
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _UNSHARE, str(namespaces)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return os_reason(error) if isinstance(error, OSError) else "no answer"
    if tried.returncode == 0:
        return None
    words = tried.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
    return in_a_sentence(words[-1])


def descriptor_result(hard: int, wanted: int) -> Result:
    """Judge the hard limit of open files against what is configured for backends."""
    raise_it = "raise the limit (ulimit -Hn, or LimitNOFILE= of a unit)"
    if hard == resource.RLIM_INFINITY:
        return Result("descriptors", Mark.OK, "without a limit")
    if hard < LEAST_DESCRIPTORS:
        detail = f"{hard} are too few, at least {LEAST_DESCRIPTORS} are needed"
        return Result("descriptors", Mark.PROBLEM, detail, raise_it)
    if hard < wanted:
        detail = f"{hard}; backends get no more, where {wanted} are wanted"
        return Result("descriptors", Mark.WARNING, detail, raise_it)
    return Result("descriptors", Mark.OK, f"{hard} for each process")


def user_limits_result(limits: ClientLimits, hard: int | None) -> Result:
    """Judge the limits of one user against the open files that all users share."""
    if cut := cuts(limits, limits_within(limits, hard)):
        advice = "raise the limit of open files (ulimit -Hn, or LimitNOFILE= of a unit)"
        return Result("user limits", Mark.WARNING, f"with {hard} open files, {cut}", advice)
    return Result("user limits", Mark.OK, "a user at all of them leaves half of the open files")


def _memory_locks() -> Result:
    """Report the limit: vuserd locks no memory, but readers who know VMs will look for it."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    limit = "without a limit" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    return Result("memory locks", Mark.OK, f"{limit}; vuserd locks none")


def huge_pages_result(meminfo: Mapping[str, str]) -> Result:
    """Report the huge pages: vuserd takes none itself, but a client's memory may be of them."""
    total, free = (meminfo.get(f"HugePages_{each}", "0") for each in ("Total", "Free"))
    size = meminfo.get("Hugepagesize", "an unknown size")
    there = f"{free} of {total} free, of {size}" if total != "0" else "none"
    return Result("huge pages", Mark.OK, f"{there}; vuserd needs none, clients may attach them")


def _meminfo() -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            found[key] = value.strip()
    return found


def may_enter_namespaces() -> bool:
    """Return whether this process has CAP_SYS_ADMIN, which setns(2) requires."""
    return _has(_CAP_SYS_ADMIN)


def may_change_owners() -> bool:
    """Return whether this process has CAP_CHOWN, and may give files to any group."""
    return _has(_CAP_CHOWN)


def _has(capability: int) -> bool:
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def _first_line(path: str) -> str:
    with contextlib.suppress(OSError), open(path) as lines:
        return lines.readline().strip()
    return ""
