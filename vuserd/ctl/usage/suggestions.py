"""What was probably meant by a word that is unknown: a command, an option or an export."""

from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message with the word that is most like it; empty if none is."""
    from difflib import get_close_matches  # for those alone who mistype

    # Of two letters in the wrong order half are alike; so are a dash and any letter.
    alike = 0.5 if len(word) == 2 and word.isalpha() else 0.6
    close = get_close_matches(word, list(known), n=1, cutoff=alike)
    return f'; did you mean "{close[0]}"?' if close else ""
