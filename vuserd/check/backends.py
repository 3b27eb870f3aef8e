"""Check that backends start: start each as the daemon would, and stop it again."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import trio

from vuserd.backend import landlock
from vuserd.backend.find import Program, find_program
from vuserd.backend.process import sandboxes
from vuserd.check.machine import Mark, Result, start_advice
from vuserd.config.model import ExportConfig
from vuserd.errors import ConfigurationError, os_reason
from vuserd.exports.directory import look_at
from vuserd.exports.serving import Serving
from vuserd.tasks.threads import in_thread
from vuserd.tracing.tap import Tracing

#: Seconds for one start, all sandboxes together: a slower one would delay the daemon, too.
_PATIENCE: Final = 30.0
_MOUNTS: Final = "/proc/self/mountinfo"


async def start_results(exports: Sequence[ExportConfig], uid: int) -> list[Result]:
    """Start a backend for each export with a directory; without exports, one for any directory."""
    results = []
    wanted = [export for export in exports if export.directory is not None]
    for export in wanted if exports else [None]:
        try:
            program = await find_program(None if export is None else export.program, uid)
        except ConfigurationError:
            continue  # reported elsewhere
        if export is None:
            folder = os.path.dirname(program.path)  # any directory that exists and is small
            tried = await _try(ExportConfig("any", directory=folder), program, uid)
            results.append(_result("backend", tried, uid))
            continue
        tried = await _try(export, program, uid)
        results.append(_result(f"export {export.name}", tried, uid))
        if tried.mode == "namespace":
            results += propagation_results(export)
    return results


class _Tried(NamedTuple):
    """How a start went: the sandbox in use or why there is none, and the best one."""

    mode: str | None
    failure: str
    best: str


async def _try(export: ExportConfig, program: Program, uid: int) -> _Tried:
    assert export.directory is not None
    wanted = export.options.sandbox
    modes = sandboxes(program.kind, uid) if wanted is None else [wanted]
    try:
        sight = await in_thread(look_at, export.directory)
    except OSError as error:
        return _Tried(None, f"{export.directory}: {os_reason(error)}", modes[0])
    if sight.standing is None:
        return _Tried(None, sight.reason, modes[0])
    serving = Serving(export, program, modes, Tracing(), export.directory)
    failure = f"it did not start within {_PATIENCE:g} s"
    with trio.move_on_after(_PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(serving.run)
            served = serving.is_serving()
            serving.retire()
            if not served:
                await serving.over.wait()
                failure = serving.failure
        if served:
            return _Tried(serving.mode, "", modes[0])
    return _Tried(None, failure, modes[0])


def _result(name: str, tried: _Tried, uid: int) -> Result:
    if tried.mode is None:
        return Result(
            name, Mark.PROBLEM, f"no backend starts: {tried.failure}", start_advice(tried.best, uid)
        )
    detail = f'a backend starts, with the sandbox "{tried.mode}"'
    if tried.mode != tried.best:
        return Result(
            name,
            Mark.WARNING,
            f'{detail} and not "{tried.best}"',
            start_advice(tried.best, uid),
        )
    if uid != 0 and tried.mode == "namespace":
        detail += "; owners of files that are not this user's are unknown in it"
        return Result(name, Mark.WARNING, detail, _owners_advice())
    return Result(name, Mark.OK, detail)


def _owners_advice() -> str:
    if landlock.is_available():
        return 'leave sandbox at "auto", or take "landlock"'
    return "take Linux 6.2 or newer with Landlock, where they are those of the host"


# -- mounts below an export ------------------------------------------------------------------------


class _Mount(NamedTuple):
    point: str
    is_shared: bool


def propagation_results(export: ExportConfig, mounts: str = _MOUNTS) -> Iterator[Result]:
    """Warn where a later mount below an export would not reach its backend.

    A backend in a mount namespace of its own sees what was mounted when it started. Later mounts
    reach it only below a shared mount (mount_namespaces(7)).
    """
    assert export.directory is not None
    there = os.path.realpath(export.directory)
    found = _mounts(mounts)
    above = [mount for mount in found if _is_below(there, mount.point)]
    below = [mount for mount in found if mount.point != there and _is_below(mount.point, there)]
    holds = max(above, key=lambda mount: len(mount.point), default=None)
    concerned = below if holds is None else [holds, *below]
    private = [mount.point for mount in concerned if not mount.is_shared]
    if private:
        points = ", ".join(private)
        yield Result(
            f"export {export.name}",
            Mark.WARNING,
            f"mounts and unmounts below {there} do not reach a backend that runs:"
            f" {points} is not shared (mount_namespaces(7))",
            f"mount --make-shared {private[0]} before vuserd starts, or after each mount:"
            f" vuserctl reload {export.name}",
        )


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _mounts(path: str) -> list[_Mount]:
    """Return the mounts of this process (proc_pid_mountinfo(5)); later ones hide earlier ones."""
    found: dict[str, _Mount] = {}
    try:
        with open(path, "rb") as lines:
            for line in lines:
                fields = line.split(b" ")
                optional = fields[6 : fields.index(b"-")]
                point = os.fsdecode(re.sub(rb"\\([0-7]{3})", _unescape, fields[4]))
                shared = any(each.startswith(b"shared:") for each in optional)
                found[point] = _Mount(point, shared)
    except (OSError, ValueError, IndexError):
        return []
    return list(found.values())


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8) & 0xFF])
