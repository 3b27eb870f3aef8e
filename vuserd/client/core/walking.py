"""A walk's pages, asked for ahead: the daemon reads one while the one before it is taken."""

from vuserd.client import calls
from vuserd.client.calls import PAGE_ENTRIES, Call, RemotePath
from vuserd.client.listing.columns import PAGE_OF_COLUMNS, RawWalkPage
from vuserd.client.records import PageToken


def walk_raw(
    export: str, path: RemotePath, after: PageToken | None, *, attrs: bool, columns: bool
) -> Call[RawWalkPage]:
    """Ask for one page of a walk, whose entries are made into records later."""
    limit = PAGE_OF_COLUMNS if columns else PAGE_ENTRIES
    call = calls.walk(export, path, attrs=attrs, limit=limit, after=after, columns=columns)
    return Call(
        call.method,
        call.params,
        RawWalkPage.from_wire,
        holds=lambda page: calls.walk_going_on(page.next),
        needs=call.needs,
        ends=call.ends,
        path_at=call.path_at,
    )
