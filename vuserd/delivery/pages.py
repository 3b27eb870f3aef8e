"""Deliver a tree in pages: its entries, and with them the bytes of its small files.

Every file whose bytes are in a page is one version (contract 2): what READDIRPLUS or LOOKUP said of
it was settled before the READ, and GETATTR says the same after it. A file that cannot be shown to
be, or has no room in any page, is named without its bytes: the client reads it by itself.
"""

from typing import NamedTuple

import trio

from vuserd.delivery.filling import READERS, Filling
from vuserd.delivery.inline import FileContent
from vuserd.delivery.page import Page
from vuserd.device.payloads import given_back
from vuserd.device.shared_buffer import SharedBuffer
from vuserd.errors import VuserdError
from vuserd.fs.filesystem import FileSystem
from vuserd.fs.kept import Kept
from vuserd.fs.tree.found import Found
from vuserd.fs.tree.search import Tree
from vuserd.users.asker import ASKER


class TreePage(NamedTuple):
    """Some entries, directories that could not be read, and the bytes of files among the entries.

    Whoever takes it gives ``content`` back.
    """

    found: list[Found]
    problems: list[tuple[bytes, VuserdError]]
    content: FileContent


class TreePages(Kept):
    """A tree in delivery: :meth:`next_page` until it is ``finished``, :meth:`close` at any time.

    When the backend is lost it goes on with the next one, from where it was; so it does where it
    lapsed.
    """

    def __init__(self, path: bytes) -> None:
        self._tree = Tree(path)
        self._files: FileSystem | None = None

    @property
    def remembered(self) -> int:
        """Bytes of memory that it takes to go on where it was."""
        return self._tree.remembered

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to deliver."""
        return self._tree.finished

    def lapse(self) -> None:
        """Give back all that the backend has for it; the next page finds it anew."""
        self._tree.lapse()

    def close(self) -> None:
        """End it."""
        if self._files is not None:
            self._files.use(self)
        self._tree.close()

    async def next_page(
        self, files: FileSystem, limit: int, size: int, *, look_again: bool = True
    ) -> TreePage:
        """Return up to ``limit`` entries and as many bytes as go into ``size``, index and all.

        Without ``look_again`` no file is looked at once it was read: whoever takes the page looks
        at its version then.

        Raises:
            FileError: ENOTDIR and what the backend says, of the directory where the tree begins;
                EMFILE and ENFILE of anything in it.
            CallError: CHANGED of that directory.
            BackendError: the backend is lost.

        After any of them it can be asked again, and nothing is left out.

        """
        # One at a time: what is in flight for a user does not grow with the trees asked for.
        lock = files.filling.setdefault(ASKER.get(), trio.Lock())
        async with lock:
            return await self._fill_page(files, limit, size, look_again=look_again)

    async def _fill_page(
        self, files: FileSystem, limit: int, size: int, *, look_again: bool
    ) -> TreePage:
        if self._files is not None:
            self._files.use(self)
        self._files = files
        try:
            await self._tree.enter(files)
            count = max(1, size // files.session.payloads.size)
            with given_back(await files.session.payloads.take(count + 1)) as buffers:
                page = Page(buffers[1:], size, limit)
                rooms = SharedBuffer(buffers[0]).parts(buffers[0].size // READERS)
                filling = Filling(files, self._tree, page, rooms, look_again=look_again)
                await filling.run()
                return TreePage(page.found, filling.problems, page.take_content(buffers))
        finally:
            files.nodes.flush()
            if self._tree.is_in_use:
                files.keep(self)
