"""``vuserctl get -r``: fetch a directory with all below it, many files at once.

The daemon is not trusted to stay inside the destination: a name has to be one component, and is
used relative to its directory, which is reached from the destination without following a symlink.

The destination may be below the fetched directory: files that this run makes are not fetched.
"""

from typing import Final

from vuserd.client.errors import RemoteError
from vuserd.client.records import Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.get import get, local_path
from vuserd.ctl.copying.how import How
from vuserd.ctl.copying.local_tree import LocalTree, opened_tree
from vuserd.ctl.copying.progress import progress_of_files
from vuserd.ctl.copying.tree_by_calls import fetch_by_calls
from vuserd.ctl.copying.tree_by_pages import fetch_by_pages
from vuserd.ctl.output import complain
from vuserd.ctl.target import Target

_RECURSIVE: Final = How(recursive=True)


def get_tree(client: Client, target: Target, destination: str | None, how: How = _RECURSIVE) -> int:
    """Fetch a directory to ``destination``, or into it if that exists; return the exit code.

    Failures are reported, and the rest goes on.
    """
    stat = client.stat(target.export, target.path)
    if stat.type != "dir":
        get(client, target, destination, how)
        return 0
    if destination == "-":
        return complain(f"{target} is a directory, and cannot go to standard output")
    local = destination if destination is not None and not target.name else None
    if local is None:
        local = local_path(target, destination)
    if how.dry_run:
        from vuserd.ctl.copying.dry_run import dry_run

        return dry_run(client, target, local, how)
    with (
        progress_of_files(target.name or target.export, quiet=how.no_progress) as show,
        opened_tree(client, local, stat, how, show) as tree,
    ):
        return _fetch(client, target, stat, tree)


def _fetch(client: Client, target: Target, stat: Stat, tree: LocalTree) -> int:
    if tree.is_copied_from(target):
        return complain(f"{target}: not copied into itself")
    if tree.how.update and not tree.is_new:  # most of the bytes may not be wanted
        fetch_by_calls(client, target, tree)
    else:
        try:
            fetch_by_pages(client, target, tree)
        except RemoteError as error:
            if error.code != "UNKNOWN_METHOD":
                raise
            fetch_by_calls(client, target, tree)  # the daemon is an older one
    tree.finish(stat)
    return tree.code
