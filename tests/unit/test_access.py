"""Which user a client is, and what it may see."""

import os
import socket
import struct
from typing import Any

import pytest

from vuserd.config.model import Access, ExportConfig
from vuserd.rpc.access import Peer, Rights, VisibleExports, netns_cookie

SO_PEERGROUPS = 59


def peer(uid: int, *groups: int) -> Peer:
    return Peer(1, uid, frozenset(groups))


class TestPeer:
    def test_the_kernel_says_who_it_is(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            found = Peer.of(ours)
        assert found.pid == os.getpid()
        assert found.uid == os.geteuid()
        assert found.groups == {os.getegid(), *os.getgroups()}
        with open("/proc/self/comm") as file:
            assert found.command() == file.read().strip()

    def test_one_in_too_many_groups_has_its_own_alone(self) -> None:
        class Crowded:
            def getsockopt(self, _: int, option: int, size: int) -> bytes:
                if option == SO_PEERGROUPS:
                    raise OSError(34, "ERANGE")
                return struct.pack("=iII", 7, 61_001, 61_002)[:size]

        found = Peer.of(Crowded())  # type: ignore[arg-type]
        assert found == Peer(7, 61_001, frozenset({61_002}), "numerical result out of range")

    def test_a_process_that_is_gone_has_no_name(self) -> None:
        assert Peer(2**22 + 1, 0, frozenset()).command() is None


class TestRights:
    NOBODY = Access()
    NAMED = Access(users=frozenset({61_001}), groups=frozenset({62_001}))
    ALL = Access(everyone=True)

    @pytest.mark.parametrize("uid", [0, os.geteuid()])
    def test_root_and_the_daemons_user_see_and_manage_everything(self, uid: int) -> None:
        rights = Rights(peer(uid))
        assert rights.manages
        assert all(rights.sees("x", access) for access in (self.NOBODY, self.NAMED, self.ALL))

    @pytest.mark.parametrize(
        ("who", "sees"),
        [
            (peer(61_001, 61_001), True),
            (peer(61_009, 62_001), True),
            (peer(61_009, 61_009, 62_001), True),
            (peer(61_009, 61_009), False),
            (peer(62_001, 61_001), False),  # numbers of users are not those of groups
        ],
    )
    def test_others_see_what_names_them(self, who: Peer, *, sees: bool) -> None:
        rights = Rights(who)
        assert not rights.manages
        assert rights.sees("x", self.NAMED) is sees
        assert rights.sees("x", self.ALL)
        assert not rights.sees("x", self.NOBODY)

    def test_alike_are_who_see_the_same(self) -> None:
        inside = {"a"}
        rights = Rights(Peer(1, 61_001, frozenset({61_002})), inside)
        assert Rights(Peer(2, 61_001, frozenset({61_002})), inside).alike == rights.alike
        others = [
            Rights(Peer(1, 61_009, frozenset({61_002})), inside),
            Rights(Peer(1, 61_001, frozenset({61_002, 61_003})), inside),
            Rights(Peer(1, 61_001, frozenset({61_002})), {"a"}),
            Rights(Peer(1, 61_001, frozenset({61_002}))),
        ]
        assert rights.alike not in {other.alike for other in others}

    def test_a_rig_bounds_everybody(self) -> None:
        rights = Rights(peer(0), {"a"})
        assert not rights.manages
        assert rights.sees("a", self.NOBODY)
        assert not rights.sees("b", self.ALL)


async def test_a_look_is_at_what_the_client_sees() -> None:
    """The file system of another export may answer late."""
    looked: list[str] = []

    class Watched:
        def __init__(self, name: str, user: int) -> None:
            self.config = ExportConfig(name, access=Access(users=frozenset({user})))

        async def look(self) -> None:
            looked.append(self.config.name)

    exports: Any = {"own": Watched("own", 61_001), "others": Watched("others", 61_002)}
    await VisibleExports(exports).look(Rights(peer(61_001)))
    assert looked == ["own"]
    await VisibleExports(exports).look(Rights(peer(61_003)))
    assert looked == ["own"]


def test_a_kernel_that_does_not_tell_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert netns_cookie(ours) == netns_cookie(theirs) is not None
        monkeypatch.setattr("vuserd.rpc.access._SO_NETNS_COOKIE", 4_000)
        assert netns_cookie(ours) is None
