"""``vuserctl get`` of all its operands: where each goes, and what became of it."""

import os

from vuserd.client.errors import ConnectionLost, RemoteError, TimedOut
from vuserd.client.sync_client import Client
from vuserd.ctl.copying.get import get, local_path
from vuserd.ctl.copying.how import How
from vuserd.ctl.operands import for_each, report
from vuserd.ctl.output import complain, is_of_output, local_fault
from vuserd.ctl.target import Target


def get_all(client: Client, targets: list[Target], destination: str | None, how: How) -> int:
    """Fetch what the operands name or match to ``destination``; return the exit code.

    Several go into a directory. One that fails is reported, and the others are fetched; none is
    fetched over another one of the same run, as with cp.
    """
    sources: list[Target] = []
    code = for_each(client, targets, sources.append)
    if len(targets) > 1 or len(sources) > 1:
        into = "." if destination is None else destination
        if into != "-" and not os.path.isdir(into):
            return complain(f"{into}: no directory, which several files would go to (ENOTDIR)")
    taken: dict[str, Target] = {}
    for target in sources:
        local = local_path(target, destination)
        if destination != "-" and target.name and taken.setdefault(local, target) is not target:
            code = complain(f"{target}: not fetched over {taken[local]}, which is at {local}")
            continue
        code = _get_one(client, target, destination, how) or code
    return code


def _get_one(client: Client, target: Target, destination: str | None, how: How) -> int:
    try:
        if how.recursive:
            from vuserd.ctl.copying.get_tree import get_tree

            return get_tree(client, target, destination, how)
        get(client, target, destination, how)
    except RemoteError as error:
        return report(client, target, error)
    except (ConnectionLost, TimedOut) as error:
        raise type(error)(f"{target}: {error.words}") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        if is_of_output(error):
            raise
        return complain(local_fault(error))
    return 0
