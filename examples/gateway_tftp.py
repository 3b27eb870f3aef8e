"""Serve exports over TFTP, read-only, to boards that boot from a network.

``gateway_tftp.py --listen ADDRESS:PORT``, and then a read request for ``EXPORT/PATH``. The protocol
is that of tftpy (``pip install vuserd[rigs]``). It is a process of its own, and asks the daemon as
the user that it runs as: whoever reaches the address reads what that user may.
"""

import argparse
import os
import sys
import tempfile
from typing import Any, BinaryIO

import tftpy

from examples.gateway_http import address
from vuserd.client import Client, ClientError


class Gateway:
    """Opens what boards ask for."""

    def __init__(self, daemon: str | None) -> None:
        self._daemon = daemon

    def open(self, name: str, **_: Any) -> BinaryIO | None:
        """Return one version of a file, as its sealed image; None where there is none."""
        export, _slash, path = name.lstrip("/").partition("/")
        try:
            with Client.connect(self._daemon) as client, client.fetch(export, f"/{path}") as image:
                return os.fdopen(os.dup(image.fileno()), "rb")
        except ClientError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return None


def main() -> int:
    """Serve until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--listen", type=address, required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--socket", help="the daemon's socket")
    options = parser.parse_args()
    gateway = Gateway(options.socket)
    with tempfile.TemporaryDirectory(prefix="vuserd-tftp-") as nothing:  # tftpy wants a folder
        server = tftpy.TftpServer(nothing, gateway.open, lambda *_: None)  # None refuses a write
        host, port = options.listen
        print(f"serving on tftp://{host}:{port}/", flush=True)
        try:
            server.listen(host, port)
        except KeyboardInterrupt:
            return 0
        except OSError as error:
            print(f"gateway_tftp.py: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
