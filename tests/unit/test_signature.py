"""A call's parameters: what is accepted, what is refused, and with which message."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vuserd.errors import CallError, ErrorCode
from vuserd.rpc.methods.signature import (
    FLAG,
    PATH,
    TEXT,
    TOKEN,
    Method,
    Option,
    integer,
    optional,
    seconds,
)


async def handler() -> None:
    raise AssertionError("nothing calls it")


METHOD = Method(
    "list",
    handler,
    {"export": TEXT, "path": PATH},
    {"limit": Option(integer(1, 1000), 10), "attrs": Option(FLAG, default=False)},
    "map",
)
BARE = Method("exports", handler, {}, {}, "array of map")
DEFAULTS = {"limit": 10, "attrs": False}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("rest", [(), ({},), ([],), (None,)])
def test_no_options_are_given_in_each_of_these_forms(rest: tuple[Any, ...]) -> None:
    assert METHOD.bind(["files", "/", *rest]) == (["files", b"/"], DEFAULTS)


def test_options_replace_defaults() -> None:
    _, options = METHOD.bind(["files", "/", {"attrs": True}])
    assert options == DEFAULTS | {"attrs": True}


def test_defaults_are_not_shared_by_calls() -> None:
    _, options = METHOD.bind(["files", "/", []])
    options["limit"] = 1
    assert METHOD.bind(["files", "/", []])[1] == DEFAULTS


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (["attrs"], "list"),
        ([[]], "list"),
        ([None], "list"),
        ([{}], "list"),
        ("", "str"),
        (b"", "bytes"),
        (0, "int"),
        (False, "bool"),
    ],
)
def test_what_is_no_map_is_refused(given: object, kind: str) -> None:
    with pytest.raises(CallError, match=f"list options: a map is wanted, not {kind}") as refused:
        METHOD.bind(["files", "/", given])
    assert refused.value.code == ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("given", [{}, [], None])
def test_a_method_without_options_takes_none_of_them(given: object) -> None:
    assert BARE.bind([]) == ([], {})
    with pytest.raises(CallError, match=r"exports takes \(\); 1 parameters were given"):
        BARE.bind([given])


@pytest.mark.parametrize("path", [[], {}, None])
def test_an_empty_array_is_no_other_parameter(path: object) -> None:
    with pytest.raises(CallError, match="list path: "):
        METHOD.bind(["files", path, {}])


@given(st.lists(values, max_size=4), values)
def test_a_call_is_bound_or_refused(params: list[Any], options: Any) -> None:
    for call in (params, ["files", "/", options], ["files", "/", {"limit": options}]):
        refused = None
        try:
            arguments, bound = METHOD.bind(call)
        except CallError as error:
            refused = error
        if refused is not None:
            assert refused.code == ErrorCode.BAD_REQUEST
            assert refused.to_wire()["message"].startswith("list ")
            continue
        assert [type(argument) for argument in arguments] == [str, bytes]
        assert bound.keys() == DEFAULTS.keys()
        assert 1 <= bound["limit"] <= 1000
        assert isinstance(bound["attrs"], bool)


@given(values)
def test_each_kind_gives_its_type_or_says_what_is_wanted(value: Any) -> None:
    kinds = {TEXT: str, FLAG: bool, PATH: bytes, integer(): int, seconds(60): float}
    for kind, type_ in kinds.items():
        for each in (kind, optional(kind)):
            with contextlib.suppress(TypeError, ValueError):
                checked = each.check(value)
                assert type(checked) is type_ or (checked is None and each is not kind)
    if value is None or isinstance(value, bytes):
        assert TOKEN.check(value) == value
    else:
        with pytest.raises(TypeError, match="the token of the page before"):
            TOKEN.check(value)
