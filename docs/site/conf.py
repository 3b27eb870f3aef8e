"""The site of the documentation: README.md, SECURITY.md and docs/ as they are, and two references.

The source is the repository, so links work here as they do in a checkout. ``make site`` builds it.
"""

import sys
from pathlib import Path
from typing import Any, Final

from pygments.lexers.special import TextLexer

REPOSITORY: Final = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from docs.site import classes, methods  # noqa: E402 - it is found from here on
from vuserd import __version__  # noqa: E402

project = "vuserd"
version = release = __version__
html_title = f"vuserd {release}"
root_doc = "README"  # tools/site makes it index.html, too
include_patterns = ["*.md", "benchmarks/results/full.md", "docs/*.md", "docs/site/*"]
exclude_patterns = [
    ".*",
    "dist",
    "docs/site/conf.py",
    "examples",
    "memory",
    "protocol",
    "tests",
    "vuserd",
]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_static_path = ["assets"]
html_css_files = ["site.css"]
html_js_files = [("drawings.js", {"defer": "defer"})]
html_copy_source = html_show_sourcelink = html_show_copyright = html_show_sphinx = False

myst_heading_anchors = 4
myst_links_external_new_tab = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

CONTENTS: Final = {
    "Use": "docs/rigs docs/commands docs/python",
    "Serve": "docs/service docs/lab docs/observing SECURITY",
    "Integrations": "docs/pytest docs/fsspec docs/labgrid docs/recipes",
    "Reference": "docs/rpc docs/site/methods docs/site/python docs/states",
    "Inside": "docs/architecture docs/linux docs/performance benchmarks/results/full",
    "Tests": "docs/faults docs/mutants",
    "Project": "CONTRIBUTING CHANGELOG",
}


def add_what_is_made(_: Any, name: str, source: list[str]) -> None:
    """Add the contents to the first page, methods and classes to theirs."""
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            listed = "\n".join(pages.split())
            source[0] += (
                f"\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n:caption: {caption}\n\n{listed}\n```\n"
            )
    elif name == "docs/site/methods":
        source[0] += methods.reference()
    elif name == "docs/site/python":
        source[0] += classes.reference()


def setup(app: Any) -> None:
    """Have Sphinx call what is above."""
    app.add_lexer("mermaid", TextLexer)
    app.connect("source-read", add_what_is_made)
