"""Make sockets in other network namespaces (network_namespaces(7)).

A thread may be in another namespace than the rest of its process, and a socket stays in the one
that it was made in. So a thread enters the namespace, makes the socket, and ends: no other work
ever runs there.
"""

import ctypes
import os
import socket
from typing import Final

#: linux/sched.h: the descriptor has to be one of a network namespace.
_CLONE_NEWNET: Final = 0x40000000


def unix_socket_in(path: str) -> socket.socket:
    """Return a new unix stream socket of the network namespace at ``path``; wait for its thread.

    Raises:
        OSError: there is no network namespace, or this process may not enter it (setns(2));
            without a number: there is no thread to be had.

    """
    from concurrent.futures import ThreadPoolExecutor  # few daemons have rigs

    with ThreadPoolExecutor(max_workers=1) as its_own:
        try:
            making = its_own.submit(_enter_and_make, path)
        except RuntimeError as error:
            raise OSError(str(error)) from error
        return making.result()


def _enter_and_make(path: str) -> socket.socket:
    setns = ctypes.CDLL(None, use_errno=True).setns  # os.setns is there from Python 3.12 on
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it may be a pipe
    try:
        if setns(namespace, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(namespace)
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
