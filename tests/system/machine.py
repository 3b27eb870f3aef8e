"""A Debian 13 with a real systemd, booted in namespaces of this machine, for the block's time."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.once import one_at_a_time
from tests.running import REPOSITORY

_HERE: Final = Path(__file__).parent
_BASE: Final = REPOSITORY / ".cache" / "debian-13"
_SUITE: Final = "trixie"
#: What a person has there who is about to install vuserd, and a session for the user manager.
_PACKAGES: Final = (
    "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,ca-certificates,"
    "make,python3,python3-venv,iproute2,procps,virtiofsd"
)
#: Seconds until the machine has to be up; it takes two or three.
_BOOT: Final = 60.0
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def why_not() -> str | None:
    """Return why no such machine can be had here."""
    if os.geteuid() != 0:
        return "only root can boot a machine in namespaces"
    missing = [
        program
        for program in ("mmdebstrap", "unshare", "nsenter", "setpriv")
        if shutil.which(program) is None
    ]
    if missing:
        return f"not installed: {', '.join(missing)}"
    namespaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--"]
    mounting = ["mount", "-t", "cgroup2", "cgroup2", "/mnt"]
    tried = subprocess.run([*namespaces, *mounting], capture_output=True, text=True, check=False)
    return f"no machine in namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def make_base(copy: Path | None = None, *, overlay: bool = False) -> None:
    """Make the Debian that each machine begins as, where it is missing, and a copy of it.

    An ``overlay`` is a folder with what the copy would have beside it.
    """
    with one_at_a_time(_BASE.name):  # another process may be about to make it, too
        variables = {"NEW_DEBIAN_BASE": str(_BASE), "NEW_DEBIAN_OVERLAY": "yes" if overlay else ""}
        subprocess.run(
            [str(_HERE / "new-debian"), _SUITE, str(copy or ""), _PACKAGES],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            check=True,
        )


class Machine:
    """The machine, up and idle; all of it is gone after the block, whatever happened in it.

    ``root`` is its file system, as long as it runs.
    """

    def __enter__(self) -> Self:
        folder = tempfile.mkdtemp(prefix="vuserd-machine-", dir=_roomy_folder())
        self._folder = Path(folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._init: int | None = None
        try:
            make_base(self._folder / "root", overlay=True)
            self._boot()
            self.root = Path(f"/proc/{self._init}/root")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def run(
        self,
        command: Sequence[str] | str,
        *,
        given: str | None = None,
        timeout: float = 60.0,
        check: bool = True,
        user: str | None = None,
    ) -> str:
        """Run a command, or lines for the shell, as root or another user; return its output.

        Raises:
            MachineError: it failed, and ``check`` is set; the message has all that it said.

        """
        with self.start(command, user=user) as process:
            try:
                output, _ = process.communicate(given, timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            raise MachineError(f"{command}: status {process.returncode}:\n{output}")
        return output

    def start(
        self, command: Sequence[str] | str, *, user: str | None = None
    ) -> "subprocess.Popen[str]":
        """Start a command as :meth:`run` does, and leave it to the caller."""
        words = ["/bin/sh", "-euc", command] if isinstance(command, str) else list(command)
        environment = [f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8"]
        become = []
        if user is not None:
            number = self.run(["id", "-u", user]).strip()
            environment = [
                f"PATH={_PATH}",
                f"HOME=/home/{user}",
                "LANG=C.UTF-8",
                f"XDG_RUNTIME_DIR=/run/user/{number}",
            ]
            become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        enter = [f"--target={self._init}", "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
        return subprocess.Popen(
            ["nsenter", *enter, "--root", "--wd", "env", "-i", *environment, *become, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def journal(self, *arguments: str) -> str:
        """Return what ``journalctl`` shows."""
        return self.run(["journalctl", "--no-pager", "--quiet", *arguments])

    def stop(self) -> None:
        """End all that runs there and remove it."""
        if self._process is not None:
            if self._init is not None:
                os.kill(self._init, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._folder)

    def _boot(self) -> None:
        log = self._folder / "boot.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(_HERE / "boot"), str(self._folder / "root"), str(_BASE)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + _BOOT
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"the machine did not boot:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._init is None:
            self._init = _init_below(self._process.pid)
            return False
        state = self.run("systemctl is-system-running 2>&1 || true", timeout=_BOOT).strip()
        if state == "degraded":
            failed = self.run("systemctl --failed --plain --no-legend; journalctl -b -p 4")
            raise MachineError(f"the machine came up in parts:\n{failed}")
        return state == "running"


class MachineError(Exception):
    """The machine, or a command in it, failed."""


def _roomy_folder() -> str:
    """Return where a machine's files go: /tmp may be memory."""
    return os.environ.get("TMPDIR", "/var/tmp")


def _init_below(process: int) -> int | None:
    """Return the descendant that is the first process of a PID namespace, once it is an init."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for child in children:
            status = Path(f"/proc/{child}/status").read_text()
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
            if numbers.split()[1:][-1] == "1" and "Name:\tsystemd\n" in status:
                return int(child)
            if found := _init_below(int(child)):
                return found
    except (OSError, StopIteration):
        pass
    return None
