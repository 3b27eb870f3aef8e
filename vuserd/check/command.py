"""The command ``vuserd check``: examine all that serving needs, and advise on what is missing.

The exit status is 1 where there is a problem, else 0, even with warnings.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import trio

from vuserd import __version__
from vuserd.check.backends import start_results
from vuserd.check.configured import (
    access_results,
    account_results,
    candidate_results,
    export_result,
    fitness_results,
    listener_result,
    listener_there,
    metrics_result,
    rig_results,
)
from vuserd.check.machine import Mark, Result, machine_results, user_limits_result
from vuserd.check.service import Service, installed_service, service_results
from vuserd.check.unix_diag import is_listened_on
from vuserd.config.descriptor_limits import descriptors_allowed
from vuserd.config.files import config_files, read_config
from vuserd.config.model import DaemonConfig, ExportConfig
from vuserd.errors import ConfigurationError, ConfigurationErrors, UnsafePath, printable
from vuserd.tasks.threads import in_thread
from vuserd.trust.path import own_trust, route
from vuserd.wire.address import SYSTEM_SOCKET, socket_address

_NAME = "configuration"
#: Seconds for a look at an export's path: what is mounted on demand may take a while.
_PATIENCE = 10.0
_NO_RUNTIME_FOLDER = (
    "XDG_RUNTIME_DIR is not set: a user's daemon has no place for its socket",
    "log in, or give vuserd serve --socket",
)


def run(options: argparse.Namespace) -> int:
    """Check, print what was found, and return the exit status."""
    results = trio.run(examine, options.config, os.environ, os.geteuid())
    worst = max((result.mark for result in results), key=list(Mark).index)
    if options.json:
        checks = [result._asdict() for result in results]
        report = {"version": __version__, "result": worst, "checks": checks}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in table(results))
    return 1 if worst is Mark.PROBLEM else 0


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of a table of results."""
    width = max(len(result.name) for result in results)
    for name, mark, detail, advice in results:
        words = printable(f"{detail}; {advice}" if advice else detail)
        yield f"{mark:<7}  {name:<{width}}  {words}"


async def examine(explicit: str | None, environ: Mapping[str, str], uid: int) -> list[Result]:
    """Examine everything as the effective user ``uid``, which has to be this process's.

    What backends print as they start is in the results, so it is not logged as well.
    """
    logging.getLogger("vuserd").addHandler(logging.NullHandler())
    permit = "serve as another user"
    if (service := _service_of(explicit, environ, uid)) is not None:
        try:
            service.become()
        except ConfigurationError as error:
            return [Result("service", Mark.PROBLEM, str(error), "systemd-sysusers makes it")]
        uid, permit = os.geteuid(), service.drop_in("any-file.conf")
        explicit = service.config  # not what that user would read by itself
    is_service = uid == 0 and is_listened_on(SYSTEM_SOCKET)
    default = SYSTEM_SOCKET if is_service or service else socket_address(None, environ)
    config, results = configuration_results(explicit, environ, uid, default)
    results += await candidate_results(config.exports, uid)
    looks = [(export, await _look_at(export, permit)) for export in config.exports]
    exports = [(export, result or _silent(export)) for export, result in looks]
    results += (result for _, result in exports)
    results += account_results(config)
    unfit = await fitness_results(config.exports, uid)
    results += unfit
    if not any(result.mark is Mark.PROBLEM for result in unfit):
        there = [export for export, result in exports if result.mark is not Mark.PROBLEM]
        results += await start_results(there, uid)
    if service is None:
        listeners = config.listeners or (listener_there(default),)
        if uid != 0 and default == SYSTEM_SOCKET and not config.listeners:
            results.append(Result("socket", Mark.WARNING, *_NO_RUNTIME_FOLDER))
        else:
            results += map(listener_result, listeners)
        if config.metrics_file is not None:
            results.append(metrics_result(config.metrics_file))
    else:
        listeners = config.listeners + service.listeners
        seen = tuple(export for export, result in looks if result is not None)
        results += service_results(service, replace(config, exports=seen))
    results += access_results(config, listeners)
    results += rig_results(config.rigs, may_enter=service is not None)
    options = [export.options for export in config.exports if export.socket is None]
    results.append(user_limits_result(config.limits, descriptors_allowed()))
    return results + machine_results(
        uid,
        max((each.descriptors for each in options), default=0),
        namespaces_wanted=any(each.sandbox == "namespace" for each in options),
    )


async def _look_at(export: ExportConfig, permit: str) -> Result | None:
    """Return what there is to say of an export's path; None if its file system does not answer."""
    with trio.move_on_after(_PATIENCE):
        return await in_thread(export_result, export, permit, abandon_on_cancel=True)
    return None


def _silent(export: ExportConfig) -> Result:
    detail = f"{export.source}: its file system does not answer"
    return Result(f"export {export.name}", Mark.PROBLEM, detail, "mend it, or unmount it")


def _service_of(explicit: str | None, environ: Mapping[str, str], uid: int) -> Service | None:
    """Return the system's service if it is its configuration that root has checked."""
    files = config_files(explicit, environ, uid)[:1] if uid == 0 else []
    service = installed_service() if files else None
    return service if service is not None and service.config in files else None


def configuration_results(
    explicit: str | None, environ: Mapping[str, str], uid: int, socket: str
) -> tuple[DaemonConfig, list[Result]]:
    """Return the configuration and results about it; an empty one if it has mistakes."""
    nothing = DaemonConfig((), ())
    try:
        files = config_files(explicit, environ, uid)
        config = read_config(files, socket)
    except ConfigurationErrors as errors:
        return nothing, [
            Result(_NAME, Mark.PROBLEM, str(problem._replace(right="")), problem.right)
            for problem in errors.problems
        ]
    if not files:
        return nothing, [Result(_NAME, Mark.OK, "no file: vuserd serve takes --export instead")]
    results = [Result(_NAME, Mark.OK, ", ".join(files))]
    if not config.exports:
        detail = "there is nothing to serve"
        results.append(Result(_NAME, Mark.WARNING, detail, "write [[export]] with a name and path"))
    return config, results + list(_risks(files))


def _risks(files: Sequence[str]) -> Iterator[Result]:
    """Warn where others can remove a file, or give its name to another file of its owner."""
    for file in files:
        with contextlib.suppress(OSError, UnsafePath), route(file, own_trust()) as found:
            for risk in found.risks:
                yield Result(_NAME, Mark.WARNING, f"{file}: {risk}", "chmod go-w that folder")
