"""``vuserctl get -rn``: print which files of a tree would be fetched, and write nothing."""

import os

from vuserd.client.sync_client import Client
from vuserd.ctl.copying.how import SKIPPED, How
from vuserd.ctl.looking.walking import Turn, walk
from vuserd.ctl.output import complain
from vuserd.ctl.target import Target


def dry_run(client: Client, root: Target, local: str, how: How) -> int:
    """Print what would be fetched to ``local``; return the exit code, as far as it can be told."""
    code = 0
    names: list[str] = []
    for turn, target, entry, _, _, error in walk(client, root, attrs=how.update):
        if turn is Turn.LEAVE:
            names.pop()
        elif turn is Turn.ENTER:
            names.append(entry.name)
        elif error is not None:
            code = complain(f"{target}: {error.words}")
        elif entry.type in SKIPPED:
            complain(f"{target}: skipped, a {entry.type}")
        else:
            path = os.path.join(local, *names, entry.name)
            stat = entry.stat if entry.type == "file" and not os.path.islink(path) else None
            if stat is None or not how.is_current(stat, path):
                how.tell(target, path)
    return code
