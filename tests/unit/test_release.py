"""What names versions: the places where a release is described agree."""

import re
import tomllib

from tests.running import REPOSITORY
from vuserd import __version__


def test_the_changelogs_describe_this_version() -> None:
    first = (REPOSITORY / "debian" / "changelog").read_text().partition("\n")[0]
    assert first == f"vuserd ({__version__}) unstable; urgency=medium"
    changes = (REPOSITORY / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+)\](.*)$", changes, re.MULTILINE)
    newest, rest = headings[0]
    assert (newest, rest) == ("Unreleased", f": {__version__}") or newest == __version__


def test_every_dependency_has_its_oldest_version_in_the_debian_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[ >=<~]", each)[0] for each in project["dependencies"]}
    lines = (REPOSITORY / "debian" / "py3dist-overrides").read_text().splitlines()
    assert lines == [f"{name} python3-{name.replace('_', '-')}; PEP386" for name in sorted(needed)]
