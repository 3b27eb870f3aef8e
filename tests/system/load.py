"""Clients without vuserd's library, which request all they can and count broken promises.

Run in the machine, by the Python that vuserd is installed with:
load.py SOCKET EXPORT PATH CONTENT PAUSE. They read parts of a file of EXPORT and compare them with
those of CONTENT, with a PAUSE of so many seconds after each batch of requests, until standard input
ends, and print what they counted as JSON:

    connections     made
    not_connected   refused, or failed otherwise
    replies         that came, and were right
    errors          that came instead, by their code
    wrong           replies with other bytes
    unsent          requests that the socket did not take: the daemon has shut its side
    lost            requests that the socket took, and that were never answered
"""

import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from typing import Any

import msgpack

PROCESSES = 2
THREADS = 3
#: Requests that are sent before the first answer is waited for.
BATCH = 8
LONGEST = 64 << 10


class Worker(threading.Thread):
    """One client. Every second one connects anew for each batch."""

    def __init__(
        self, number: int, address: str, export: str, path: str, content: bytes, pause: float
    ) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._address = address
        self._file = [export, path]
        self._content = content
        self._pause = pause
        self._stays = number % 2 == 0
        self._random = random.Random(number)
        self._next = 0

    def run(self) -> None:
        while not stopping.is_set():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                try:
                    sock.connect(self._address)
                except OSError as error:
                    self.counts[f"not_connected {os.strerror(error.errno or 0)}"] += 1
                    time.sleep(0.01)
                    continue
                self.counts["connections"] += 1
                unpacker: Any = msgpack.Unpacker(max_buffer_size=0)
                while (
                    self._batch(sock, unpacker) and not stopping.wait(self._pause) and self._stays
                ):
                    pass

    def _batch(self, sock: socket.socket, unpacker: Any) -> bool:
        """Ask and wait for the answers; False where the connection has ended."""
        asked: dict[int, tuple[int, int]] = {}
        goes_on = True
        for _ in range(BATCH):
            self._next += 1
            offset = self._random.randrange(len(self._content))
            length = self._random.randrange(1, LONGEST)
            try:
                sock.sendall(msgpack.packb([0, self._next, "read", [*self._file, offset, length]]))
            except (BrokenPipeError, ConnectionResetError):
                self.counts["unsent"] += 1
                goes_on = False
                break
            asked[self._next] = offset, length
        while asked:
            try:
                received = sock.recv(1 << 20)
            except OSError as error:
                self.counts[f"failed {error!r}"] += 1
                received = b""
            if not received:
                self.counts["lost"] += len(asked)
                return False
            unpacker.feed(received)
            for message in unpacker:
                if message[0] == 1:
                    self._check(asked.pop(message[1]), *message[2:])
        return goes_on

    def _check(self, part: tuple[int, int], error: Any, result: Any) -> None:
        offset, length = part
        if error is not None:
            self.counts[f"error {error['code']}"] += 1
        elif result != self._content[offset : offset + length]:
            self.counts["wrong"] += 1
        else:
            self.counts["replies"] += 1


stopping = threading.Event()


def main() -> None:
    """Work in several processes, and print what all of them counted."""
    address, export, path, content, pause = sys.argv[1:]
    children = []
    for process in range(PROCESSES):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            with open(content, "rb") as file:
                whole = file.read()
            first = process * THREADS
            workers = [
                Worker(first + number, address, export, path, whole, float(pause))
                for number in range(THREADS)
            ]
            for worker in workers:
                worker.start()
            sys.stdin.read()
            stopping.set()
            total: Counter[str] = Counter()
            for worker in workers:
                worker.join()
                total += worker.counts
            os.write(writer, json.dumps(total).encode())
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    total = Counter()
    for child, reader in children:
        with open(reader, "rb") as pipe:
            total += Counter(json.load(pipe))
        os.waitpid(child, 0)
    print(json.dumps(total))


if __name__ == "__main__":
    main()
