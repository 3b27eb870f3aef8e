"""Remote errors of an errno are the OSErrors that Python has for it, and stay remote errors."""

import copy
import errno
import os
import pickle
from pathlib import Path

import pytest

from tests.fake.rpc_server import FakeDaemon, Node
from tests.unit.faces import Connect, Taker
from vuserd.client import Client
from vuserd.client.errors import BadReply, ClientError, ConnectionLost, RemoteError
from vuserd.client.files import transfer
from vuserd.ctl import main
from vuserd.errors import ErrorCode
from vuserd.wire.codec import encode_response


def errors_of(daemon: FakeDaemon, method: str, code: str) -> None:
    """Make the daemon answer a method with an error."""
    daemon.raw[method] = lambda request: encode_response(
        request.msgid, {"code": code, "message": "no"}, None
    )


class TestRemoteError:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("ENOENT", FileNotFoundError),
            ("ENOTDIR", NotADirectoryError),
            ("EISDIR", IsADirectoryError),
            ("EACCES", PermissionError),
            ("EPERM", PermissionError),
            ("ETIMEDOUT", TimeoutError),
            ("EEXIST", FileExistsError),
            ("EIO", OSError),
            ("EUCLEAN", OSError),
        ],
    )
    def test_of_an_errno(self, code: str, kind: type[OSError]) -> None:
        error = RemoteError(code, "told so", {"errno": 999}, "kernels:boot", "stat")
        assert isinstance(error, kind)
        assert error.errno == getattr(errno, code)  # of this machine
        assert (error.strerror, error.filename) == ("told so", "kernels:boot")
        assert (error.code, error.message, error.fields) == (code, "told so", {"errno": 999})
        assert str(error) == f"kernels:boot: stat: told so ({code})"
        assert (error.asked, error.words) == ("stat", f"told so ({code})")
        assert repr(error) == f"RemoteError({code!r}, 'told so', {{'errno': 999}})"

    @pytest.mark.parametrize(
        "code", [*ErrorCode, "", "E", "ENOSUCH", "errorcode", "EWOULD BLOCK", "__name__"]
    )
    def test_of_another_code(self, code: str) -> None:
        error = RemoteError(code, "told so")
        assert not isinstance(error, OSError)
        assert type(error) is RemoteError
        assert (str(error), error.filename) == (f"told so ({code})", None)

    @pytest.mark.parametrize("code", ["ENOENT", "EIO", "CHANGED"])
    def test_copies(self, code: str) -> None:
        error = RemoteError(code, "told so", {"limit": 7}, "kernels:boot", "stat")
        for same in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
            assert type(same) is type(error)
            assert (same.code, same.message, same.fields) == (code, "told so", {"limit": 7})
            assert (str(same), repr(same)) == (str(error), repr(error))
            assert (same.args, same.filename, same.asked) == (error.args, "kernels:boot", "stat")

    @pytest.mark.parametrize("told", [None, 5, "text", [], {}, {"code": None}, {"message": b"x"}])
    def test_whatever_the_wire_has(self, told: object) -> None:
        assert isinstance(RemoteError.from_wire(told), RemoteError)
        assert not isinstance(RemoteError.from_wire(told), OSError)

    def test_a_bad_reply_is_none(self) -> None:
        assert not issubclass(BadReply, OSError)


class TestOfCalls:
    @pytest.fixture(autouse=True)
    def _lent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transfer, "LENT_LEAST", 1)

    def test_the_file_that_was_asked_about(self, connect: Connect, fake_daemon: FakeDaemon) -> None:
        with connect(fake_daemon.address) as client:
            with pytest.raises(FileNotFoundError) as missing:
                client.stat("kernels", b"boot/\xff")
            assert missing.value.filename == "kernels:boot/\udcff"
            words = "no such file or directory (ENOENT)"
            assert str(missing.value) == f"kernels:boot/\\udcff: stat: {words}"
            with pytest.raises(NotADirectoryError) as file:
                list(client.iterdir("kernels", Path("image")))
            assert file.value.filename == "kernels:image"
            with pytest.raises(IsADirectoryError) as directory:
                client.stream("kernels", "boot", bytearray().extend)
            assert directory.value.filename == "kernels:boot"
            with (
                client.attach(size=4096) as memory,
                pytest.raises(FileNotFoundError) as not_loaded,
            ):
                memory.load("kernels", "nothing", 0)
            assert not_loaded.value.filename == "kernels:nothing"
            errors_of(fake_daemon, "statfs", "EIO")
            with pytest.raises(OSError, match="EIO") as about_none:
                client.statfs("kernels")
            assert about_none.value.filename is None
            assert str(about_none.value) == "statfs: no (EIO)"
            with pytest.raises(RemoteError) as unknown:
                client.stat("others", "image")
            assert not isinstance(unknown.value, OSError)
            assert unknown.value.filename == "others:image"

    def test_a_lost_connection_names_what_was_asked(
        self, connect: Connect, fake_daemon: FakeDaemon
    ) -> None:
        fake_daemon.cut_after = 1
        with (
            connect(fake_daemon.address, reconnect=0) as client,
            pytest.raises(ConnectionLost, match=r"^kernels:/image: read: the daemon") as lost,
        ):
            client.read("kernels", "/image", 0, 10)
        assert (lost.value.filename, lost.value.asked) == ("kernels:/image", "read")

    @pytest.mark.parametrize("method", ["iterdir", "iterwalk", "readdir", "walk"])
    def test_what_a_listing_asks_first_is_for_its_directory(
        self, connect: Connect, fake_daemon: FakeDaemon, method: str
    ) -> None:
        fake_daemon.cut_after = 1
        with (
            connect(fake_daemon.address, reconnect=0) as client,
            pytest.raises(ConnectionLost, match=r"^kernels:boot: api_info: the daemon") as lost,
        ):
            list(getattr(client, method)("kernels", "boot"))
        assert lost.value.filename == "kernels:boot"

    def test_an_answer_that_is_none(self, connect: Connect, fake_daemon: FakeDaemon) -> None:
        fake_daemon.results["stat"] = {}
        with connect(fake_daemon.address) as client:
            for name in ("image", "boot"):
                with pytest.raises(BadReply, match=f"^kernels:{name}: stat: an incomplete"):
                    client.stat("kernels", name)

    @pytest.mark.parametrize("code", ["EPIPE", "ECONNRESET", "EAGAIN", "EINTR", "ETIMEDOUT"])
    def test_none_is_taken_for_the_connections(
        self, fake_daemon: FakeDaemon, taker: Taker, code: str
    ) -> None:
        """Nor is one for a lack of memory here, while memory is lent to the daemon."""
        for method in ("open", "load", "stat"):
            errors_of(fake_daemon, method, code)
            with pytest.raises(RemoteError) as caught:
                taker.stream("image", bytearray().extend)
            assert caught.value.code == code
            del fake_daemon.raw[method]


class TestVuserctl:
    """What the daemon says is not taken for what this side's files or terminal have."""

    @pytest.mark.parametrize("code", ["EPIPE", "ENOENT", "EEXIST", "EACCES"])
    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            ("stat", ["get", "kernels:image", "here"]),
            ("stat", ["stat", "kernels:image"]),
            ("open", ["cat", "kernels:image"]),
            ("readdir", ["ls", "kernels:"]),
            ("load", ["load", "kernels:image", "--memory", "memory", "--address", "0"]),
            ("trace", ["trace", "kernels", "--write", "here"]),
            ("readdir", ["get", "-r", "kernels:", "here"]),
        ],
    )
    def test_it_says_whose_error_it_is(
        self,
        fake_daemon: FakeDaemon,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        code: str,
        method: str,
        arguments: list[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "memory").write_bytes(bytes(4096))
        errors_of(fake_daemon, method, code)
        assert main.run(["--socket", fake_daemon.address, *arguments]) == 1
        error = capfd.readouterr().err
        assert f"no ({code})" in error
        assert "here: no" not in error

    def test_a_tree_without_one_of_its_files(
        self, fake_daemon: FakeDaemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        fake_daemon.root.children = {b"big": Node(content=os.urandom(3 << 20)), b"small": Node()}
        errors_of(fake_daemon, "open", "EPIPE")
        arguments = ["get", "-r", "kernels:", str(tmp_path / "tree")]
        assert main.run(["--socket", fake_daemon.address, *arguments]) == 1
        assert "kernels:big: no (EPIPE)" in capfd.readouterr().err
        assert os.listdir(tmp_path / "tree") == ["small"]


def test_clients_raise_nothing_else(fake_daemon: FakeDaemon) -> None:
    """One ``except`` is enough for all that is the daemon's."""
    with Client.connect(fake_daemon.address) as client, pytest.raises(ClientError):
        client.stat("kernels", "nothing")
