"""What documents name is there: files in backticks, and where links lead."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.running import REPOSITORY

_DOCUMENTS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
_FOLDERS = "benchmarks|debian|docs|examples|memory|protocol|systemd|tests|tools|vuserd"
_NAMED = re.compile(rf"`((?:{_FOLDERS})/[\w./@-]+)`")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
#: What only an installation has.
_INSTALLED = {"vuserd/_packages/"}


def missing(document: Path) -> Iterator[str]:
    text = document.read_text()
    places = [(document.parent, path) for path in _LINK.findall(text)]
    places += [(REPOSITORY, path) for path in _NAMED.findall(text) if path not in _INSTALLED]
    return (path for folder, path in places if not (folder / path).exists())


def test_files_that_documents_name_are_there() -> None:
    found = {str(each.relative_to(REPOSITORY)): [*missing(each)] for each in _DOCUMENTS}
    assert {document: paths for document, paths in found.items() if paths} == {}
    assert "CONTRIBUTING.md" in found
