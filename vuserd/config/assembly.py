"""Assemble the tables of all files: check them against each other, and build the model."""

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from vuserd.backend.process import BackendOptions
from vuserd.config.arguments import socket_identity
from vuserd.config.documents import Section, Value
from vuserd.config.model import (
    Access,
    Account,
    ClientLimits,
    DaemonConfig,
    ExportConfig,
    ListenConfig,
    RigConfig,
)
from vuserd.config.schema import BACKEND, SHARED, spelled
from vuserd.config.values import shown
from vuserd.device.session import SessionOptions
from vuserd.errors import Problem

#: Keys that are fields of the model under another name, or several of which make one field.
_OPTIONS: Final = ("cache", "thread_pool", "xattr", "inode_file_handles", "descriptors")


class Assembly:
    """Assembles sections into a configuration; adds what is wrong between them to ``problems``.

    Args:
        sections: those of all files, in the order of the files.
        address: where the daemon listens if no section says where.
        problems: gets what is wrong.

    """

    def __init__(self, sections: Sequence[Section], address: str, problems: list[Problem]) -> None:
        self._problems = problems
        self._address = address
        self._top = _merged(sections, "")
        self._limits = _merged(sections, "limits")
        self._exports = [section for section in sections if section.table == "export"]
        self._listeners = [section for section in sections if section.table == "listen"]
        self._rigs = [section for section in sections if section.table == "rig"]

    def check(self) -> None:
        """Find conflicts between values that are right by themselves."""
        for export in self._exports:
            self._check_export(export)
        for listener in self._listeners:
            socket = listener.given.get("socket")
            if isinstance(socket, str) and socket.startswith("@"):
                self._refuse(
                    listener,
                    ("mode", "group"),
                    "an abstract socket has none: all may connect who share its network namespace",
                    "leave it out, or give the socket a path",
                )
        self._check_names()
        self._check_sockets()
        self._check_rigs()
        self._check_limits()

    def config(self) -> DaemonConfig:
        """Return the model; call this only if there are no problems."""
        listeners = tuple(
            ListenConfig(values["socket"], **_chosen(values, "mode"), **_group(values))
            for values in map(_plain, self._listeners)
        )
        rigs = tuple(
            RigConfig(values["netns"], values["exports"], **_chosen(values, address="socket"))
            for values in map(_plain, self._rigs)
        )
        top = {key: value.value for key, value in self._top.items()}
        limits = {key: value.value for key, value in self._limits.items()}
        return DaemonConfig(
            listeners,
            tuple(map(self._export, self._exports)),
            rigs,
            ClientLimits(**limits),
            **_chosen(top, "image_cache", "drain", "metrics_file", "metrics_interval"),
        )

    def _export(self, section: Section) -> ExportConfig:
        shared = {key: self._top[key].value for key in SHARED if key in self._top}
        values = shared | _plain(section)
        users, groups = values.get("users", Access()), values.get("groups", Access())
        options = _chosen(values, *_OPTIONS)
        if values.get("sandbox", "auto") != "auto":
            options["sandbox"] = values["sandbox"]
        return ExportConfig(
            values["name"],
            access=replace(users, groups=groups.groups, missing=users.missing | groups.missing),
            options=BackendOptions(**options),
            session=SessionOptions(**_chosen(values, "timeout")),
            **_chosen(
                values,
                "socket",
                "idle_nodes",
                "idle_time",
                "restarts",
                directory="path",
                program="backend",
            ),
        )

    def _check_export(self, export: Section) -> None:
        if "path" in export.given and "socket" in export.given:
            self._refuse(export, ("socket",), "path is given, too", "give one of the two")
        elif "path" not in export.given and "socket" not in export.given:
            self._add(
                export, "path", "is missing", "give a directory, or socket for a virtiofsd's socket"
            )
        elif "socket" in export.given:
            self._refuse(
                export,
                BACKEND,
                "the daemon does not start the backend behind a socket",
                "leave it out, and give it where that virtiofsd is started",
            )

    def _check_names(self) -> None:
        self._refuse_second(
            ((section, "name", section.values.get("name")) for section in self._exports),
            lambda name: name,
            "another export has this name",
            "choose another name",
        )

    def _check_sockets(self) -> None:
        sections = [*self._listeners, *self._exports]
        self._refuse_second(
            ((section, "socket", section.values.get("socket")) for section in sections),
            socket_identity,
            "this socket is taken",
            "choose another socket",
        )
        if self._listeners:
            return
        for export in self._exports:
            value = export.values.get("socket")
            if value and socket_identity(value.value) == socket_identity(self._address):
                wrong = f"{shown(value.value)}: it is where clients connect"
                self._add(export, "socket", wrong, "write [[listen]] with another socket")

    def _check_rigs(self) -> None:
        # An export counts even if its name is not a valid one.
        names = {name for each in self._exports if isinstance(name := each.given.get("name"), str)}
        for rig in self._rigs:
            exports = rig.values.get("exports")
            for name in exports.value if exports else ():
                if name not in names:
                    there = ", ".join(sorted(names)) or "none"
                    self._add(
                        rig, "exports", f"there is no export {name}", f"the exports are: {there}"
                    )
        self._refuse_second(
            ((rig, "socket", _rig_address(rig)) for rig in self._rigs),
            lambda place: place,
            "another rig has it in the same namespace",
            "choose another socket",
        )

    def _check_limits(self) -> None:
        """Refuse a limit of a connection that is above that of its user."""
        values = {key: value.value for key, value in self._limits.items()}
        limits = ClientLimits(**values)
        for name, whole in (
            ("requests", "user_requests"),
            ("payload", "user_payload"),
            ("frame", "user_frames"),
        ):
            if getattr(limits, name) > getattr(limits, whole):
                culprit = whole if whole in self._limits else name
                self._problems.append(
                    Problem(
                        *self._limits[culprit].place,
                        spelled("limits", culprit),
                        f"one connection ({name}) may use more than its user ({whole})",
                        f"give {whole} as much as {name}, or more",
                    )
                )

    def _refuse_second(
        self,
        values: Iterable[tuple[Section, str, Value | None]],
        identity: Callable[[Any], Hashable],
        wrong: str,
        right: str,
    ) -> None:
        """Refuse each value that an earlier section has as well, and say where that one is."""
        seen: dict[Hashable, Value] = {}
        for section, key, value in values:
            if value is None:
                continue
            first = seen.setdefault(identity(value.value), value)
            if first is not value:
                what = value.value if isinstance(value.value, str) else value.value[-1]
                self._add(section, key, f"{shown(what)}: {wrong}: {first.place}", right)

    def _refuse(self, section: Section, keys: Iterable[str], wrong: str, right: str) -> None:
        for key in keys:
            if key in section.given:
                self._add(section, key, wrong, right)

    def _add(self, section: Section, key: str, wrong: str, right: str) -> None:
        self._problems.append(section.problem(key, wrong, right))


def _merged(sections: Iterable[Section], table: str) -> dict[str, Value]:
    """Return the values of a table that each file may have once: the last file's win."""
    merged: dict[str, Value] = {}
    for section in sections:
        if section.table == table:
            merged |= section.values
    return merged


def _plain(section: Section) -> dict[str, Any]:
    return {key: value.value for key, value in section.values.items()}


def _chosen(values: dict[str, Any], *same: str, **renamed: str) -> dict[str, Any]:
    """Return those of the keys that have values; ``renamed`` maps names of the model to keys."""
    names = {name: name for name in same} | renamed
    return {ours: values[theirs] for ours, theirs in names.items() if theirs in values}


def _group(values: dict[str, Any]) -> dict[str, Any]:
    """Return the group of a socket under the model's name for it."""
    group = values.get("group")
    return {"missing" if isinstance(group, Account) else "group": group}


def _rig_address(rig: Section) -> Value | None:
    """Return the rig's namespace and the socket in it, as one value."""
    netns = rig.values.get("netns")
    if netns is None or ("socket" in rig.given and "socket" not in rig.values):
        return None
    address = rig.values["socket"].value if "socket" in rig.values else RigConfig("", ()).address
    path = os.path.realpath(RigConfig(netns.value, ()).path)
    return Value((path, address), rig.place_of("socket"))
