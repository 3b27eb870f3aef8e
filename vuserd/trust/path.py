"""Walk a path by descriptors, one component after the other, and find who could lead it elsewhere.

A user who may write to a folder decides what its entries are, and a symbolic link leads wherever
its owner wants. Root and the daemon's own user are trusted with that. Another user may decide where
a path leads as long as it ends at a file of that user, by a way that is open to that user. So no
user can make the daemon open a file that this user could not open.
"""

import ctypes
import errno
import functools
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from vuserd.errors import UnsafePath
from vuserd.trust.bounded_calls import open_entry, status_of

#: The most links that are followed, as in the kernel (path_resolution(7)).
_MOST_LINKS: Final = 40
_ROOT: Final = 0
_ALL_IDS: Final = ["0", "0", "4294967295"]
_OVERFLOW: Final = 65534
#: linux/magic.h; struct statfs begins with the type, and has some 120 bytes.
_FUSE_SUPER_MAGIC: Final = 0x65735546
_STATFS_SIZE: Final = 256
#: linux/capability.h: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH.
_READS_ALL: Final = 1 << 1 | 1 << 2
_LIBC: Final = ctypes.CDLL(None)
_ACCESS_LIST: Final = "system.posix_acl_access"


class Trust(NamedTuple):
    """The users and groups whose files and folders are trusted like root's."""

    users: frozenset[int]
    #: Groups without other members.
    groups: frozenset[int]
    #: Whether this process opens whatever there is: then it can be misled by directories, too.
    reads_all: bool


class Route(NamedTuple):
    """Where a path led, and which way."""

    #: The file at its end, opened with O_PATH.
    descriptor: int
    status: os.stat_result
    owner: int
    #: The path without symbolic links.
    resolved: str
    #: The other user who decides where it leads, if to nothing that is not that user's own.
    keeper: int | None
    #: The user whose own file system (FUSE) it is on.
    mounter: int | None
    #: What others could do about it, a sentence each: for people.
    risks: tuple[str, ...]


def own_trust() -> Trust:
    """Return whom this process trusts: root, its own user, and the user who runs it by sudo."""
    return _trust(
        os.geteuid(), os.getegid(), os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    )


@functools.cache
def _trust(user: int, group: int, caller: str | None, callers_group: str | None) -> Trust:
    users, groups = {_ROOT, user}, {_ROOT}
    if _is_private(user, group):
        groups.add(group)
    if user == _ROOT and caller is not None and caller.isdecimal():
        users.add(int(caller))
        if callers_group == caller and _is_private(int(caller), int(caller)):
            groups.add(int(caller))
    for ids, kind in ((users, "uid"), (groups, "gid")):
        if not _knows_all_ids(kind):
            ids.add(_overflow(kind))
    return Trust(frozenset(users), frozenset(groups), user == _ROOT or _may_read_all())


def _may_read_all() -> bool:
    """Return whether this process may read all files, as a unit may grant its user."""
    with suppress(OSError, StopIteration, ValueError), open("/proc/self/status") as lines:
        effective = next(line for line in lines if line.startswith("CapEff:"))
        return bool(int(effective.split()[1], 16) & _READS_ALL)
    return False


def _is_private(user: int, group: int) -> bool:
    """Return whether a group is the user's alone: its number or name is the user's (useradd(8)).

    It has no other members. Whose first group it is besides, only a search of all users would show.
    """
    name = ""
    with suppress(KeyError):
        name = pwd.getpwuid(user).pw_name
    try:
        entry = grp.getgrgid(group)
    except KeyError:
        return user == group
    return (user == group or entry.gr_name == name) and set(entry.gr_mem) <= {name}


def _knows_all_ids(kind: str) -> bool:
    """Return whether no owner is hidden by a user namespace (user_namespaces(7))."""
    try:
        with open(f"/proc/self/{kind}_map") as lines:
            return lines.readline().split() == _ALL_IDS
    except OSError:
        return True


def _overflow(kind: str) -> int:
    """Return the owner that stands for all hidden ones, of which the host's root is one."""
    with suppress(OSError, ValueError), open(f"/proc/sys/kernel/overflow{kind}") as lines:
        return int(lines.readline())
    return _OVERFLOW


@contextmanager
def route(path: str, trust: Trust) -> Iterator[Route]:
    """Open the file that a path leads to, for the block's time.

    This may wait for a file system.

    Raises:
        UnsafePath: others could lead it to what is not theirs.
        OSError: it leads nowhere.

    """
    walk = _Walk(path, trust)
    try:
        walk.go()
        yield walk.route()
    finally:
        os.close(walk.here)


def require_own(found: Route, path: str, trust: Trust) -> None:
    """Refuse a file that others have written, could write or could lead to: it is obeyed.

    Raises:
        UnsafePath: they could; the message names them.

    """
    us = name_of(os.geteuid())
    if found.owner not in trust.users or found.keeper is not None:
        other = name_of(found.owner if found.keeper is None else found.keeper)
        wrong = f"it is {other}'s, who would decide what {us} does"
        raise UnsafePath(path, wrong, f"have a file that {us} owns, in a folder that {us} owns")
    if others := who_may_write(found.descriptor, found.status, trust):
        raise UnsafePath(path, f"{others} may write it", f"chmod go-w {path}")


def require_answers(found: Route, path: str, trust: Trust) -> None:
    """Refuse a folder where another user decides when, and whether, a system call ends.

    Raises:
        UnsafePath: naming that user.

    """
    if found.mounter is not None and found.mounter not in trust.users:
        wrong = f"it is on a file system of {name_of(found.mounter)}'s, which may answer nothing"
        raise UnsafePath(path, wrong, "choose a folder that the kernel has on a disk or in memory")


def who_may_write(descriptor: int, status: os.stat_result, trust: Trust) -> str:
    """Return who beside its owner may write a file or folder; nothing where it is trusted ones."""
    if status.st_mode & stat.S_IWOTH:
        return "everybody"
    if not status.st_mode & stat.S_IWGRP:
        return ""
    # With an access list the group's bits are the most that any user in it has (acl(5)).
    with suppress(OSError):
        os.getxattr(f"/proc/self/fd/{descriptor}", _ACCESS_LIST)
        return "whoever its access list names"
    return "" if status.st_gid in trust.groups else f"group {_group_name(status.st_gid)}"


def keeps_entries(found: Route, trust: Trust) -> bool:
    """Return whether what this process puts into a folder is safe from other users."""
    firm = found.keeper is None and not found.risks and found.owner in trust.users
    is_sticky = found.status.st_mode & stat.S_ISVTX
    return firm and bool(is_sticky or not who_may_write(found.descriptor, found.status, trust))


def name_of(user: int) -> str:
    """Return a user's name, or its number in words."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"uid {user}"


def _group_name(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)


class _Walk:
    """A walk along a path. ``here`` is open until its end, whatever happens.

    Every other descriptor is closed within the method that opens it.
    """

    def __init__(self, path: str, trust: Trust) -> None:
        self._path = path
        self._trust = trust
        self._names: list[str] = []
        self._links = 0
        #: The one user, beside trusted ones, who decides where this leads.
        self._keeper: int | None = None
        self._kept_at = ""
        self._risks: list[str] = []
        start = path if path.startswith("/") else os.path.join(os.getcwd(), path)
        self._left = start.split("/")[::-1]
        #: Whose own file systems those are that were come to, by device.
        self._mounters: dict[int, int | None] = {}
        self.here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def go(self) -> None:
        """Walk to the end of the path."""
        self._arrive()
        while self._left:
            name = self._left.pop()
            if not stat.S_ISDIR(self._status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._path)
            if name not in ("", "."):
                self._step(name)
        if self._keeper not in (None, self._owner):
            assert self._keeper is not None
            raise self._unsafe(f"what is there is {name_of(self._owner)}'s")

    def route(self) -> Route:
        """Return where the path led."""
        resolved = "/" + "/".join(self._names)
        mounter = self._mounters[self._status.st_dev]
        risks = tuple(self._risks)
        return Route(self.here, self._status, self._owner, resolved, self._keeper, mounter, risks)

    def _step(self, name: str) -> None:
        entry = _open_entry(self.here, name)
        try:
            status = status_of(entry)
            if name != "..":
                self._judge(entry, status, name)
            elif self._owner not in self._trust.users:
                self._keep(self._owner)  # who can move a directory decides what is above it
            if stat.S_ISLNK(status.st_mode):
                self._follow(os.readlink("", dir_fd=entry))
                return
            self.here, entry = entry, self.here
            if name == "..":
                del self._names[-1:]
            else:
                self._names.append(name)
            self._arrive()
        finally:
            os.close(entry)
        is_closed = stat.S_ISDIR(status.st_mode) and not status.st_mode & stat.S_IXOTH
        if is_closed and self._keeper not in (None, self._owner):
            raise self._unsafe(f"{self._folder()} is closed to others")

    def _arrive(self) -> None:
        self._status = status_of(self.here)
        self._owner = self._owner_of(self.here, self._status)

    def _owner_of(self, descriptor: int, status: os.stat_result) -> int:
        """Return a file's owner. What a user's own file system says of that is that user's word."""
        if status.st_dev not in self._mounters:
            self._mounters[status.st_dev] = _mounter(descriptor)
        mounter = self._mounters[status.st_dev]
        return status.st_uid if mounter is None else mounter

    def _follow(self, target: str) -> None:
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._path)
        self._left += target.split("/")[::-1]
        if target.startswith("/"):
            top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.here, top = top, self.here
            os.close(top)
            self._names.clear()
            self._arrive()

    def _judge(self, entry: int, status: os.stat_result, name: str) -> None:
        """Check which users may have put this entry into this folder."""
        others = who_may_write(self.here, self._status, self._trust)
        owner = self._owner_of(entry, status)
        is_link = stat.S_ISLNK(status.st_mode)
        # Where others may write, the owner is who put it there, or somebody whom that one obeys.
        putters = {self._owner, owner} if others else {self._owner}
        if others and is_link and status.st_nlink > 1:
            raise UnsafePath(
                self._path,
                f"{others} may write {self._folder()}, and its entry {name} is a link with several"
                " names, whoever gave it this one",
                f"remove {name} there",
            )
        if others and not self._status.st_mode & stat.S_ISVTX:
            self._risk(others)
            if self._trust.reads_all and not _lets_in(status, self._status):
                raise UnsafePath(
                    self._path,
                    f"{others} may write {self._folder()}, and {name} is closed to them",
                    f"chmod a+rx {name} there, or chmod go-w {self._folder()}",
                )
        # A directory leads nowhere else. To who can read all, it may be one too many.
        if is_link or self._trust.reads_all:
            for user in putters - self._trust.users:
                self._keep(user)

    def _risk(self, others: str) -> None:
        risk = f"{others} may write {self._folder()}, and give this name to something else"
        if others == "everybody" and self._trust.reads_all:
            raise UnsafePath(self._path, risk, f"chmod o-w {self._folder()}, or chmod +t")
        self._risks.append(risk)

    def _keep(self, user: int) -> None:
        if self._keeper is None:
            self._keeper, self._kept_at = user, self._folder()
        elif self._keeper != user:
            raise self._unsafe(f"{name_of(user)} decides as well, in {self._folder()}")

    def _unsafe(self, why: str) -> UnsafePath:
        assert self._keeper is not None
        keeper = name_of(self._keeper)
        return UnsafePath(
            self._path,
            f"{keeper} decides in {self._kept_at} where this leads, and {why}",
            f"take what is {keeper}'s own, or a way that {keeper} may not change",
        )

    def _folder(self) -> str:
        return "/" + "/".join(self._names)


def _lets_in(status: os.stat_result, folder: os.stat_result) -> bool:
    """Return whether a user who may give a directory this name could look into it anyway."""
    of_group = status.st_gid == folder.st_gid and status.st_mode & 0o050 == 0o050
    return not stat.S_ISDIR(status.st_mode) or of_group or status.st_mode & 0o005 == 0o005


def _open_entry(folder: int, name: str) -> int:
    """Open an entry without following it; as a directory first, which triggers an automount."""
    flags = os.O_PATH | os.O_NOFOLLOW
    try:
        return open_entry(folder, name, flags | os.O_DIRECTORY)
    except NotADirectoryError:
        return open_entry(folder, name, flags)


def _mounter(descriptor: int) -> int | None:
    """Return the user whose own file system (FUSE) a file is on; None if it is root's.

    Raises:
        OSError: it is not mounted any more, so that its user is unknown.

    """
    answer = ctypes.create_string_buffer(_STATFS_SIZE)
    # This asks the file system itself. If it does not answer, the mounts show whose it is.
    is_answered = not _LIBC.fstatfs(descriptor, answer)
    if is_answered and ctypes.c_long.from_buffer(answer).value != _FUSE_SUPER_MAGIC:
        return None
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
        mount = next((line.split()[1] for line in lines if line.startswith(b"mnt_id:")), b"")
    # Users choose the names of mount points, in which the kernel escapes blanks and line feeds:
    # as text, a carriage return would end a line, and what is no UTF-8 could not be read.
    with open("/proc/self/mountinfo", "rb") as lines:
        line = next((line for line in lines if line.split(b" ", 1)[0] == mount), b"")
    if not line:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    options = line.rstrip(b"\n").split(b" ")[-1].split(b",")
    user = next((each for each in options if each.startswith(b"user_id=")), b"user_id=0")
    return int(user.partition(b"=")[2]) or None
