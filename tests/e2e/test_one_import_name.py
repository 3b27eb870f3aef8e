"""pip installs one import name: no ``memory`` or ``protocol`` of others meets the daemon's."""

import pkgutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

import vuserd
from tests.e2e.installation import (
    Environment,
    build_sdist,
    build_wheel,
    make_distribution,
    run,
)
from tests.running import REPOSITORY, RunningDaemon

NAMES: Final = ("memory", "protocol")
MANUAL: Final = REPOSITORY / "docs" / "man"
UNITS: Final = REPOSITORY / "systemd"
_TELL_OWNERS: Final = "import memory, protocol; print(memory.OWNER, protocol.OWNER, sep=', ')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with vuserd, for tests that change nothing in it."""
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.install(wheel)
    return environment


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Return a folder of a user's own modules with the daemon's names: a file and a package."""
    folder = tmp_path / "mine"
    (folder / "protocol").mkdir(parents=True)
    (folder / "memory.py").write_text("OWNER = 'the user'\n")
    (folder / "protocol" / "__init__.py").write_text("OWNER = 'the user'\n")
    (folder / "protocol" / "fuse.py").write_text("OWNER = 'the user'\n")
    return folder


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def check_delivery(
    tmp_path: Path,
    backend: str,
    daemon: Sequence[str],
    vuserctl: Sequence[str],
    path: Path | None = None,
    folder: Path | None = None,
) -> None:
    """Serve a file with an installation's daemon and take it with its vuserctl.

    ``path`` is the PYTHONPATH of both, ``folder`` where they are started.
    """
    files = tmp_path / "files"
    files.mkdir(exist_ok=True)
    (files / "board.dtb").write_text("a device tree")
    variables = {"PYTHONPATH": str(path or "")}
    with RunningDaemon(
        {"files": files},
        tmp_path / "sock",
        backend,
        program=daemon,
        variables=variables,
        folder=folder,
    ) as running:
        call = [*vuserctl, "--socket", running.socket, "cat", "files:board.dtb"]
        done = run(*call, path=path, folder=folder)
        assert (done.stdout, done.stderr) == ("a device tree", "")
    (tmp_path / "sock.log").unlink()


def test_the_wheel_has_vuserd_alone(wheel: Path) -> None:
    names = names_in(wheel)
    others = {name.partition("/")[0] for name in names if not name.startswith("vuserd/")}
    distribution = f"vuserd-{vuserd.__version__}"
    assert others == {f"{distribution}.dist-info", f"{distribution}.data"}
    assert {"vuserd/py.typed", f"{distribution}.dist-info/licenses/LICENSE"} <= names
    for package in NAMES:
        modules = {file.name for file in (REPOSITORY / package).glob("*.py")}
        start = f"vuserd/_packages/{package}/"
        assert {name.removeprefix(start) for name in names if name.startswith(start)} == modules


def test_an_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    # By tar: extractall() has the filter that it warns about only from Python 3.11.4 on.
    subprocess.run(["tar", "-xf", build_sdist(tmp_path), "-C", tmp_path], check=True)
    [source] = (folder for folder in tmp_path.glob("vuserd-*") if folder.is_dir())
    (tmp_path / "again").mkdir()
    assert names_in(build_wheel(source, tmp_path / "again")) == names_in(wheel)


def test_the_wheel_has_every_page_and_unit_and_completion(wheel: Path) -> None:
    """What is beside the packages, by where it is in an environment, or in /usr."""
    start = f"vuserd-{vuserd.__version__}.data/data/"
    data = {name.removeprefix(start) for name in names_in(wheel) if name.startswith(start)}
    pages = {f"share/man/man{page.suffix[1:]}/{page.name}" for page in MANUAL.glob("*.[1-8]")}
    units = {f"lib/systemd/{unit.parent.name}/{unit.name}" for unit in UNITS.glob("*/*.s*[et]")}
    assert data == pages | units | {
        "lib/sysusers.d/vuserd.conf",
        "lib/tmpfiles.d/vuserd.conf",
        "share/bash-completion/completions/vuserctl",
        "share/fish/vendor_completions.d/vuserctl.fish",
        "share/zsh/site-functions/_vuserctl",
    }


def test_what_is_installed_occupies_one_name(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    before = {entry.name for entry in environment.packages.iterdir()}
    environment.install(wheel)
    added = {entry.name for entry in environment.packages.iterdir()} - before
    assert added == {"vuserd", f"vuserd-{vuserd.__version__}.dist-info"}
    for name in NAMES:
        done = environment.run("python", "-c", f"import vuserd.client, {name}")
        assert f"No module named '{name}'" in done.stderr
    environment.uninstall("vuserd")
    assert {entry.name for entry in environment.packages.iterdir()} == before


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.slow
def test_distributions_of_these_names_change_nothing(
    wheel: Path, rust_virtiofsd: str, tmp_path: Path, order: str
) -> None:
    environment = Environment(tmp_path / "environment")
    others = [make_distribution(name, tmp_path) for name in NAMES]
    for each in [others, [wheel]] if order == "before" else [[wheel], others]:
        environment.install(*each)
    daemon, vuserctl = [str(environment.bin / "vuserd")], [str(environment.bin / "vuserctl")]
    check_delivery(tmp_path, rust_virtiofsd, daemon, vuserctl)
    told = environment.run("python", "-c", f"import vuserd.client; {_TELL_OWNERS}").stdout
    assert told == "the distribution memory, the distribution protocol\n"

    environment.uninstall(*NAMES)
    check_delivery(tmp_path, rust_virtiofsd, daemon, vuserctl)


@pytest.mark.parametrize("how", ["installed", "editable"])
@pytest.mark.parametrize("start", ["script", "-m vuserd", "-m vuserd.cli"])
def test_a_users_modules_on_the_path_and_in_the_folder_change_nothing(
    installed: Environment, rust_virtiofsd: str, tmp_path: Path, mine: Path, how: str, start: str
) -> None:
    scripts = installed.bin if how == "installed" else Path(sys.executable).parent
    program = [str(scripts / "vuserd")]
    if start != "script":  # then the folder comes first on sys.path
        program = [str(scripts / "python"), *start.split()]
    vuserctl = [str(scripts / "vuserctl")]
    check_delivery(tmp_path, rust_virtiofsd, program, vuserctl, path=mine, folder=mine)


def test_modules_that_are_loaded_before_the_daemon_change_nothing(
    installed: Environment, rust_virtiofsd: str, tmp_path: Path, mine: Path
) -> None:
    used = tmp_path / "used"
    (mine / "sitecustomize.py").write_text(
        "import atexit, memory, protocol.fuse\n"
        f"atexit.register(lambda: open({str(used)!r}, 'a').write(memory.OWNER + '\\n'))\n"
    )
    program, vuserctl = [str(installed.bin / "vuserd")], [str(installed.bin / "vuserctl")]
    check_delivery(tmp_path, rust_virtiofsd, program, vuserctl, path=mine)
    assert used.read_text() == "the user\n" * 2  # by the daemon and by vuserctl: theirs is intact


def test_check_uses_its_own(installed: Environment, tmp_path: Path, mine: Path) -> None:
    configuration = tmp_path / "vuserd.toml"
    configuration.write_text("")
    check = ("vuserd", "check", "--config", str(configuration))
    with_mine = installed.run(*check, path=mine, folder=mine)
    assert "Traceback" not in with_mine.stderr
    assert with_mine.returncode == installed.run(*check).returncode


def test_a_process_that_uses_a_module_of_such_a_name_is_left_alone(
    installed: Environment, mine: Path
) -> None:
    code = "import memory\ntry: import vuserd.daemon\nexcept ImportError as e: print(e)\n"
    done = installed.run("python", "-c", code + "print(memory.OWNER)", path=mine)
    message, owner = done.stdout.splitlines()
    assert f"a module memory that is not vuserd's ({mine}/memory.py)" in message
    assert "start vuserd as a process of its own" in message
    assert owner == "the user"


def test_a_users_modules_are_found_beside_the_clients(installed: Environment, mine: Path) -> None:
    code = "import pkgutil, vuserd.client as c; from importlib import import_module as load\n"
    code += "for m in pkgutil.iter_modules(c.__path__, 'vuserd.client.'): load(m.name)\n"
    done = installed.run("python", "-c", code + _TELL_OWNERS, path=mine)
    assert (done.stdout, done.stderr) == ("the user, the user\n", "")


def test_it_runs_out_of_a_zip_file(wheel: Path, tmp_path: Path, rust_virtiofsd: str) -> None:
    environment = Environment(tmp_path / "environment")
    program = [environment.python, "-m", "vuserd"]
    vuserctl = [environment.python, "-m", "vuserd.ctl.main"]
    check_delivery(tmp_path, rust_virtiofsd, program, vuserctl, path=wheel)


def test_each_module_finds_the_packages_whichever_is_the_first(installed: Environment) -> None:
    """What comes behind the first module of a package that was found is not imported."""
    names = [
        module.name
        for module in pkgutil.walk_packages(vuserd.__path__, "vuserd.")
        # vuserd.rpc has what clients share, so it claims nothing: the daemon imports it after fs.
        if not module.name.startswith(("vuserd.__main__", "vuserd.rpc."))
    ]
    assert len(names) > 50
    code = (
        "import importlib, sys\n"
        "class Found(Exception): pass\n"
        "class Finder:\n"
        "    def find_spec(name, *_):\n"
        "        if name.startswith(('memory.', 'protocol.')): raise Found\n"
        "sys.meta_path.insert(0, Finder)\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [*sys.modules]:\n"
        "        if loaded.partition('.')[0] in ('vuserd', 'memory', 'protocol'):\n"
        "            del sys.modules[loaded]\n"
        "    try: importlib.import_module(name)\n"
        "    except Found: pass\n"
        "    except ImportError as error: print(name, error)\n"
    )
    done = installed.run("python", "-c", code, *names)
    assert (done.stdout, done.stderr) == ("", "")
