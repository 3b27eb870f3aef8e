"""The log: each thing once, a line for each mistake, and no harmless complaints of backends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.running import REPOSITORY, RunningDaemon
from vuserd.backend.stderr import is_harmless
from vuserd.client.sync_client import Client


def test_a_quiet_life_has_no_complaint_of_the_backend(tmp_path: Path, virtiofsd: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "f").write_text("text" * 1000)
    with (
        RunningDaemon({"files": folder}, tmp_path / "s", virtiofsd) as daemon,
        Client.connect(daemon.socket) as client,
    ):
        client.read("files", "f", 0, 10)
        client.fetch("files", "f").close()
        with client.attach(size=1 << 20) as memory:
            memory.load("files", "f", 0)
        client.reload("files")
        client.read("files", "f", 0, 10)
    complaints = [line for line in daemon.log.splitlines() if "virtiofsd: " in line]
    assert complaints == []
    assert daemon.log.count("serving on") == 1


def test_what_is_debugged_has_them(tmp_path: Path, virtiofsd: str) -> None:
    with (
        RunningDaemon({"files": tmp_path}, tmp_path / "s", virtiofsd, "-v") as daemon,
        Client.connect(daemon.socket) as client,
    ):
        client.reload("files")
    said = [line for line in daemon.log.splitlines() if ": virtiofsd: " in line]
    assert all(map(is_harmless, said))
    assert said  # both print one when another takes their place


def test_each_mistake_of_a_reload_has_a_line(tmp_path: Path, rust_virtiofsd: str) -> None:
    file = tmp_path / "vuserd.toml"
    good = f'backend = "{rust_virtiofsd}"\n[[listen]]\nsocket = "{tmp_path}/s"\n'
    file.write_text(good)
    arguments = ["--config", str(file)]
    with RunningDaemon({}, tmp_path / "s", None, *arguments, configured=True) as daemon:
        file.write_text(f'timeot = 1\ndrain = "x"\n{good}mode = 660\n')
        command = [sys.executable, "-m", "vuserd.ctl.main", "--socket", daemon.socket, "reload"]
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False
        )
        lines = told.stderr.splitlines()
        assert told.returncode == 1
        assert [line.split(": ")[:3] for line in lines] == [
            ["vuserctl", f"{file}:1", "timeot"],
            ["vuserctl", f"{file}:2", "drain"],
            ["vuserctl", f"{file}:6", "listen.mode"],
        ]
        daemon.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while "listen.mode" not in Path(f"{daemon.socket}.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)  # a signal has no answer to wait for
    assert daemon.log.count("the configuration was not applied: 3 mistakes\n") == 2
    for line in lines:
        assert daemon.log.count(line.removeprefix("vuserctl: ")) == 1  # of the signal's reload
