"""``vuserctl top``: keep showing the daemon's state, with rates.

A terminal shows one snapshot in place of the other until q or ^C, and then its former content.
On one that is dumb, and elsewhere, the snapshots follow one another; as JSON, each is a line.
"""

import itertools
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, Protocol, Self

from vuserd.client.sync_client import Client
from vuserd.ctl import status
from vuserd.ctl.output import emit, emit_json, is_dumb

# ECMA-48's control sequences, as xterm has them.
_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"
#: The columns of a terminal that does not know its size.
_COLUMNS: Final = 80
_ROWS: Final = 24
_QUIT: Final = frozenset(b"qQ\x03")

#: Fields that count, and the names of their rates.
_RATES: Final = (("requests", "requests_per_s"), ("bytes_read", "bytes_per_s"))


def top(client: Client, *, interval: float, count: int | None, as_json: bool) -> None:
    """Show the daemon's state every ``interval`` seconds, ``count`` times or for ever."""
    rates = Rates()
    with _screen(as_json=as_json) as screen:
        for number in itertools.count(1):
            screen.show(rates.added_to(client.status(), time.monotonic()))
            if number == count or not screen.pause(interval):
                return


class Rates:
    """Rates from the differences of two snapshots; none in the first one."""

    def __init__(self) -> None:
        self._before: dict[Hashable, Mapping[str, Any]] = {}
        self._when = 0.0

    def added_to(self, found: Mapping[str, Any], now: float) -> dict[str, Any]:
        """Return the snapshot taken at ``now`` with rates; clients with most requests first."""
        passed, before = now - self._when, self._before
        self._before, self._when = {}, now

        def added(row: Mapping[str, Any], key: Hashable) -> dict[str, Any]:
            self._before[key] = row
            return {**row, **_rates(before.get(key), row, passed)}

        with_rates = added(found, ("daemon", str(found.get("pid"))))
        for name, key_of in (("exports", _export), ("clients", _client)):
            rows = found.get(name)
            if isinstance(rows, list):
                with_rates[name] = [
                    added(row, key_of(row)) for row in rows if isinstance(row, Mapping)
                ]
        if "clients" in with_rates and isinstance(with_rates["clients"], list):
            with_rates["clients"].sort(key=_busyness, reverse=True)
        return with_rates


def _export(row: Mapping[str, Any]) -> Hashable:
    """Return the identity of an export's session, since each session counts from 0."""
    backend = row.get("backend")
    generation = backend.get("generation") if isinstance(backend, Mapping) else None
    return ("export", str(row.get("name")), str(generation))


def _client(row: Mapping[str, Any]) -> Hashable:
    return ("client", str(row.get("pid")), str(row.get("since")))


def _busyness(row: Mapping[str, Any]) -> tuple[float, int]:
    rate, requests = row.get("requests_per_s"), row.get("requests")
    return (
        rate if isinstance(rate, int | float) else 0.0,
        requests if isinstance(requests, int) else 0,
    )


def _rates(
    before: Mapping[str, Any] | None, row: Mapping[str, Any], passed: float
) -> dict[str, float | None]:
    rates: dict[str, float | None] = {}
    for counter, name in _RATES:
        if (count := row.get(counter)) is None:
            continue
        earlier = before.get(counter) if before is not None else None
        countable = isinstance(count, int | float) and isinstance(earlier, int | float)
        rates[name] = max(count - earlier, 0) / passed if countable and passed > 0 else None
    return rates


class _Screen(Protocol):
    """Shows snapshots."""

    def show(self, found: Mapping[str, Any]) -> None:
        """Show a snapshot."""

    def pause(self, seconds: float) -> bool:
        """Wait; return False if the user wants to end."""


class _Paper:
    """Prints one snapshot after the other."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._begun = False

    def show(self, found: Mapping[str, Any]) -> None:
        if self._as_json:
            emit_json({"time": time.time(), **found}, in_a_line=True)
        else:
            if self._begun:
                emit()
            for line in status.lines(found):
                emit(line)
        self._begun = True
        sys.stdout.flush()

    def pause(self, seconds: float) -> bool:
        time.sleep(seconds)
        return True


class _Terminal:
    """Shows one snapshot in place of the other; without it the terminal is as it was before."""

    def __init__(self) -> None:
        self._keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._modes = None if self._keyboard is None else termios.tcgetattr(self._keyboard)

    def __enter__(self) -> Self:
        self._on_stop = signal.signal(signal.SIGTSTP, self._stop)
        if self._on_stop == signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTSTP, self._on_stop)
        try:
            sys.stdout.flush()  # of what a signal may have interrupted
        finally:
            self._give_back()

    def show(self, found: Mapping[str, Any]) -> None:
        size = os.get_terminal_size(sys.stdout.fileno())
        columns, rows = size.columns or _COLUMNS, size.lines or _ROWS
        # The clients come last, as many as there is room for.
        lines = [line[:columns] for line in status.lines(found, columns)][:rows]
        text = f"{_REST_OF_LINE}\n".join(lines)
        sys.stdout.write(f"{_HOME}{text}{_REST_OF_LINE}{_REST_OF_SCREEN}")
        sys.stdout.flush()

    def pause(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        keys = [] if self._keyboard is None else [self._keyboard]
        while (left := deadline - time.monotonic()) > 0:
            if select.select(keys, [], [], left)[0]:
                pressed = os.read(keys[0], 64)
                if not pressed or not _QUIT.isdisjoint(pressed):
                    return False
        return True

    def _take(self) -> None:
        """Read keys as they are pressed, without echo, and have a screen of its own."""
        if self._keyboard is not None:
            tty.setcbreak(self._keyboard)
        self._send(_ENTER)

    def _give_back(self) -> None:
        self._send(_LEAVE)
        if self._keyboard is not None and self._modes is not None:
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._modes)

    def _send(self, control: str) -> None:
        """Write a control sequence by itself: a signal may have interrupted the stream's write."""
        with suppress(OSError):  # the terminal is gone
            os.write(sys.stdout.fileno(), control.encode())

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Give the terminal back for as long as this process is stopped, by ^Z say."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # from which it returns once it is continued
        signal.signal(number, self._stop)
        self._take()


@contextmanager
def _screen(*, as_json: bool) -> Iterator[_Screen]:
    if as_json or not sys.stdout.isatty() or is_dumb():
        yield _Paper(as_json=as_json)
        return
    with suppress(KeyboardInterrupt), _Terminal() as terminal:
        yield terminal
