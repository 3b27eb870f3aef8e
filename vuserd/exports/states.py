"""The states of an export, and what leads from one to another: all of it is one table.

This file knows neither backends nor directories. What happens to these is told to it as an
:class:`Event`, and it says in which state the export is then. An event that the table lacks for a
state is a fault of the daemon's.
"""

from collections.abc import Mapping
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias


class ExportState(StrEnum):
    """Where an export is in its life, by the names that users see."""

    STARTING = "starting"  #: its first backend is on its way
    ABSENT = "absent"  #: adopted, and no backend has ever served on its socket
    UP = "up"  #: a backend serves
    RESTARTING = "restarting"  #: its backend was lost or left, and the next one is on its way
    GONE = "gone"  #: its path leads to no directory; it comes up again when it does
    FAILED = "failed"  #: it lacks what it takes, and is tried again now and then until it has it
    STOPPED = "stopped"  #: it was removed, or the daemon ends


class Event(Enum):
    """What happens to an export, in words."""

    SERVING = "a backend serves"
    LOST = "the backend is lost"
    RETRY = "why there is no backend is known, and the next one will be tried"
    GIVE_UP = "an account is missing, or too many starts in a row failed"
    MENDED = "the account that was missing is there"
    DIRECTORY_GONE = "the path leads to no directory"
    DIRECTORY_REPLACED = "the path leads to another directory"
    DIRECTORY_BACK = "the path leads to a directory again"
    STOP = "it is to end"


_Ways: TypeAlias = Mapping[Event, ExportState]

_NOT_SERVING: Final[_Ways] = {
    Event.SERVING: ExportState.UP,
    Event.RETRY: ExportState.RESTARTING,
    Event.GIVE_UP: ExportState.FAILED,
    Event.DIRECTORY_GONE: ExportState.GONE,
    Event.STOP: ExportState.STOPPED,
}

TRANSITIONS: Final[Mapping[ExportState, _Ways]] = MappingProxyType(
    {
        ExportState.STARTING: {**_NOT_SERVING, Event.RETRY: ExportState.ABSENT},
        ExportState.ABSENT: {
            Event.SERVING: ExportState.UP,
            Event.RETRY: ExportState.ABSENT,
            Event.STOP: ExportState.STOPPED,
        },
        ExportState.UP: {
            Event.SERVING: ExportState.UP,  # one took the place of the other
            Event.LOST: ExportState.RESTARTING,
            Event.DIRECTORY_GONE: ExportState.GONE,
            Event.DIRECTORY_REPLACED: ExportState.RESTARTING,
            Event.STOP: ExportState.STOPPED,
        },
        ExportState.RESTARTING: _NOT_SERVING,
        ExportState.GONE: {**_NOT_SERVING, Event.DIRECTORY_BACK: ExportState.RESTARTING},
        ExportState.FAILED: {
            Event.SERVING: ExportState.UP,
            Event.GIVE_UP: ExportState.FAILED,  # again, or for another reason
            Event.MENDED: ExportState.STARTING,
            Event.DIRECTORY_GONE: ExportState.GONE,
            Event.STOP: ExportState.STOPPED,
        },
        ExportState.STOPPED: {},
    }
)

#: A call waits for the next backend here, as long as its deadline allows. Elsewhere it fails at
#: once: nothing that the daemon does brings a backend.
CALLS_WAIT: Final = frozenset({ExportState.STARTING, ExportState.UP, ExportState.RESTARTING})


def next_state(state: ExportState, event: Event) -> ExportState:
    """Return the state after an event.

    Raises:
        RuntimeError: it cannot happen in this state.

    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise RuntimeError(f"an export that is {state}: {event.value}") from None


def is_final(state: ExportState) -> bool:
    """Return whether nothing leads out of a state, so that no backend will come any more."""
    return not TRANSITIONS[state]
