"""Calls in threads, and where there is none to be had."""

import threading

import pytest
import trio

from vuserd.errors import os_reason
from vuserd.tasks.threads import in_thread


async def test_a_function_is_called_in_a_thread_of_its_own() -> None:
    def where(*words: str) -> tuple[int, tuple[str, ...]]:
        return threading.get_ident(), words

    thread, words = await in_thread(where, "a", "b")
    assert thread != threading.get_ident()
    assert words == ("a", "b")


async def test_no_thread_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    with pytest.raises(OSError, match="can't start new thread") as told:
        await in_thread(threading.get_ident)
    assert os_reason(told.value) == "can't start new thread"


async def test_what_the_function_raises_is_its_own() -> None:
    def fail() -> None:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        await in_thread(fail)
