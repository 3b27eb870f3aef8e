"""A listing that outlives its connection: what was listed before is left out."""

from array import array
from operator import itemgetter

from vuserd.client import calls
from vuserd.client.calls import PAGE_ENTRIES, Call, RemotePath
from vuserd.client.listing.columns import (
    AHEAD_LEVEL,
    COLUMNS_LEVEL,
    PAGE_OF_COLUMNS,
    PAGE_OF_NAMES,
    RawPage,
)
from vuserd.client.listing.following import Following
from vuserd.client.records import Entry

_NAME = itemgetter(Entry._fields.index("name"))


class Relisting:
    """The pages of one directory; where they cannot go on they begin again, without repeating."""

    def __init__(self, export: str, path: RemotePath, *, attrs: bool, level: int) -> None:
        self._export, self._path, self._attrs = export, path, attrs
        #: The API level of the daemon that is asked next.
        self.level = level
        self._following = Following()
        self._page = RawPage([], None)
        #: Hashes of the names that were given: 8 bytes each, where a set of names would have 100.
        self._given = array("q")
        #: Those of the listings before this one.
        self._before: frozenset[int] = frozenset()

    @property
    def finished(self) -> bool:
        """Whether the page that was taken is the last one."""
        return self._page.next is None

    def next_call(self) -> Call[RawPage]:
        """Return the call for the next page, whose entries are made into records later.

        The one after it is asked for as soon as it has come, so the daemon may read ahead for that.
        """
        after = self._following.after
        columns = self.level >= COLUMNS_LEVEL
        of_columns = PAGE_OF_COLUMNS if self._attrs else PAGE_OF_NAMES
        limit = of_columns if columns else PAGE_ENTRIES
        call = calls.readdir(
            self._export, self._path, attrs=self._attrs, limit=limit, after=after, columns=columns
        )
        if self.level >= AHEAD_LEVEL:
            call.params[-1]["ahead"] = True
        return Call(
            call.method,
            call.params,
            RawPage.from_wire,
            needs=call.needs,
            path_at=call.path_at,
        )

    def begin_again(self) -> bool:
        """Begin the listing anew with the next call; return False where it was just begun."""
        if self._following.after is None:
            return False
        self._following = Following()
        self._before = frozenset(self._given)
        return True

    def take(self, page: RawPage) -> bool:
        """Take a page; return whether there is another one to ask for.

        Raises:
            BadReply: it leads nowhere.

        """
        self._page = page
        return self._following.take(page.next, is_empty=page.is_empty) is not None

    def entries(self) -> list[Entry]:
        """Return the entries of the page that was taken, those that were not given before."""
        entries = self._page.decoded().entries
        if self._before:
            entries = [entry for entry in entries if hash(entry.name) not in self._before]
        if not self.finished:
            self._given.fromlist([*map(hash, map(_NAME, entries))])
        return entries
