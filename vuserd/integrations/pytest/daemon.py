"""The daemon of a test session: it serves directories for as long as tests want them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Final, NamedTuple, Protocol, Self

import trio

from vuserd.backend.find import BackendKind, find_program
from vuserd.client import CannotConnect, Client, RemoteError
from vuserd.errors import ConfigurationError

#: Seconds for the daemon to start, to end, and for each of its answers.
_PATIENCE: Final = 60.0
#: Bytes of a folder's name that leave room for a socket's in it: ``sockaddr_un`` has 108.
_LONGEST_FOLDER: Final = 60


class NoBackend(Exception):  # noqa: N818 - reads as the sentence it is
    """There is no virtiofsd here of the kind that is wanted; the message says what to install."""


class Served(NamedTuple):
    """A directory that is served."""

    export: str  #: the name that clients call it
    socket: str  #: where the daemon listens
    client: Client  #: one for this export's users; it belongs to the thread that served it


class Serve(Protocol):
    """What the fixture ``vuserd_serve`` is."""

    def __call__(
        self,
        directory: str | os.PathLike[str],
        export: str | None = None,
        *,
        backend: str | None = None,
    ) -> Served:
        """Serve a directory until the end of the test, as :meth:`SessionDaemon.serve` does."""


class SessionDaemon:
    """A daemon in a process of its own: ``with SessionDaemon() as daemon: ...``.

    It has a private socket, whose path is short wherever the tests' files are. Whether this process
    ends the block or is killed, the daemon ends, too.

    Args:
        backend: the virtiofsd for exports that name none: ``rust``, ``c``, or the path of a
            program; None is the first one that is found.
        without: makes the exception to raise where there is none, of the reason.

    """

    def __init__(
        self,
        backend: str | None = None,
        without: Callable[[str], BaseException] = NoBackend,
    ) -> None:
        self._backend, self._without = backend, without
        self._programs: dict[str | None, str] = {}
        self._exports: dict[str, dict[str, str]] = {}
        self._log: bytes | None = None  #: all of it, once it has ended

    def __enter__(self) -> Self:
        """Start it; RuntimeError with its log if that fails."""
        self._folder = _private_folder()
        self.socket = f"{self._folder}/vuserd.sock"
        self._configuration = f"{self._folder}/vuserd.toml"
        self._log_path = f"{self._folder}/log"
        try:
            self._write_configuration()
            self._start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End it; RuntimeError with its log if it did not end well, or did before."""
        self._stop()
        shutil.rmtree(self._folder)
        if self._process.returncode != 0:
            raise RuntimeError(f"vuserd ended with {self._process.returncode}: {self.log()}")

    def log(self, since: int = 0) -> str:
        """Return what it has logged so far, but for the first ``since`` bytes."""
        if self._log is not None:
            return self._log[since:].decode(errors="replace")
        with open(self._log_path, "rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    @property
    def log_size(self) -> int:
        """How many bytes it has logged so far."""
        return os.path.getsize(self._log_path) if self._log is None else len(self._log)

    def connect(self) -> Client:
        """Return a client of it, for the caller to close."""
        return Client.connect(self.socket, timeout=_PATIENCE)

    @contextmanager
    def serve(
        self,
        directory: str | os.PathLike[str],
        export: str | None = None,
        *,
        backend: str | None = None,
    ) -> Iterator[Served]:
        """Serve a directory for the block's time.

        ``export`` is what clients call it: ``files``, ``files-2`` and so on if it has no name.
        ``backend`` is the virtiofsd: ``rust``, ``c`` or a path, by default that of the session.

        Raises:
            NoBackend: there is none on this machine that this user could run; or what ``without``
                makes instead.
            ValueError: there is an export of this name.
            RuntimeError: it cannot be served; the message says why.

        """
        name = self._free_name() if export is None else export
        if name in self._exports:
            raise ValueError(f"there is an export {name} already")
        program = self._program(backend or self._backend)
        self._exports[name] = {"path": os.path.abspath(directory), "backend": program}
        try:
            try:
                self._apply()
            except (RemoteError, UnicodeEncodeError) as error:  # of a name, or a directory's
                raise RuntimeError(f"{directory!s} cannot be served as {name}: {error}") from None
            with self.connect() as client:
                state = next(each for each in client.exports() if each.name == name)
                if state.state != "up":
                    raise RuntimeError(f"the export {name} is {state.state}: {state.reason}")
                yield Served(name, self.socket, client)
        finally:
            del self._exports[name]
            self._apply()

    def _program(self, wanted: str | None) -> str:
        """Return the path of a virtiofsd, which is looked for once."""
        if wanted not in self._programs:
            try:
                self._programs[wanted] = _find(wanted)
            except ConfigurationError as error:
                raise self._without(str(error)) from None
        return self._programs[wanted]

    def _free_name(self) -> str:
        names = ("files" if number == 1 else f"files-{number}" for number in count(1))
        return next(name for name in names if name not in self._exports)

    def _apply(self) -> None:
        """Make the daemon serve what is wanted now."""
        self._write_configuration()
        with self.connect() as client:
            client.reload()

    def _write_configuration(self) -> None:
        lines = []
        for name, keys in self._exports.items():
            lines += ["[[export]]", f"name = {_quoted(name)}"]
            lines += [f"{key} = {_quoted(value)}" for key, value in keys.items()]
        with open(self._configuration, "w", encoding="utf-8") as file:
            file.write("\n".join(lines))

    def _start(self) -> None:
        module = "vuserd.integrations.pytest.until_eof"
        arguments = ["serve", "--config", self._configuration, "--socket", self.socket]
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        with open(self._log_path, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the tests, which end it
            )
        try:
            self._wait_until_it_listens()
        except BaseException:
            self._stop()
            raise

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self.connect().close()
            except CannotConnect:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"vuserd does not start: {self.log()}") from None
                time.sleep(0.01)  # there is nothing to wait on before the socket is there
            else:
                return

    def _stop(self) -> None:
        assert self._process.stdin is not None
        self._process.terminate()  # its standard input may stay open in children of this process
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        with open(self._log_path, "rb") as log:
            self._log = log.read()


def _private_folder() -> str:
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > _LONGEST_FOLDER:
        base = "/tmp"
    return tempfile.mkdtemp(prefix="vuserd-", dir=base)


def _quoted(text: str) -> str:
    """Return a text as a basic string of TOML, which is JSON's but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _find(wanted: str | None) -> str:
    """Return the path of the virtiofsd that is wanted; ConfigurationError where there is none."""
    kind = BackendKind(wanted) if wanted in ("rust", "c") else None
    path = wanted if kind is None else None
    find = partial(find_program, path, os.geteuid(), kind=kind)
    with ThreadPoolExecutor(1) as thread:  # this one may be in another loop
        return os.path.abspath(thread.submit(trio.run, find).result().path)
