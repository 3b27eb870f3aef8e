"""Where the daemon's own time goes: calls that need no backend, so that the RPC is all there is.

``make bench-rpc`` prints what such a call costs the daemon, by how many clients make it at once:
from the socket's wait to the reply, with the system calls. The clients are plain sockets of this
process, and their share of the processor time is taken off. ``--profile`` shows the functions.
"""

import argparse
import cProfile
import os
import pstats
import socket
import tempfile
import time
from contextlib import ExitStack
from typing import Any, Final

import msgpack
import trio

from vuserd.config.model import ClientLimits
from vuserd.delivery.images import ImageStore
from vuserd.rpc.access import Rights
from vuserd.rpc.methods.table import Methods
from vuserd.rpc.server import Listener, Server

_CALLS: Final = 3200  #: in a round
_ROUNDS: Final = 9
_CLIENTS: Final = (1, 16, 64)
_FUNCTIONS: Final = 25
_REQUEST: Final = msgpack.packb([0, 1, "rigs", []])
_ANSWER: Final = msgpack.packb([1, 1, None, []])


class _NoManager:
    """A daemon that has no rigs."""

    def rigs(self, rights: Rights) -> list[dict[str, Any]]:  # noqa: ARG002 - the daemon's
        return []


class Clients:
    """Sockets that ask all at once, again and again."""

    def __init__(self, address: str, count: int, stack: ExitStack) -> None:
        self._sockets = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for sock in self._sockets:
            sock.connect(address)
            sock.setblocking(False)  # noqa: FBT003 - the name is the standard library's

    async def ask(self, times: int) -> float:
        """Call so often with each; return the processor time that the daemon's side took."""
        own, begun = 0.0, time.process_time()
        for _ in range(times):
            own += self._ask_all()
            waiting = self._sockets
            while waiting:
                await trio.lowlevel.checkpoint()
                before = time.process_time()
                waiting = [sock for sock in waiting if not _has_answer(sock)]
                own += time.process_time() - before
        return time.process_time() - begun - own

    def _ask_all(self) -> float:
        before = time.process_time()
        for sock in self._sockets:
            sock.send(_REQUEST)
        return time.process_time() - before


def _has_answer(sock: socket.socket) -> bool:
    try:
        answer = sock.recv(4096)
    except BlockingIOError:
        return False
    if answer != _ANSWER:
        raise RuntimeError(f"another answer: {answer!r}")
    return True


async def _measure(folder: str, *, profile: bool) -> None:
    address = os.path.join(folder, "s")
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(address)
        listening.listen(max(_CLIENTS))
        listening.setblocking(False)  # noqa: FBT003
        async with trio.open_nursery() as nursery:
            manager: Any = _NoManager()
            methods = Methods({}, ImageStore(0, 1, nursery), manager)
            server = Server(methods, ClientLimits())
            await nursery.start(server.run)
            nursery.start_soon(server.accept, Listener(address, listening))
            server.open()
            print("| clients at once | CPU of a call, µs |")
            print("|---:|---:|")
            for count in _CLIENTS:
                with ExitStack() as connected:
                    clients = Clients(address, count, connected)
                    times = _CALLS // count
                    await clients.ask(times)  # warm
                    least = min([await clients.ask(times) for _ in range(_ROUNDS)])
                    print(f"| {count} | {least / times / count * 1e6:.1f} |", flush=True)
                    if profile and count == max(_CLIENTS):
                        with cProfile.Profile() as profiler:
                            await clients.ask(times)
                        pstats.Stats(profiler).sort_stats("tottime").print_stats(_FUNCTIONS)
            server.stop(1.0)
            await server.ended.wait()
            nursery.cancel_scope.cancel()


def main() -> None:
    """Measure in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", action="store_true", help="show the functions, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vuserd-bench-") as folder:
        trio.run(lambda: _measure(folder, profile=arguments.profile))


if __name__ == "__main__":
    main()
