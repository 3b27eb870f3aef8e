"""The limits of users, by the descriptors that the daemon may open."""

import os
import resource
import socket

import pytest

from vuserd.config.descriptor_limits import cuts, limits_within, most_images
from vuserd.config.model import ClientLimits
from vuserd.errors import CallError, ErrorCode
from vuserd.users.foreign_descriptors import ForeignDescriptors
from vuserd.wire.descriptors import MOST_DESCRIPTORS


def worst(limits: ClientLimits) -> int:
    """Return the descriptors that one user takes with all that the limits allow."""
    return (
        limits.user_connections
        + 3 * limits.user_descriptors
        + 2 * limits.user_requests
        + MOST_DESCRIPTORS
    )


@pytest.mark.parametrize("allowed", [1024, 1200, 4096, 20_000, 39_000, 65_536, 524_288])
@pytest.mark.parametrize(
    "limits",
    [
        ClientLimits(),
        ClientLimits(user_connections=1 << 20),
        ClientLimits(user_requests=1 << 24, user_descriptors=1 << 20),
        ClientLimits(user_connections=1, user_descriptors=1, user_requests=1 << 24),
    ],
)
def test_one_user_leaves_half(allowed: int, limits: ClientLimits) -> None:
    cut = limits_within(limits, allowed)
    assert worst(cut) + most_images(allowed) <= allowed // 2
    assert min(cut.user_connections, cut.user_descriptors, cut.user_requests) >= 1
    assert all(small <= large for small, large in zip(cut, limits, strict=True))
    assert (cuts(limits, cut) == "") is (cut == limits)


@pytest.mark.parametrize("allowed", [65_536, 524_288, None])
def test_the_usual_limits_are_left_as_they_are(allowed: int | None) -> None:
    assert limits_within(ClientLimits(), allowed) == ClientLimits()
    assert most_images(allowed) == 4096


def test_what_is_cut_is_told() -> None:
    limits = ClientLimits(user_requests=20)
    cut = limits_within(limits, 1024)
    assert cut.user_requests == 20
    assert cuts(limits, cut) == (
        "user_connections is 97 instead of 4096, user_descriptors is 16 instead of 1024"
    )


def test_where_there_are_far_too_few() -> None:
    cut = limits_within(ClientLimits(), 256)
    assert (cut.user_connections, cut.user_descriptors, cut.user_requests) == (1, 1, 1)


def test_a_descriptor_that_finds_no_room_is_told() -> None:
    """The kernel hands over none of it then, and says so by a flag alone."""
    ours, theirs = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, theirs:
        socket.send_fds(theirs, [b"x"], [0])
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(CallError) as refused:
                ForeignDescriptors(8).receive(ours, 100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert refused.value.code == ErrorCode.TOO_LARGE
