"""pynvim's session, and what pynvim makes of errors; prints what it saw as JSON."""

import hashlib
import json
import os
from typing import Any, Final

from pynvim.msgpack_rpc import MsgpackStream, Session
from pynvim.msgpack_rpc.async_session import AsyncSession
from pynvim.msgpack_rpc.event_loop import EventLoop

READ_MAX: Final = 8 << 20


class ShownError(Exception):
    """What a response has as its error."""


def read_together(requests: Any, offsets: range) -> list[bytes]:
    """Read 16 bytes at each offset; ask for all of them before the first answer is awaited."""
    parts: dict[int, bytes] = {}

    def begin(offset: int) -> None:
        def done(error: object, part: bytes) -> None:
            assert error is None
            parts[offset] = part
            if len(parts) == len(offsets):
                requests.stop()

        requests.request("read", ["files", "/Image", offset, 16], done)

    for offset in offsets:
        begin(offset)
    requests.run(None, None)
    return [parts[offset] for offset in offsets]


def refusal(session: Any, *call: Any) -> Any:
    """Return the error that a call is answered with."""
    try:
        session.request(*call)
    except ShownError as error:
        return error.args[0]
    raise AssertionError("it was not refused")


def main() -> None:
    """Ask for this and that, and print what came."""
    requests = AsyncSession(MsgpackStream(EventLoop("socket", os.environ["VUSERD_SOCKET"])))
    session: Any = Session(requests)
    session.error_wrapper = ShownError
    code = refusal(session, "stat", "files", "/missing")["code"]
    session.request("errors_as", "pair")
    shown = refusal(session, "stat", "files", "/missing")[1]  # as pynvim.Nvim does it
    stat = session.request("stat", "files", "/Image", {"split_times": True})
    content = hashlib.sha256()
    for at in range(0, stat["size"], READ_MAX):
        content.update(session.request("read", "files", "/Image", at, READ_MAX))
    entries = session.request("readdir", "files", "/")["entries"]
    parts = read_together(requests, range(0, 300 * 16, 16))
    saw = {
        "level": session.request("api_info")["api_level"],
        "names": [entry["name"] for entry in entries],
        "sha256": content.hexdigest(),
        "mtime": [stat["mtime"], stat["mtime_nsec"]],
        "in_flight": hashlib.sha256(b"".join(parts)).hexdigest(),
        "code": code,
        "shown": shown,
    }
    print(json.dumps(saw))


if __name__ == "__main__":
    main()
