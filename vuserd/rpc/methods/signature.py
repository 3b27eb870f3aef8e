"""What a method takes and gives, checked on every call and told by ``api_info``."""

import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar

from vuserd.errors import CallError, ErrorCode
from vuserd.rpc.methods.short import Short
from vuserd.rpc.results import answers
from vuserd.wire.codec import name_bytes

_MAX_INT = (1 << 63) - 1
#: Bytes of an entry with the longest name: with all attributes, and without.
_ENTRY_BYTES: Final = {True: 512, False: 300}
#: The option of every method that asks a backend: seconds for all of the call. It is kept by who
#: calls the handler, which knows nothing of it.
TIMEOUT: Final = "timeout"


class Kind(NamedTuple):
    """A type of parameter: its name in ``api_info``, and the check that gives the value to use."""

    name: str
    #: Raises TypeError or ValueError whose text completes "NAME: ...".
    check: Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a str is wanted, not {type(value).__name__}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"a bool is wanted, not {type(value).__name__}")
    return value


def _path(value: Any) -> bytes:
    path = name_bytes(value)
    if b"\0" in path:
        raise ValueError("a path cannot contain a NUL byte")
    return path


def _token(value: Any) -> bytes | None:
    if value is not None and not isinstance(value, bytes):
        raise TypeError("the token of the page before is wanted, or nil")
    return value


def integer(least: int = 0, most: int = _MAX_INT) -> Kind:
    """Return the kind of an integer in a range."""

    def check(value: Any) -> int:
        if type(value) is not int:
            raise TypeError(f"an integer is wanted, not {type(value).__name__}")
        if not least <= value <= most:
            raise ValueError(f"{value} is not in {least}..{most}")
        return value

    return Kind("int", check)


def seconds(most: float) -> Kind:
    """Return the kind of a time span of up to ``most`` seconds."""

    def check(value: Any) -> float:
        if type(value) not in (int, float):
            raise TypeError(f"a number of seconds is wanted, not {type(value).__name__}")
        if not 0 <= value <= most:
            raise ValueError(f"{value} is not in 0..{most:g}")
        return float(value)

    return Kind("float", check)


TEXT = Kind("str", _text)
FLAG = Kind("bool", _flag)
PATH = Kind("path", _path)
TOKEN = Kind("token", _token)


def optional(kind: Kind) -> Kind:
    """Return a kind that may also be nil."""
    return Kind(f"{kind.name} or nil", lambda value: None if value is None else kind.check(value))


class Option(NamedTuple):
    """An entry of a method's trailing options map."""

    kind: Kind
    default: Any


#: About how many bytes a reply has, by the arguments and options of the call.
Weight = Callable[[list[Any], dict[str, Any]], int]


def weightless(_: list[Any], __: dict[str, Any]) -> int:
    """Count nothing: the reply is small."""
    return 0


def listing_weight(_: list[Any], options: dict[str, Any]) -> int:
    """Count what ``limit`` entries take, nearly: some can be asked for without attributes."""
    weight: int = options["limit"] * _ENTRY_BYTES[options.get("attrs", True)]
    return weight


@dataclass(frozen=True)
class Method:
    """A method of the RPC.

    The handler is called with the :class:`~vuserd.rpc.caller.Caller` and the parameters, options by
    keyword; with ``descriptor`` also with the descriptor that came with the request, which it takes
    over.
    """

    name: str
    handler: Callable[..., Awaitable[Any]]
    params: Mapping[str, Kind]
    options: Mapping[str, Option]
    returns: str
    since: int = 1
    descriptor: bool = False
    #: Whether it is for those alone who manage the daemon.
    manages: bool = False
    #: How a result becomes the reply.
    answer: answers.Answer = answers.value
    #: About how many bytes the reply has, by the arguments and options: the client's budget counts.
    weight: Weight = weightless
    #: Called like the handler: returns the call as a procedure of a few requests, which returns
    #: what the handler does; None where the handler has to do it. What it raises, the handler does.
    short: Callable[..., Short | None] | None = None
    #: Whether short calls that come at once, and say the same, may share what is found.
    shares: bool = False

    @functools.cached_property
    def _checks(self) -> list[Callable[[Any], Any]]:
        return [kind.check for kind in self.params.values()]

    @functools.cached_property
    def _defaults(self) -> dict[str, Any]:
        return {name: option.default for name, option in self.options.items()}

    def describe(self) -> dict[str, Any]:
        """Return the method as ``api_info`` shows it."""
        params: list[dict[str, Any]] = [
            {"name": name, "type": kind.name} for name, kind in self.params.items()
        ]
        if self.options:
            params.append({"name": "options", "type": "map", "options": self._described_options()})
        described = {
            "name": self.name,
            "params": params,
            "returns": self.returns,
            "since": self.since,
        }
        return described | ({"descriptor": "with the request"} if self.descriptor else {})

    def _described_options(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "type": option.kind.name, "default": option.default}
            for name, option in self.options.items()
        ]

    def bind(self, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Check a call's parameters; return the handler's arguments.

        Raises:
            CallError: BAD_REQUEST, saying which parameter is wrong and what it should be.

        """
        checks, options, count = self._checks, self._defaults.copy(), len(values)
        if not len(checks) <= count <= len(checks) + bool(options):
            raise self._refused(f"takes {self._usage()}; {count} parameters were given")
        arguments: list[Any] = []
        try:
            for check, value in zip(checks, values, strict=False):
                arguments.append(check(value))
        except (TypeError, ValueError) as error:
            raise self._refused(f"{[*self.params][len(arguments)]}: {error}") from None
        if count > len(checks):
            for name, value in self._given_options(values[-1]).items():
                if name not in options:
                    raise self._refused(f"has no option {name!r}, only {', '.join(options)}")
                options[name] = self._checked(name, self.options[name].kind, value)
        return arguments, options

    def _given_options(self, given: Any) -> dict[Any, Any]:
        """Return the options map, if one was given.

        nil stands for none, and so does an empty array: in Lua and PHP an empty table is both, and
        their encoders write it as an array.
        """
        if given is None or given == []:
            return {}
        if not isinstance(given, dict):
            raise self._refused(f"options: a map is wanted, not {type(given).__name__}")
        return given

    def _checked(self, name: str, kind: Kind, value: Any) -> Any:
        try:
            return kind.check(value)
        except (TypeError, ValueError) as error:
            raise self._refused(f"{name}: {error}") from None

    def _refused(self, reason: str) -> CallError:
        return CallError(ErrorCode.BAD_REQUEST, f"{self.name} {reason}")

    def _usage(self) -> str:
        names = list(self.params)
        if self.options:
            names.append("{" + ", ".join(self.options) + "}")
        return f"({', '.join(names)})"


_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])
_DECLARED: Final = "_rpc_method"


def method(
    params: Mapping[str, Kind],
    options: Mapping[str, Option],
    returns: str,
    *,
    since: int = 1,
    descriptor: bool = False,
    manages: bool = False,
    answer: answers.Answer = answers.value,
    weight: Weight = weightless,
    short: Callable[..., Short | None] | None = None,
    shares: bool = False,
) -> Callable[[_Handler], _Handler]:
    """Declare a coroutine function to be the method of its name, as :class:`Method` has it."""

    def declare(handler: _Handler) -> _Handler:
        declared = Method(
            handler.__name__,
            handler,
            params,
            options,
            returns,
            since,
            descriptor,
            manages,
            answer,
            weight,
            short,
            shares,
        )
        setattr(handler, _DECLARED, declared)
        return handler

    return declare


def methods_of(owner: object) -> dict[str, Method]:
    """Return the methods that an object's class declares, bound to it, in their order there."""
    declared: dict[str, Method] = {
        name: getattr(member, _DECLARED)
        for name, member in vars(type(owner)).items()
        if hasattr(member, _DECLARED)
    }
    return {
        name: replace(
            found,
            handler=getattr(owner, name),
            short=None if found.short is None else functools.partial(found.short, owner),
        )
        for name, found in declared.items()
    }
