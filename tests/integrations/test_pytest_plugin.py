"""The pytest plug-in, in runs of pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vuserd.integrations.pytest.daemon  # noqa: F401 - or each run would load it again
from tests.documents import blocks
from tests.running import REPOSITORY, find_backend

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("untraced")

PLUGIN = "vuserd.integrations.pytest.plugin"
STRICT = """
[pytest]
filterwarnings = error
addopts = --strict-markers --strict-config
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Return a folder of tests in which warnings and unknown markers are errors.

    They load the plug-in by its entry point, and none of the others, which take their time.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p vuserd")
    pytester.makeini(STRICT)
    return pytester


def test_directories_are_served_for_a_test(project: pytest.Pytester, rust_virtiofsd: str) -> None:
    project.makepyfile(
        """
        import os

        import pytest

        @pytest.fixture(scope="session")
        def kernels(vuserd, tmp_path_factory):
            folder = tmp_path_factory.mktemp("k")
            (folder / "Image").write_bytes(b"MZ")
            with vuserd.serve(folder, "kernels") as served:
                yield served

        def test_one(vuserd_serve, vuserd_client, tmp_path):
            (tmp_path / "name").write_text("before")
            served = vuserd_serve(tmp_path)
            assert served.client.read_text(served.export, "/name") == "before"
            (tmp_path / "name").write_text("after")
            assert vuserd_client.read_text(served.export, "/name") == "after"

        def test_several(vuserd_serve, vuserd_client, tmp_path):
            odd = tmp_path / 'a "b" \\x7f \\n \\u00fc'
            odd.mkdir()
            names = [vuserd_serve(odd, name).export for name in (None, "board", None)]
            assert names == ["files", "board", "files-2"]
            assert [each.name for each in vuserd_client.exports()] == names
            with pytest.raises(ValueError, match="there is an export board already"):
                vuserd_serve(tmp_path, "board")

        def test_all_is_undone(vuserd_client):
            assert vuserd_client.exports() == []

        def test_what_the_session_serves(kernels, vuserd, vuserd_serve, tmp_path):
            vuserd_serve(tmp_path)
            assert kernels.client.read(kernels.export, "/Image", 0, 9) == b"MZ"
            assert kernels.socket == vuserd.socket

        def test_it_still_does(kernels, vuserd_client):
            assert vuserd_client.read_bytes("kernels", "/Image") == b"MZ"

        def test_that_passes(vuserd_serve, tmp_path):
            vuserd_serve(tmp_path, "early")

        def test_that_fails(vuserd_serve, tmp_path):
            vuserd_serve(tmp_path, "late")
            assert False

        def test_of_what_is_not_there(vuserd_serve):
            vuserd_serve("/nowhere")

        def test_of_a_wrong_name(vuserd_serve, tmp_path):
            vuserd_serve(tmp_path, "a/b")

        def test_without_the_daemon():
            assert False
        """
    )
    result = project.runpytest_inprocess(f"--vuserd-backend={rust_virtiofsd}")
    result.assert_outcomes(passed=6, failed=4)
    # A failing test shows what the daemon has logged since it began.
    text = result.stdout.str()
    assert text.count("- vuserd log -") == 3
    assert "export late is up" in text
    assert "early" not in text
    result.stdout.fnmatch_lines(["*the export files is gone: /nowhere: no such file or directory"])
    result.stdout.fnmatch_lines(['*export.name: "a/b"*'])


def test_a_marker_chooses_the_backend(
    project: pytest.Pytester, rust_virtiofsd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = find_backend("c")
    if c is None or os.geteuid() != 0:
        pytest.skip("no c virtiofsd on this machine (make backends), or this user cannot run it")
    monkeypatch.setenv("PATH", os.path.dirname(rust_virtiofsd), prepend=os.pathsep)
    project.makepyfile(
        f"""
        import pytest

        def kind(served):
            return served.client.exports()[0].backend.kind

        def test_the_option(vuserd_serve, tmp_path):
            assert kind(vuserd_serve(tmp_path)) == "c"

        @pytest.mark.vuserd(backend="rust")
        def test_a_kind(vuserd_serve, tmp_path):
            assert kind(vuserd_serve(tmp_path)) == "rust"

        @pytest.mark.vuserd(backend="rust")
        def test_an_argument_comes_first(vuserd_serve, tmp_path):
            odd = tmp_path / "a,b\\\\101, \\\\"  # which splits and quotes options of the C one
            odd.mkdir()
            served = vuserd_serve(odd, backend={c!r})
            assert kind(served) == "c"
            assert [*served.client.iterdir(served.export, "/")] == []

        @pytest.mark.vuserd(backend="/nowhere/virtiofsd")
        def test_none(vuserd_serve, tmp_path):
            vuserd_serve(tmp_path)

        @pytest.mark.vuserd(kind="rust")
        def test_a_wrong_marker(vuserd_serve, tmp_path):
            pass
        """
    )
    project.makeini(STRICT + "vuserd_backend = c\n")
    result = project.runpytest_inprocess()
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["the backend /nowhere/virtiofsd is not an executable file"])
    result.stdout.no_fnmatch_line("*another exception occurred*")
    result = project.runpytest_inprocess("-rs", "-k", "none", "-o", "vuserd_missing=skip")
    result.assert_outcomes(skipped=1, deselected=4)
    result.stdout.fnmatch_lines(["SKIPPED*the backend /nowhere/virtiofsd is not an executable*"])


def test_each_worker_has_a_daemon_where_paths_are_long(
    project: pytest.Pytester, rust_virtiofsd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_alone(vuserd_serve, vuserd_client, tmp_path, number):
            assert len(str(tmp_path)) > 108
            (tmp_path / "number").write_text(str(number))
            served = vuserd_serve(tmp_path, "files")
            assert served.client.read_text("files", "/number") == str(number)
            with open(f"socket-{number}", "w") as file:
                file.write(served.socket)
        """
    )
    long = project.mkdir("long" * 30)
    monkeypatch.setenv("TMPDIR", str(long))
    result = project.runpytest_inprocess(
        *("-p", "xdist", "-n2"),
        *(f"--basetemp={long}/base", f"--vuserd-backend={rust_virtiofsd}"),
    )
    result.assert_outcomes(passed=2)
    sockets = {Path(f"socket-{number}").read_text() for number in range(2)}
    assert len(sockets) == 2
    assert not any(map(os.path.exists, [*sockets, *map(os.path.dirname, sockets)]))


def test_a_suite_that_does_not_use_it_loads_nothing_of_it(project: pytest.Pytester) -> None:
    project.makepyfile(
        "def test_something(pytestconfig):    assert pytestconfig.pluginmanager.hasplugin('vuserd')"
    )
    program = (
        "import pytest, sys; before = {*sys.modules}; status = pytest.main([]);"
        "new = [name for name in {*sys.modules} - before if name.partition('.')[0] in"
        " ('vuserd', 'msgpack', 'protocol', 'memory')]; print(*sorted(new)); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    packages = ["vuserd", "vuserd.integrations", "vuserd.integrations.pytest"]
    assert done.stdout.splitlines()[-1].split() == [*packages, PLUGIN]


def test_it_can_be_left_out(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS")
    project.makepyfile("def test_something(vuserd): pass")
    result = project.runpytest_inprocess("-p", "no:vuserd")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'vuserd' not found"])


def test_the_page_does_what_it_says(
    project: pytest.Pytester, rust_virtiofsd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each listing of docs/pytest.md is a file of tests, or the configuration of them all."""
    for folder in (os.path.dirname(sys.executable), os.path.dirname(rust_virtiofsd)):
        monkeypatch.setenv("PATH", folder, prepend=os.pathsep)
    page = REPOSITORY / "docs" / "pytest.md"
    (ini,) = (block.text for block in blocks(page, {"ini"}))
    project.makeini(ini)
    modules = [block.text for block in blocks(page, {"python"})]
    assert len(modules) > 2
    for number, text in enumerate(modules):
        Path(f"test_{number}.py").write_text(text)
    result = project.runpytest_inprocess("-W", "error", "-rs")
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] >= len(modules) - 1
