"""A client in another network namespace, as another user: a process that obeys a test.

Usage: visitor NETNS UID GID GROUPS SOCKET. NETNS is a path or empty, GROUPS are separated by
commas, and an empty SOCKET is the one that vuserctl would find. Each line of standard input is a
JSON array of a method and its arguments, each line of standard output is ``["ok", RESULT]`` or
``["error", CODE]``.
"""

import ctypes
import json
import os
import sys
from typing import Any

from vuserd.client.calls import Call
from vuserd.client.errors import CannotConnect, ConnectionLost, RemoteError
from vuserd.client.sync_client import Client

CLONE_NEWNET = 0x40000000


def become(netns: str, uid: int, gid: int, groups: list[int]) -> None:
    if netns:
        descriptor = os.open(netns, os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)


def do(client: Client, method: str, arguments: list[Any]) -> Any:
    """Call a method; give of its result what a test looks at."""
    if method == "fetch":
        with client.fetch(*arguments) as image:
            return os.pread(image.fileno(), 100, 0).decode()
    found = client.call(Call(method, arguments, lambda result: result))
    match method:
        case "exports":
            return sorted(export["name"] for export in found)
        case "stat":
            return found["size"]
        case "read":
            return found.decode()
        case "readdir":
            return [entry["name"] for entry in found["entries"]]
        case "walk":
            return [entry["path"] for entry in found["entries"]]
    return found


def main() -> None:
    netns, uid, gid, groups, address = sys.argv[1:]
    become(netns, int(uid), int(gid), [int(group) for group in groups.split(",") if group])
    client: Client | None = None
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        answer: list[Any]
        try:
            if client is None:
                client = Client.connect(address or None, reconnect=0)
            answer = ["ok", do(client, method, arguments)]
        except RemoteError as error:
            answer = ["error", error.code]
        except (ConnectionLost, CannotConnect) as error:
            if client is not None:
                client.close()
                client = None
            answer = ["error", type(error).__name__]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
