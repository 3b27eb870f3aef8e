"""Whose daemon a client believes on a name that anybody might have taken."""

import os
import pwd
import socket
import struct

import pytest

from vuserd.client.listener import check_listener


class Listening:
    """A connected socket whose listener is of a certain user."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("=iII", 1, self._uid, 1)[:size]


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_root_and_the_own_user_are_believed(uid: int) -> None:
    check_listener(Listening(uid), "@vuserd")  # type: ignore[arg-type]


def test_the_service_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def account(name: str) -> pwd.struct_passwd:
        assert name == "vuserd"
        return pwd.struct_passwd((name, "", 61_009, 61_009, "", "/", ""))

    monkeypatch.setattr(pwd, "getpwnam", account)
    check_listener(Listening(61_009), "@vuserd")  # type: ignore[arg-type]


def test_another_user_is_not() -> None:
    with pytest.raises(PermissionError, match="uid 61010 listens there"):
        check_listener(Listening(61_010), "@vuserd")  # type: ignore[arg-type]


def test_a_socket_that_was_named_is_the_caller_s_choice() -> None:
    check_listener(Listening(61_010), "@other")  # type: ignore[arg-type]
    check_listener(Listening(61_010), "/run/vuserd/vuserd.sock")  # type: ignore[arg-type]


def test_of_a_real_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        check_listener(ours, "@vuserd")
