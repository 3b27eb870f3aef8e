"""Look up users and groups by their names, in a thread where it may ask a server (nss(5))."""

import grp
import pwd
from dataclasses import replace

from vuserd.config.model import Access, Account, ListenConfig


def number_of(account: Account) -> int | None:
    """Return the number of a user or group; None if there is none of that name now."""
    try:
        if account.word == "user":
            return pwd.getpwnam(account.name).pw_uid
        return grp.getgrnam(account.name).gr_gid
    except (KeyError, ValueError):  # the latter for text that no name can be
        return None


def with_accounts(access: Access) -> Access:
    """Return the rights with those who were missing and exist by now."""
    found = {account: number_of(account) for account in access.missing}
    numbers = {
        word: {
            number
            for account, number in found.items()
            if account.word == word and number is not None
        }
        for word in ("user", "group")
    }
    return replace(
        access,
        users=access.users | numbers["user"],
        groups=access.groups | numbers["group"],
        missing=frozenset(account for account, number in found.items() if number is None),
    )


def with_group(listener: ListenConfig) -> ListenConfig:
    """Return the socket with its group, if that was missing and exists by now."""
    group = None if listener.missing is None else number_of(listener.missing)
    return listener if group is None else replace(listener, group=group, missing=None)
