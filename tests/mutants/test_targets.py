"""The modules that are changed are there, with their tests, and none of the codec is left out."""

from pathlib import Path
from typing import Final

import pytest

from tests.mutants.targets import TARGETS

REPOSITORY: Final = Path(__file__).parents[2]


@pytest.mark.parametrize("module", TARGETS)
def test_module_and_its_tests_are_there(module: str) -> None:
    for file in (module, *TARGETS[module]):
        assert (REPOSITORY / file).is_file()


def test_each_module_of_the_codec_is_changed() -> None:
    codec = {f"protocol/{file.name}" for file in (REPOSITORY / "protocol").glob("[!_]*.py")}
    assert codec == {module for module in TARGETS if module.startswith("protocol/")}
