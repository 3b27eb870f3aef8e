"""Traces of FUSE requests as records: made from the wire, and from the lines of a capture."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from vuserd.client.errors import BadReply
from vuserd.client.records import to_int, to_list, to_map, to_name

#: Names and numbers, by the names that linux/fuse.h has for them; ``forgets`` of BATCH_FORGET are
#: pairs of a node and a lookup count.
Arguments: TypeAlias = Mapping[str, "int | str | list[tuple[int, int]]"]

#: Events of one page.
PAGE_EVENTS = 1000
#: All numbers are unsigned and have 64 bits; those of the clock are less than that.
_MOST = 1 << 64
_LIMITS = {"sent_ns": 1 << 63}
_NUMBERS = ("unique", "node", "size", "sent_ns", "monotonic_ns", "took_ns", "length")


class TraceEvent(NamedTuple):
    """A FUSE request that has ended, or whose reply is not waited for any more."""

    unique: int  #: requests are sent in the order of these
    opcode: str
    node: int  #: 0 where it is about none
    #: Of the node, from the export's root on: ``/``. Without a slash in front where what is above
    #: is not known.
    path: str | None
    arguments: Arguments
    size: int  #: of the request, in bytes, its header included
    sent_ns: int  #: since 1970
    monotonic_ns: int  #: the same, by the daemon's monotonic clock
    took_ns: int
    outcome: str  #: OK, the name of an errno, TIMEOUT, or LOST where the backend was
    length: int  #: of the reply, in bytes, without its header
    lost: int = 0  #: events that are missing in front of this one

    @classmethod
    def from_map(cls, value: Any, lost: int, name: Callable[[Any], str] = to_name) -> "TraceEvent":
        """Make it of a map as it comes; ``name`` makes ``str`` of names in it."""
        fields = to_map(value)
        try:
            numbers = {key: to_int(fields[key]) for key in _NUMBERS}
            opcode, outcome = name(fields["opcode"]), name(fields["outcome"])
            path, given = fields["path"], to_map(fields["arguments"])
        except KeyError as error:
            raise BadReply(f"an event of a trace has no {error}") from None
        for key, number in (numbers | {"lost": lost}).items():
            if not 0 <= number < _LIMITS.get(key, _MOST):
                raise BadReply(f"an event of a trace with {key} {number}")
        return cls(
            opcode=opcode,
            path=None if path is None else name(path),
            arguments={name(key): _argument(value, name) for key, value in given.items()},
            outcome=outcome,
            lost=lost,
            **numbers,
        )

    @classmethod
    def from_json(cls, value: Any) -> "TraceEvent":
        """Make it of what :meth:`to_json` gave."""
        return cls.from_map(value, to_int(to_map(value).get("lost", 0)), _text)

    def to_json(self) -> dict[str, Any]:
        """Return it as a map; bytes of names that are no UTF-8 are lone surrogates in JSON, too."""
        fields = self._asdict()
        if not self.lost:
            del fields["lost"]
        return fields


class TracePage(NamedTuple):
    """Events in the order in which they came, and how many before the first are lost."""

    events: list[TraceEvent]
    lost: int

    @classmethod
    def from_wire(cls, value: Any) -> "TracePage":
        """Make it of what ``trace`` returns."""
        fields = to_map(value)
        lost = to_int(fields.get("lost"))
        events = to_list(fields.get("events"))
        return cls(
            [TraceEvent.from_map(event, 0 if at else lost) for at, event in enumerate(events)], lost
        )


def _argument(value: object, name: Callable[[Any], str]) -> "int | str | list[tuple[int, int]]":
    if isinstance(value, int):
        return value
    if isinstance(value, list):
        try:
            return [(to_int(node), to_int(count)) for node, count in value]
        except (TypeError, ValueError):
            raise BadReply("an event of a trace has a list of something else") from None
    return name(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadReply(f"{type(value).__name__} in place of a str")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise BadReply("a str with surrogates that stand for no byte") from None
    return value
