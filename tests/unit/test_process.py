"""A backend's process: its command line, and the one connection that it has."""

import shutil

import pytest

from vuserd.backend.find import BackendKind, Program
from vuserd.backend.process import BackendOptions, command_line, sandboxes, start_backend
from vuserd.errors import BackendDown

RUST = Program("virtiofsd", BackendKind.RUST, "1.13.2")
C = Program("virtiofsd", BackendKind.C, "7.2.22")


def test_options_are_said_in_each_backends_own_words() -> None:
    options = BackendOptions(cache="never", thread_pool=3, xattr=True)
    rust = command_line(RUST, "/srv/a,b", 7, "namespace", options)
    assert {"--shared-dir=/srv/a,b", "--cache=never", "--xattr", "--readonly"} <= set(rust)
    [c] = [word for word in command_line(C, "/srv", 7, "chroot", options) if "source=" in word]
    assert {"source=/srv", "sandbox=chroot", "cache=none", "xattr"} <= set(c.split(","))
    assert "--thread-pool-size=3" in rust


@pytest.mark.parametrize(
    ("directory", "options", "words"),
    [
        ("/srv/a,b", BackendOptions(), "a directory with a comma: /srv/a,b"),
        ("/srv", BackendOptions(cache="metadata"), "neither cache=metadata nor"),
        ("/srv", BackendOptions(inode_file_handles="prefer"), "nor inode file handles"),
    ],
)
def test_what_the_c_one_cannot_is_refused(
    directory: str, options: BackendOptions, words: str
) -> None:
    with pytest.raises(BackendDown, match=words):
        command_line(C, directory, 7, "chroot", options)


def test_the_best_sandbox_comes_first() -> None:
    assert sandboxes(BackendKind.RUST, 0) == sandboxes(BackendKind.C, 0) == ("namespace", "chroot")
    assert sandboxes(BackendKind.RUST, 1000) == ("namespace", "none")
    assert sandboxes(BackendKind.C, 1000) == ("namespace",)  # it has no other


async def test_there_is_one_connection_in_its_life() -> None:
    program = Program(shutil.which("cat") or "/bin/cat", BackendKind.RUST, "1")
    async with start_backend(program, "/", "none", BackendOptions(), "files") as backend:
        async with await backend.connect():
            pass
        with pytest.raises(BackendDown, match="one connection in its life"):
            await backend.connect()
        await backend.wait()
    assert "ended with status 1" in backend.last_words()  # cat knows none of the options
    assert "unrecognized option" in backend.last_words()


async def test_one_that_is_refused_leaves_nothing_open() -> None:
    """Its sockets are made before its command line is."""
    with pytest.raises(BackendDown, match="comma"):
        async with start_backend(C, "/srv/a,b", "chroot", BackendOptions(), "files"):
            pytest.fail("it was started")
