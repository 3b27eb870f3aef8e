"""Which daemon a client trusts on a name that another user might have taken."""

import os
import pwd
import socket
import struct

import pytest

from vuserd.client.core import reconnect
from vuserd.client.core.reconnect import check_listener
from vuserd.wire.address import Candidate

GUESSES = [Candidate(name, is_guessed=True) for name in ("@vuserd", "/run/user/1/vuserd.sock")]
NAMED = Candidate("@lab", is_guessed=False)
CHECKED = pytest.mark.parametrize("candidate", [*GUESSES, NAMED])


class Listening:
    """A connected socket whose listener is of a certain user."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("=iII", 1, self._uid, 1)[:size]


def check(uid: int, candidate: Candidate) -> None:
    check_listener(Listening(uid), candidate)  # type: ignore[arg-type]


@CHECKED
@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_root_and_the_own_user_are_believed(uid: int, candidate: Candidate) -> None:
    check(uid, candidate)


@CHECKED
def test_the_service_is_believed(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    def account(name: str) -> pwd.struct_passwd:
        assert name == "vuserd"
        return pwd.struct_passwd((name, "", 61_009, 61_009, "", "/", ""))

    monkeypatch.setattr(pwd, "getpwnam", account)
    check(61_009, candidate)


@CHECKED
def test_another_user_is_not(candidate: Candidate) -> None:
    with pytest.raises(PermissionError, match="uid 61010 listens there"):
        check(61_010, candidate)


def test_who_has_no_number_here_is_not_the_same_as_who_has_none_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a user namespace all others are one number, that of a client from outside included."""
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(PermissionError):
        check(65534, NAMED)
    monkeypatch.setattr(reconnect, "_OVERFLOW_FILE", "/nonexistent")
    with pytest.raises(PermissionError):
        check(65534, NAMED)


def test_a_path_that_was_named_is_the_caller_s_choice() -> None:
    check(61_010, Candidate("/run/vuserd/vuserd.sock", is_guessed=False))


def test_of_a_real_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        check_listener(ours, GUESSES[0])
