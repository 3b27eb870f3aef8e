"""The memory fence: nothing where the machine orders accesses, C11's elsewhere, or a refusal."""

import ctypes
import ctypes.util
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from memory.fence import NoFenceError, find_fence, own_fence

SEQ_CST = 5  # memory_order_seq_cst, the sixth of C11's enum


class FakeFunction:
    """atomic_thread_fence as ctypes shows it; remembers how it was called."""

    def __init__(self) -> None:
        self.argtypes: object = "not set"
        self.restype: object = "not set"
        self.calls: list[tuple[object, ...]] = []

    def __call__(self, *arguments: object) -> None:
        self.calls.append(arguments)


class FakeLibrary:
    def __init__(self) -> None:
        self.atomic_thread_fence = FakeFunction()


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "i386", "i686"])
def test_x86_needs_no_library(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    find_fence(machine)()


@pytest.mark.parametrize("machine", ["aarch64", "riscv64", "ppc64le", ""])
def test_another_machine_calls_a_sequentially_consistent_fence(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeLibrary()
    names: list[str] = []

    def load(name: str) -> FakeLibrary:
        names.append(name)
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    function = find_fence(machine)
    assert names == ["libatomic.so.1"]
    assert library.atomic_thread_fence.argtypes == [ctypes.c_int]
    assert library.atomic_thread_fence.restype is None
    assert library.atomic_thread_fence.calls == []
    function()
    function()
    assert library.atomic_thread_fence.calls == [(SEQ_CST,), (SEQ_CST,)]


def no_library(name: str) -> NoReturn:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")


def library_without_fence(_: str) -> object:
    return object()


@pytest.mark.parametrize("load", [no_library, library_without_fence])
def test_machine_without_a_fence_is_refused_with_the_package_to_install(
    load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(NoFenceError, match=r"fences on aarch64: install libatomic \(libatomic1\)"):
        find_fence("aarch64")


def test_this_machine_has_a_fence() -> None:
    fence = own_fence()
    fence()
    assert own_fence() is fence  # it is looked for once


def test_a_machine_without_one_can_import_what_needs_one() -> None:
    program = (
        "import platform; platform.machine = lambda: 'aarch64'\n"
        "import ctypes\n"
        "def refuse(*_, **__): raise OSError\n"
        "ctypes.CDLL = refuse\n"
        "import memory.virtqueue, memory.fence\n"
        "try: memory.fence.own_fence()\n"
        "except memory.fence.NoFenceError: pass\n"
        "else: raise SystemExit('found')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(ctypes.util.find_library("atomic") is None, reason="libatomic is not installed")
def test_fence_of_the_real_libatomic_can_be_called() -> None:
    find_fence(f"not {platform.machine()}")()


def test_a_machine_of_the_other_byte_order_is_refused() -> None:
    with pytest.raises(NoFenceError, match="little-endian"):
        find_fence("s390x", "big")
