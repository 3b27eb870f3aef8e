"""Load the daemon's own ``protocol`` and ``memory``, wherever it was installed.

They are top-level packages of the repository and are imported as such. But a name as common as
``memory`` must not be looked up on ``sys.path``, where a module of the user or of another
distribution may have it. An installation therefore has both below ``vuserd/_packages``, which is on
no path, and each package of the daemon that uses them calls :func:`claim_packages` before its
modules import anything. The clients use neither and claim nothing.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from typing import Final

#: In import order: ``memory`` uses ``protocol``.
NAMES: Final = ("protocol", "memory")


def claim_packages() -> None:
    """Load the daemon's own ``protocol`` and ``memory``, ignoring ``sys.path``.

    Their submodules are found through them, so nothing more is needed.

    Raises:
        ImportError: the process has loaded another module under one of these names, and may go on
            using it; or the installation lacks one of the packages.

    """
    for name, spec in _own_specs().items():
        loaded = sys.modules.get(name)
        if loaded is None:
            _load(spec)
        elif not _is_at(loaded, spec):
            raise ImportError(
                f"this process has a module {name} that is not vuserd's ({_place(loaded)}), so the"
                " daemon cannot run in it: start vuserd as a process of its own",
                name=name,
            )


def forget_others() -> None:
    """Remove other modules with the names of the daemon's packages from ``sys.modules``.

    This is for a process that is the daemon's alone: a ``.pth`` file or ``sitecustomize`` may have
    imported a module of such a name before the daemon's first line. It keeps its own references.
    """
    for loaded in tuple(sys.modules):
        if loaded.partition(".")[0] in NAMES:
            del sys.modules[loaded]


def _own_specs() -> dict[str, ModuleSpec]:
    """Return the specs of both packages: below this one if installed, beside it in a checkout.

    They are found with Python's path finder, which also looks into zip files.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    for folder in (os.path.join(here, "_packages"), os.path.dirname(here)):
        specs = {name: PathFinder.find_spec(name, [folder]) for name in NAMES}
        found = {name: spec for name, spec in specs.items() if spec is not None and spec.origin}
        if len(found) == len(NAMES):
            return found
    raise ImportError(f"the installation of vuserd in {here} is not complete: install it again")


def _load(spec: ModuleSpec) -> None:
    assert spec.loader is not None  # a spec with an origin is of a package with an __init__.py
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise


def _is_at(module: object, spec: ModuleSpec) -> bool:
    assert spec.origin is not None
    file = getattr(module, "__file__", None)
    return file is not None and os.path.realpath(file) == os.path.realpath(spec.origin)


def _place(module: object) -> str:
    return getattr(module, "__file__", None) or "it has no file"
