"""The tokens of a listing's pages, followed as long as the pages lead on."""

from typing import Final

from vuserd.client.errors import BadReply
from vuserd.client.records import PageToken

#: The most pages in a row with nothing in them: a daemon has no reason to send even one.
_MOST_EMPTY: Final = 16


class Following:
    """Which page to ask for next: without this check, pages that lead nowhere have no end."""

    def __init__(self) -> None:
        #: What asks for the next page; None for the first one, and after the last.
        self.after: PageToken | None = None
        self._empty = 0

    def take(self, following: PageToken | None, *, is_empty: bool) -> PageToken | None:
        """Take the token that came with a page; return it.

        Raises:
            BadReply: the page leads back to itself, or too many had nothing in them.

        """
        before, self.after = self.after, following
        self._empty = self._empty + 1 if is_empty else 0
        if following is not None and (following == before or self._empty > _MOST_EMPTY):
            raise BadReply("the daemon sent pages of a listing that lead nowhere")
        return following
