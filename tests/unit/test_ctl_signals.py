"""A signal ends vuserctl wherever it comes, and the process dies of it."""

import signal
import subprocess
import sys

import pytest

#: Where Python drops what is raised, and says so on standard error.
_DROPPED = {
    "del": """
class Held:
    def __del__(self):
        os.kill(os.getpid(), number)
Held()
""",
    "weakref": """
class Held: pass
held = Held()
told = weakref.ref(held, lambda _: os.kill(os.getpid(), number))
del held
""",
    "twice": """
class Held:
    def __init__(self, end):
        self.end = end
    def __del__(self):
        self.end()
Held(lambda: os.kill(os.getpid(), number))
Held(lambda: time.sleep(1))
""",
}

_PROGRAM = """
import os, signal, sys, time, weakref
from vuserd.ctl.signals import Signalled, catch_signals, die_of
number = int(sys.argv[1])
catch_signals()
try:
    {drop}
    time.sleep(60)
except (Signalled, KeyboardInterrupt) as error:
    os.write(1, b"over")  # what is to be undone has been
    die_of(number)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGALRM])
@pytest.mark.parametrize("where", _DROPPED)
def test_one_that_is_dropped_is_raised_again(number: int, where: str) -> None:
    program = _PROGRAM.format(drop=_DROPPED[where].strip().replace("\n", "\n    "))
    done = subprocess.run(
        [sys.executable, "-c", program, str(int(number))],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-number, b"over", b"")


def test_other_faults_are_told() -> None:
    program = _PROGRAM.format(drop="told = weakref.ref(set(), lambda _: 1 / 0); sys.exit()")
    done = subprocess.run(
        [sys.executable, "-c", program, "0"], capture_output=True, check=False, timeout=60
    )
    assert b"ZeroDivisionError" in done.stderr


def test_one_that_comes_while_modules_are_loaded() -> None:
    program = """
import os, signal, sys
from vuserd.ctl.__main__ import main
class Interrupting:
    def find_spec(self, name, *_):
        if name == "vuserd.ctl.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
main()
"""
    usual = ("env", "--default-signal")
    done = subprocess.run(
        [*usual, sys.executable, "-c", program], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
