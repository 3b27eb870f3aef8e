"""The daemon's own ``protocol`` and ``memory`` are loaded, or an error says why not."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.running import REPOSITORY
from vuserd import packages


@pytest.fixture(autouse=True)
def _modules_as_before() -> Iterator[None]:
    before = {name: sys.modules[name] for name in sys.modules if is_of_packages(name)}
    yield
    for name in [*filter(is_of_packages, sys.modules)]:
        del sys.modules[name]
    sys.modules.update(before)


def is_of_packages(name: str) -> bool:
    return name.partition(".")[0] in packages.NAMES


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder ``vuserd`` of an installation whose packages are below it."""
    folder = tmp_path / "vuserd"
    for name in packages.NAMES:
        shutil.copytree(REPOSITORY / name, folder / "_packages" / name)
    monkeypatch.setattr(packages, "__file__", str(folder / "packages.py"))
    packages.forget_others()
    return folder


def test_those_of_the_checkout_are_claimed_once() -> None:
    packages.forget_others()
    packages.claim_packages()
    claimed = [sys.modules[name] for name in packages.NAMES]
    assert [module.__file__ for module in claimed] == [
        str(REPOSITORY / name / "__init__.py") for name in packages.NAMES
    ]
    packages.claim_packages()
    assert [sys.modules[name] for name in packages.NAMES] == claimed


def test_those_below_an_installation_come_first(installation: Path) -> None:
    for name in packages.NAMES:  # another distribution's, beside vuserd
        (installation.parent / name).mkdir()
        (installation.parent / name / "__init__.py").touch()
    path = list(sys.path)
    packages.claim_packages()
    from memory import fence

    assert fence.__file__ == str(installation / "_packages" / "memory" / "fence.py")
    assert sys.modules["protocol"].__file__ == str(
        installation / "_packages" / "protocol" / "__init__.py"
    )
    assert sys.path == path


def test_an_installation_that_a_link_leads_to_is_the_same(
    installation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.claim_packages()
    claimed = sys.modules["memory"]
    link = installation.parent / "link"
    link.symlink_to(installation)
    monkeypatch.setattr(packages, "__file__", str(link / "packages.py"))
    packages.claim_packages()
    assert sys.modules["memory"] is claimed


@pytest.mark.parametrize("name", packages.NAMES)
@pytest.mark.parametrize("file", ["/home/user/lib/one.py", None])
def test_another_module_of_the_name_is_told(name: str, file: str | None) -> None:
    module = ModuleType(name)
    if file is not None:
        module.__file__ = file
    sys.modules[name] = module
    words = f"a module {name} that is not vuserd's .{file or 'it has no file'}"
    with pytest.raises(ImportError, match=words) as caught:
        packages.claim_packages()
    assert caught.value.name == name
    assert sys.modules[name] is module


def test_others_are_forgotten_with_what_is_below_them() -> None:
    for name in ("memory", "memory.arena", "protocol"):
        sys.modules[name] = ModuleType(name)
    packages.forget_others()
    assert not list(filter(is_of_packages, sys.modules))
    assert "vuserd.packages" in sys.modules


@pytest.mark.parametrize("missing", packages.NAMES)
def test_an_incomplete_installation_is_told(installation: Path, missing: str) -> None:
    shutil.rmtree(installation / "_packages" / missing)
    with pytest.raises(ImportError, match=f"vuserd in {installation} is not complete"):
        packages.claim_packages()
    assert not list(filter(is_of_packages, sys.modules))


def test_a_package_that_cannot_be_loaded_is_not_left_half_loaded(installation: Path) -> None:
    (installation / "_packages" / "memory" / "__init__.py").write_text("raise OSError('damaged')\n")
    with pytest.raises(OSError, match="damaged"):
        packages.claim_packages()
    assert "memory" not in sys.modules
