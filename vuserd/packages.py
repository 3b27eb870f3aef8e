"""The packages ``protocol`` and ``memory``: always the daemon's own, wherever it was installed.

They are top-level packages of the repository, and so they are imported; but a name as common as
``memory`` must not be looked up on ``sys.path``, where a module of the user's or of another
distribution may have it. What pip installs therefore carries both below ``vuserd/_packages``, which
is on nobody's path, and each package of the daemon that uses them calls :func:`claim_packages`
before its modules import anything. The clients use neither and claim nothing.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from typing import Final

#: In the order of their imports: ``memory`` uses ``protocol``.
NAMES: Final = ("protocol", "memory")


def claim_packages() -> None:
    """Load the daemon's own ``protocol`` and ``memory`` under these names, past ``sys.path``.

    Their submodules are found through them, so nothing else has to be arranged.

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
    """Remove from ``sys.modules`` what others loaded under the names of the daemon's packages.

    For a process that is the daemon's alone: a ``.pth`` file or ``sitecustomize`` may have imported
    a module of such a name before the daemon's first line, and keeps what it refers to.
    """
    for loaded in tuple(sys.modules):
        if loaded.partition(".")[0] in NAMES:
            del sys.modules[loaded]


def _own_specs() -> dict[str, ModuleSpec]:
    """Return where each package is: below this one where it was installed, beside it in a checkout.

    Both are tried with the path's own finder, which also looks into a zip file.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    for folder in (os.path.join(here, "_packages"), os.path.dirname(here)):
        specs = {name: PathFinder.find_spec(name, [folder]) for name in NAMES}
        found = {name: spec for name, spec in specs.items() if spec is not None and spec.origin}
        if len(found) == len(NAMES):
            return found
    raise ImportError(f"the installation of vuserd in {here} is not complete: install it again")


def _load(spec: ModuleSpec) -> None:
    assert spec.loader is not None  # of a package with an __init__.py, which an origin tells
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
