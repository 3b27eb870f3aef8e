"""Serve exports over TFTP, read-only, to boards that boot from a network.

``gateway_tftp.py --listen ADDRESS:PORT``, and then a read request for ``EXPORT/PATH``. The protocol
is that of tftpy (``pip install vuserd[rigs]``). It is a process of its own, and asks the daemon as
the user that it runs as: whoever reaches the address reads what that user may.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

from tftpy import TftpException, TftpServer
from tftpy.TftpContexts import TftpContextServer

from examples.gateway_http import address
from vuserd.client import Client, ClientError

#: Transfers at once: each has two descriptors, and tftpy waits for them by select().
MOST_SESSIONS: Final = 200


@contextmanager
def session_only() -> Iterator[None]:
    """Have whatever a datagram brings about end its own session, and not the server."""
    try:
        yield
    except TftpException:
        raise
    except Exception as error:
        raise TftpException(f"{type(error).__name__}: {error}") from None


class Session(TftpContextServer):  # type: ignore[misc]
    """A board's transfer."""

    def start(self, buffer: bytes) -> None:
        """Take the first datagram."""
        with session_only():
            super().start(buffer)

    def cycle(self) -> None:
        """Take another one."""
        with session_only():
            super().cycle()


# tftpy has no other way to name what its sessions are.
sys.modules[TftpServer.__module__].TftpContextServer = Session  # type: ignore[attr-defined]
# It logs names as they come, and a line for each odd datagram.
logging.getLogger("tftpy").setLevel(logging.CRITICAL)


class Gateway:
    """Opens what boards ask for."""

    def __init__(self, daemon: str | None) -> None:
        self._daemon = daemon
        self._server: TftpServer | None = None

    def open(self, name: str, **_: Any) -> BinaryIO | None:
        """Return one version of a file, as its sealed image; None where there is none."""
        if self._server is not None and len(self._server.sessions) > MOST_SESSIONS:
            return None
        export, _slash, path = name.lstrip("/").partition("/")
        try:
            with Client.connect(self._daemon) as client, client.fetch(export, f"/{path}") as image:
                return os.fdopen(os.dup(image.fileno()), "rb")
        except ClientError as error:
            print(error, file=sys.stderr)  # which has the name, and is printable
            return None

    def serve(self, host: str, port: int, nothing: str) -> None:
        """Serve for ever, from a folder with nothing in it: tftpy wants one."""
        is_bound = False
        while True:
            server = self._server = TftpServer(nothing, self.open, lambda *_: None)
            try:
                server.listen(host, port)  # None refuses a write
            except Exception as error:
                is_bound = is_bound or server.is_running.is_set()
                if not is_bound:
                    raise
                print(f"all transfers ended: {type(error).__name__}: {error}", file=sys.stderr)
                server.sock.close()


def main() -> int:
    """Serve until it is interrupted, or told to end."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", type=address, required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--socket", help="the daemon's socket")
    options = parser.parse_args()
    gateway = Gateway(options.socket)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder is removed, then, too
    with tempfile.TemporaryDirectory(prefix="vuserd-tftp-") as nothing:
        host, port = options.listen
        print(f"serving on tftp://{host}:{port}/", flush=True)
        try:
            gateway.serve(host, port, nothing)
        except KeyboardInterrupt:
            return 0
        except OSError as error:
            print(f"gateway_tftp.py: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
