"""``vuserctl ls``: list directories, with the options of coreutils' ls."""

from collections.abc import Callable
from typing import Any, NamedTuple

from vuserd.client.errors import RemoteError
from vuserd.client.records import Entry, Stat
from vuserd.client.sync_client import Client
from vuserd.ctl.listing import followed, link_targets, sorted_entries
from vuserd.ctl.looking.colours import colours
from vuserd.ctl.looking.layout import long_lines, name_columns
from vuserd.ctl.operands import for_each, report
from vuserd.ctl.output import complain, emit, emit_json, entry_fields, screen_width, shown
from vuserd.ctl.target import Target


class How(NamedTuple):
    """The options: what is listed, in which order, and how it is printed."""

    long: bool = False
    human: bool = False  #: sizes such as 4.0K
    dots: bool = False  #: '.' and '..', too
    single: bool = False  #: one name a line, also on a terminal
    recursive: bool = False
    itself: bool = False  #: a directory, not what is in it
    follow: bool = False  #: what a symlink leads to, not itself
    reverse: bool = False
    sort: str | None = None  #: time, size, or None for names
    color: str = "auto"
    json: bool = False


class _Listed(NamedTuple):
    """What one operand, or one directory, has to show; ``links`` are the symlinks' targets."""

    target: Target
    entries: list[Entry]
    links: dict[str, str]
    is_directory: bool = True
    led: frozenset[str] = frozenset()  #: names of symlinks in place of which is what they lead to


class _Below(NamedTuple):
    """A directory that is to be listed, and those that it is below."""

    target: Target
    listed: _Listed | None = None
    stat: Stat | None = None
    above: "_Below | None" = None

    def is_below(self, stat: Stat) -> bool:
        """Return whether it is a directory of these attributes, or below that one."""
        each: _Below | None = self
        while each is not None:
            if each.stat is not None and _identity(each.stat) == _identity(stat):
                return True
            each = each.above
        return False


def _identity(stat: Stat) -> tuple[int, int]:
    """Return what tells directories apart, of other file systems in all likelihood, too."""
    return stat.ino, stat.ctime_ns


def ls(client: Client, targets: list[Target], how: How, *, terminal: bool) -> int:
    """List files and directories, files first; return the exit code.

    Args:
        client: the connection.
        targets: the operands; those that cannot be listed are reported, and the others are listed.
        how: the options.
        terminal: whether the names go to a terminal, where they stand in columns.

    """
    listing = _Listing(client, how, terminal=terminal)
    listing.several = len({target.export for target in targets}) > 1
    found: list[_Listed] = []
    code = for_each(client, targets, lambda target: found.append(listing.of(target)))
    files = [each for each in found if not each.is_directory]
    if files:
        links = {name: link for each in files for name, link in each.links.items()}
        entries = listing.ordered([entry for each in files for entry in each.entries])
        listing.show(None, entries, links)
    listing.headed = how.recursive or len(targets) > 1 or len(found) > 1
    waiting = [_Below(each.target, each) for each in reversed(found) if each.is_directory]
    while waiting:
        directory = waiting.pop()
        target = directory.target
        try:
            listed = directory.listed or listing.of(target)
            if how.recursive and how.follow and directory.above is None:
                directory = directory._replace(stat=client.stat(*target))
        except RemoteError as error:
            code = report(client, target, error)
            continue
        listing.show(target, listed.entries, listed.links)
        if not how.recursive:
            continue
        above, inner = directory._replace(listed=None), list[_Below]()
        for entry in filter(is_directory, listed.entries):
            each = _Below(target.child(entry.name), None, entry.stat, above)
            if entry.name in listed.led and entry.stat and above.is_below(entry.stat):
                code = complain(f"{each.target}: leads to a directory above it, and is not listed")
            else:
                inner.append(each)
        waiting += reversed(inner)
    listing.finish()
    return code


def is_directory(entry: Entry) -> bool:
    """Return whether an entry is a directory other than '.' and '..'."""
    return entry.type == "dir" and entry.name not in (".", "..")


class _Listing:
    """Fetches and prints one listing after the other."""

    def __init__(self, client: Client, how: How, *, terminal: bool) -> None:
        self._client = client
        self._how = how
        self._columns = screen_width() if terminal and not how.single else 0
        self._colours = None if how.json else colours(how.color)
        self._attrs = how.long or how.json or how.sort is not None or self._colours is not None
        self._attrs = self._attrs or (how.follow and how.recursive)
        #: Whether each directory has its name above it.
        self.headed = False
        #: Whether files are of several exports, and named with those.
        self.several = False
        self._shown = 0
        self._json: dict[str, list[dict[str, Any]]] = {}

    def of(self, target: Target) -> _Listed:
        """Return what there is to show of an operand or directory."""
        if self._how.itself:
            return self._of_file(target)
        try:
            entries = sorted_entries(self._client, target, attrs=self._attrs)
        except RemoteError as error:
            if error.code not in ("ENOTDIR", "ENOENT", "ELOOP"):
                raise
            found = self._of_file(target)
            # Of a symlink that leads nowhere there is still itself.
            if error.code != "ENOTDIR" and found.entries[0].type != "symlink":
                raise
            return found
        links, led = {}, frozenset[str]()
        if self._how.follow and self._attrs:
            led = frozenset(entry.name for entry in entries if entry.type == "symlink")
            entries = followed(self._client, target, entries)
        if self._how.long or self._how.json:
            links = link_targets(self._client, target, entries)
        dots = [self._dot(target, name) for name in (".", "..")] if self._how.dots else []
        return _Listed(target, [*dots, *self.ordered(entries)], links, led=led)

    def _of_file(self, target: Target) -> _Listed:
        stat = self._client.stat(*target, follow=self._how.follow)
        name = target.path if target.path and not self.several else str(target)
        links = {name: self._client.readlink(*target)} if stat.type == "symlink" else {}
        return _Listed(target, [Entry(name, stat.type, stat.ino, stat)], links, is_directory=False)

    def _dot(self, target: Target, name: str) -> Entry:
        stat = self._client.stat(*target.child(name))
        return Entry(name, stat.type, stat.ino, stat if self._attrs else None)

    def ordered(self, entries: list[Entry]) -> list[Entry]:
        """Return entries, which are in the order of names, in that of the options."""
        key = _SORTS.get(self._how.sort)
        found = entries if key is None else sorted(entries, key=key)
        return found[::-1] if self._how.reverse else found

    def show(self, target: Target | None, entries: list[Entry], links: dict[str, str]) -> None:
        """Print one listing, below the name of its directory where there are several."""
        if self._how.json:
            fields = [entry_fields(entry, links.get(entry.name)) for entry in entries]
            self._json["" if target is None else str(target)] = fields
            return
        if self._shown:
            emit()
        self._shown += 1
        if target is not None and self.headed:
            emit(f"{shown(str(target))}:" if target.path else shown(str(target)))
        paint = _plain if self._colours is None else self._colours.paint
        if self._how.long:
            lines = long_lines(entries, links, paint, human=self._how.human)
        elif self._columns:
            lines = name_columns(entries, paint, self._columns)
        else:
            lines = (paint(entry, shown(entry.name)) for entry in entries)
        for line in lines:
            emit(line)

    def finish(self) -> None:
        """Print what is printed as one value at the end."""
        if self._how.json:
            emit_json(self._json if self.headed else next(iter(self._json.values()), []))


def _plain(_: Entry, text: str) -> str:
    return text


_SORTS: dict[str | None, Callable[[Entry], int]] = {
    "time": lambda entry: 0 if entry.stat is None else -entry.stat.mtime_ns,
    "size": lambda entry: 0 if entry.stat is None else -entry.stat.size,
}
