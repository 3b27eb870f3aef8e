"""The methods of the RPC as docs/rpc.md has them, and as the page made from them does."""

import re
from typing import Final

from docs.site import methods
from tests.running import REPOSITORY
from vuserd.errors import ErrorCode
from vuserd.rpc.methods.daemon import TRACE_WAIT_MAX
from vuserd.rpc.methods.files import EXTENTS_MAX
from vuserd.rpc.methods.pages import PAGE_MAX, TREE_PAGE_MAX, TREE_SIZES
from vuserd.rpc.methods.signature import Method, methods_of

DECLARED: Final = [
    method
    for owner in methods.OWNERS.values()
    for method in methods_of(object.__new__(owner)).values()
]
#: Options that the text below the table tells of, since many methods have them.
EVERYWHERE: Final = {"timeout", "split_times"}
_ROW: Final = re.compile(r"^\| `(\w+)` \|[^|{]*(\{[^|]*\})? \|", re.MULTILINE)


def written(method: Method) -> str:
    options = [
        f"{name}={'nil' if option.default is None else str(option.default).lower()}"
        for name, option in method.options.items()
        if name not in EVERYWHERE
    ]
    return f"{{{', '.join(options)}}}" if options else ""


def test_the_table_has_each_method_with_its_options() -> None:
    text = (REPOSITORY / "docs/rpc.md").read_text()
    section = text[text.index("## Methods") : text.index("## Times")]
    assert dict(_ROW.findall(section)) == {method.name: written(method) for method in DECLARED}


def test_the_page_has_each_method_with_its_parameters() -> None:
    page = methods.reference()
    for method in DECLARED:
        section = page.partition(f"\n### {method.name}\n")[2].partition("\n##")[0]
        assert f"`{method.name}({', '.join(method.params)}" in section
        assert all(f"option `{name}`" in section for name in method.options)


def test_the_table_of_errors_has_each_code() -> None:
    text = (REPOSITORY / "docs/rpc.md").read_text()
    section = text[text.index("\n## Errors") : text.index("\n## Pages of a tree")]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*ErrorCode]


def test_the_numbers_are_those_that_are_allowed() -> None:
    text = " ".join((REPOSITORY / "docs/rpc.md").read_text().split())
    least, most = TREE_SIZES
    for bounds in (
        f"`limit` is at least 1 and at most {PAGE_MAX:,};",
        f"of `tree` {TREE_PAGE_MAX:,}, of `extents` {EXTENTS_MAX:,}.",
        f"`size` is from {least:,} to {most:,}, `wait` from 0 to {TRACE_WAIT_MAX:g} seconds.",
    ):
        assert bounds in text
