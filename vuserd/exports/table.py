"""All exports of the daemon, and how a changed configuration becomes theirs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import trio

from vuserd.backend.find import Program, find_program
from vuserd.config.model import ExportConfig
from vuserd.errors import BackendDown, CallError, ConfigurationError, ErrorCode, VuserdError
from vuserd.exports.export import Export
from vuserd.exports.states import ExportState

#: Another one is started in the place of an export in one of these states.
_ENDED: Final = frozenset({ExportState.FAILED, ExportState.STOPPED})


class Exports(Mapping[str, Export]):
    """The exports by name, in the order of the configuration.

    Args:
        nursery: where they live.

    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._exports: dict[str, Export] = {}
        self._watchers = trio.lowlevel.ParkingLot()

    def __getitem__(self, name: str) -> Export:
        return self._exports[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._exports)

    def __len__(self) -> int:
        return len(self._exports)

    async def apply(self, configs: Sequence[ExportConfig]) -> list[str]:
        """Make the exports these, and touch only those that differ; return what was done.

        Each of them is up then, or is known not to be. A backend that is to be replaced goes on
        serving until the other one does, and where that cannot be had.
        """
        done: list[str] = []
        wanted = {config.name: config for config in configs}
        for name in [name for name in self._exports if name not in wanted]:
            self._exports.pop(name).stop()
            done.append(f"export {name}: removed")
        async with trio.open_nursery() as nursery:
            for config in configs:
                nursery.start_soon(self._apply_one, config, done)
        self._exports = {name: self._exports[name] for name in wanted}
        self._watchers.unpark_all()
        return done

    async def replace(self, name: str) -> list[str]:
        """Replace an export's backend, or start the export again where it has failed.

        Raises:
            BackendDown: there is none to be had; the old one, if any, goes on serving.
            CallError: the backend is adopted, or the export is gone by now.

        """
        export = self._exports.get(name)
        if export is None:
            raise CallError(ErrorCode.UNKNOWN_EXPORT, f"there is no export {name!r} any more")
        if export.state not in _ENDED:
            await export.replace(export.config, await _find_program(export.config))
            return [f"export {name}: backend replaced"]
        export = await self._start(export.config)
        if export.state in _ENDED:
            raise BackendDown(f"export {name} is {export.state}: {export.reason}")
        return [f"export {name}: started again"]

    async def changed(self) -> None:
        """Wait until an export has changed its state, or there is one more or less."""
        await self._watchers.park()

    def stop(self) -> None:
        """Ask all of them to end in good order."""
        for export in self._exports.values():
            export.stop()

    async def _apply_one(self, config: ExportConfig, done: list[str]) -> None:
        name = config.name
        current = self._exports.get(name)
        if current is None:
            export = await self._start(config)
            done.append(f"export {name}: added, {export.state}")
        elif current.state is ExportState.FAILED and current.config == config:
            export = await self._start(config)
            done.append(f"export {name}: tried again, {export.state}")
        elif current.config != config:
            done.append(f"export {name}: {await self._change(current, config)}")

    async def _change(self, current: Export, config: ExportConfig) -> str:
        is_another = current.config.source != config.source
        if is_another or current.state in _ENDED or config.access.missing:
            export = await self._start(config)
            what = f"now {config.source}" if is_another else "started anew"
            return f"{what}, {export.state}"
        if current.config.serves_like(config):
            current.configure(config)
            return "other rights"
        if config.socket is not None:
            current.configure(config)
            return "changed, from its next session on"
        if current.state is not ExportState.UP:
            export = await self._start(config)  # its next backend would be as the last one was
            return f"started anew, {export.state}"
        try:
            await current.replace(config, await _find_program(config))
        except VuserdError as error:
            current.configure(current.config.with_access(config.access))
            return f"kept with the backend it has: {error}"
        return "backend replaced"

    async def _start(self, config: ExportConfig) -> Export:
        """Start an export, in the place of the one of its name if there is one.

        The new one takes calls before the old one ends, and has them wait for its backend.
        """
        export = Export(
            config, await _find_program(config), self._watchers.unpark_all, _find_program
        )
        before = self._exports.get(config.name)
        self._exports[config.name] = export
        if before is not None:
            before.stop()
        self._nursery.start_soon(export.run)
        await export.settled.wait()
        return export


async def _find_program(config: ExportConfig) -> Program | ConfigurationError:
    """Find the virtiofsd that a directory needs; an adopted backend does without."""
    if config.socket is not None:
        return ConfigurationError("not asked for")
    try:
        return await find_program(config.program, os.geteuid())
    except ConfigurationError as error:
        return error
