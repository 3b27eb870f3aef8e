"""How much memory may be taken: the least of the machine's and of all limits up to the root."""

import errno
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from vuserd.delivery.cgroups import UNLIMITED
from vuserd.delivery.headroom import RESERVE, Headroom
from vuserd.errors import FileError

MIB: Final = 1 << 20
NO_LIMIT_V1: Final = (1 << 63) - 4096


class Machine:
    """A fake procfs, and the trees of cgroups that its mounts show."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").touch()
        (self.proc / "self/mountinfo").touch()
        self.has(free=8 << 30)
        self.headroom = Headroom(str(self.proc))

    def has(self, free: int, total: int = 16 << 30) -> None:
        text = (
            f"MemTotal:       {total >> 10} kB\nMemFree:  1 kB\nMemAvailable:   {free >> 10} kB\n"
        )
        (self.proc / "meminfo").write_text(text)

    def is_member(self, *lines: str) -> None:
        (self.proc / "self/cgroup").write_text("".join(f"{line}\n" for line in lines))

    def mount(self, system: str, point: str, root: str = "/") -> Path:
        """Mount a hierarchy: ``cgroup2``, or ``cgroup rw,memory``."""
        kind, _, options = system.partition(" ")
        place = self.folder / point
        place.mkdir(exist_ok=True)
        shown = str(place).replace(" ", "\\040")
        with (self.proc / "self/mountinfo").open("a") as mounts:
            mounts.write(
                f"35 31 0:32 {root} {shown} rw,relatime shared:9 - {kind} none {options}\n"
            )
        return place

    def available(self, enough: int = UNLIMITED) -> int:
        return self.headroom.available(enough)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def write(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def v2(maximum: object, current: int, high: object = "max", **statistics: int) -> dict[str, object]:
    stat = "".join(f"{name} {value}\n" for name, value in statistics.items())
    return {"max": maximum, "high": high, "current": current, "stat": f"anon 1\n{stat}"}


def v1(
    limit: int, usage: int, *, swap: tuple[int, int] = (NO_LIMIT_V1, 0), **statistics: int
) -> dict[str, object]:
    stat = "".join(f"{name} {value}\n" for name, value in statistics.items())
    return {
        "limit_in_bytes": limit,
        "usage_in_bytes": usage,
        "memsw.limit_in_bytes": swap[0],
        "memsw.usage_in_bytes": swap[1],
        "use_hierarchy": 1,
        "stat": f"cache 1\n{stat}",
    }


class TestOfTheMachine:
    def test_without_cgroups_it_is_what_the_machine_has(self, machine: Machine) -> None:
        assert machine.available() == 8 << 30

    def test_what_is_not_told_limits_nothing(self, machine: Machine) -> None:
        (machine.proc / "meminfo").write_text("MemTotal: 5 kB\n")
        assert machine.available() == UNLIMITED
        (machine.proc / "meminfo").unlink()
        (machine.proc / "self/cgroup").unlink()
        (machine.proc / "self/mountinfo").unlink()
        assert machine.available() == UNLIMITED
        assert machine.headroom.bytes_to_give_back() == 0

    def test_without_descriptors_nothing_is_taken_for_free(self, machine: Machine) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(FileError, match="free cannot be told: too many open") as raised:
                machine.headroom.require(1, "an image")
            assert raised.value.number == errno.EMFILE
            assert machine.headroom.bytes_to_give_back() == 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        machine.headroom.require(1, "an image")

    def test_what_is_promised_is_not_there_for_others(self, machine: Machine) -> None:
        headroom = machine.headroom
        machine.has(free=RESERVE + 300 * MIB)
        with headroom.promise(100 * MIB), headroom.promise(150 * MIB):
            headroom.require(50 * MIB, "an image")
            with pytest.raises(FileError, match="52428801 bytes of an image do not fit"):
                headroom.require(50 * MIB + 1, "an image")
            assert machine.available() == RESERVE + 50 * MIB
            machine.has(free=10 * MIB)
            assert machine.available() == 0
        assert machine.available() == 10 * MIB

    def test_that_of_this_machine(self) -> None:
        assert 0 < Headroom().available() < UNLIMITED


class TestVersion2:
    @pytest.fixture
    def root(self, machine: Machine) -> Path:
        machine.is_member("0::/system.slice/vuserd.service")
        return machine.mount("cgroup2 rw,nsdelegate", "unified")

    def test_nothing_limits(self, machine: Machine, root: Path) -> None:
        write(root / "system.slice", v2("max", 5 << 30))
        write(root / "system.slice/vuserd.service", v2("max", 1 << 30))
        assert machine.available() == 8 << 30

    @pytest.mark.parametrize("limit", ["maximum", "high"])
    @pytest.mark.parametrize("level", ["system.slice", "system.slice/vuserd.service"])
    def test_each_limit_of_each_level_counts(
        self, machine: Machine, root: Path, level: str, limit: str
    ) -> None:
        for each in ("system.slice", "system.slice/vuserd.service"):
            write(root / each, v2("max", 100 * MIB))
        limits: dict[str, object] = {"maximum": "max", "high": "max"} | {limit: 300 * MIB}
        write(root / level, v2(limits["maximum"], 100 * MIB, limits["high"]))
        assert machine.available() == 200 * MIB

    def test_reclaimable_memory_is_looked_for_beside_what_is_promised(
        self, machine: Machine, root: Path
    ) -> None:
        write(root / "system.slice/vuserd.service", v2(300 * MIB, 200 * MIB, active_file=40 * MIB))
        assert machine.available(100 * MIB) == 100 * MIB
        with machine.headroom.promise(30 * MIB):
            assert machine.available(100 * MIB) == 110 * MIB

    def test_a_limit_that_cannot_be_looked_at_is_not_taken_for_none(
        self, machine: Machine, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(root / "system.slice/vuserd.service", v2(300 * MIB, 100 * MIB))
        opened, shortages = os.open, iter([errno.ENFILE])

        def open_one(*arguments: Any) -> int:
            for number in shortages:
                raise OSError(number, os.strerror(number))
            return opened(*arguments)

        monkeypatch.setattr(os, "open", open_one)
        with pytest.raises(FileError, match="too many open files in system"):
            machine.headroom.require(200 * MIB, "an image")
        assert machine.available() == 200 * MIB

    def test_the_least_one_counts(self, machine: Machine, root: Path) -> None:
        write(root / "system.slice", v2(1 << 30, 900 * MIB))
        write(root / "system.slice/vuserd.service", v2(300 * MIB, 10 * MIB))
        assert machine.available() == 124 * MIB
        machine.has(free=5 * MIB)
        assert machine.available() == 5 * MIB

    def test_clean_pages_of_files_can_be_taken_back(self, machine: Machine, root: Path) -> None:
        statistics = {
            "inactive_file": 80 * MIB,
            "active_file": 30 * MIB,
            "file_dirty": 7 * MIB,
            "file_writeback": 3 * MIB,
            "slab_reclaimable": 8 * MIB,
            "shmem": 150 * MIB,
        }
        write(root / "system.slice/vuserd.service", v2(300 * MIB, 290 * MIB, **statistics))
        assert machine.available() == 114 * MIB

    def test_what_can_be_taken_back_is_no_more_than_is_used(
        self, machine: Machine, root: Path
    ) -> None:
        write(root / "system.slice/vuserd.service", v2(300 * MIB, 10 * MIB, inactive_file=90 * MIB))
        assert machine.available() == 300 * MIB

    def test_dirty_pages_alone_give_nothing_and_take_nothing(
        self, machine: Machine, root: Path
    ) -> None:
        statistics = {"active_file": 5 * MIB, "file_dirty": 9 * MIB}
        write(root / "system.slice/vuserd.service", v2(300 * MIB, 100 * MIB, **statistics))
        assert machine.available() == 200 * MIB

    def test_a_usage_above_the_limit_leaves_nothing(self, machine: Machine, root: Path) -> None:
        write(root / "system.slice/vuserd.service", v2("max", 400 * MIB, high=300 * MIB))
        assert machine.available() == 0

    def test_statistics_are_read_where_it_matters(self, machine: Machine, root: Path) -> None:
        level = root / "system.slice/vuserd.service"
        write(level, v2(300 * MIB, 200 * MIB, inactive_file=50 * MIB))
        assert machine.available(enough=100 * MIB) == 100 * MIB
        assert machine.available(enough=101 * MIB) == 150 * MIB

    def test_levels_whose_parent_does_not_control_memory(
        self, machine: Machine, root: Path
    ) -> None:
        (root / "system.slice/vuserd.service").mkdir(parents=True)
        write(root / "system.slice", v2(300 * MIB, 100 * MIB))
        assert machine.available() == 200 * MIB

    def test_a_usage_that_is_not_told(self, machine: Machine, root: Path) -> None:
        write(root / "system.slice", {"max": 5})
        write(root / "system.slice/vuserd.service", {"max": "odd", "current": 4})
        assert machine.available() == 8 << 30

    def test_a_limit_that_is_changed_counts_at_once(self, machine: Machine, root: Path) -> None:
        level = root / "system.slice/vuserd.service"
        write(level, v2("max", MIB))
        assert machine.available() == 8 << 30
        write(level, {"max": 3 * MIB})
        assert machine.available() == 2 * MIB

    def test_a_process_that_is_moved_has_the_other_limits(
        self, machine: Machine, root: Path
    ) -> None:
        write(root / "system.slice/vuserd.service", v2(300 * MIB, 100 * MIB))
        write(root / "small", v2(30 * MIB, 10 * MIB))
        assert machine.available() == 200 * MIB
        machine.is_member("0::/small")
        assert machine.available() == 20 * MIB
        machine.is_member("0::/small (deleted)")
        assert machine.available() == 8 << 30

    def test_a_mount_that_comes_later_is_found(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine.is_member("0::/")
        assert machine.available() == 8 << 30
        write(machine.mount("cgroup2 rw", "unified"), v2(300 * MIB, 100 * MIB))
        monkeypatch.setattr("vuserd.delivery.headroom._LOOK_AGAIN", 0.0)
        assert machine.available() == 200 * MIB


class TestVersion1:
    @pytest.fixture
    def root(self, machine: Machine) -> Path:
        machine.is_member("5:devices:/other", "4:hugetlb,memory:/lab/rig", "1:name=systemd:/s")
        machine.mount("cgroup rw,devices", "devices")
        return machine.mount("cgroup rw,hugetlb,memory", "memory")

    def test_nothing_limits(self, machine: Machine, root: Path) -> None:
        for level in (root, root / "lab", root / "lab/rig"):
            write(level, v1(NO_LIMIT_V1, 9 << 30, hierarchical_memory_limit=NO_LIMIT_V1))
        assert machine.available() == 8 << 30

    @pytest.mark.parametrize("level", [".", "lab", "lab/rig"])
    def test_each_level_counts_with_its_own_usage(
        self, machine: Machine, root: Path, level: str
    ) -> None:
        write(root, v1(NO_LIMIT_V1, 9 << 30, hierarchical_memory_limit=NO_LIMIT_V1))
        write(root / "lab", v1(NO_LIMIT_V1, 2 << 30, hierarchical_memory_limit=NO_LIMIT_V1))
        write(root / "lab/rig", v1(NO_LIMIT_V1, 1 << 30, hierarchical_memory_limit=300 * MIB))
        write(root / level, v1(300 * MIB, 100 * MIB, hierarchical_memory_limit=300 * MIB))
        assert machine.available() == 200 * MIB

    def test_clean_pages_of_files_can_be_taken_back(self, machine: Machine, root: Path) -> None:
        statistics = {
            "inactive_file": 999 * MIB,
            "total_inactive_file": 80 * MIB,
            "total_active_file": 30 * MIB,
            "total_dirty": 7 * MIB,
            "total_writeback": 3 * MIB,
        }
        stat = "".join(f"{name} {value}\n" for name, value in statistics.items())
        write(root / "lab/rig", v1(300 * MIB, 290 * MIB) | {"stat": stat})
        assert machine.available() == 110 * MIB

    def test_memory_and_swap_together(self, machine: Machine, root: Path) -> None:
        write(root / "lab/rig", v1(300 * MIB, 100 * MIB, swap=(300 * MIB, 250 * MIB)))
        assert machine.available() == 50 * MIB

    def test_a_parent_that_does_not_count_its_children(self, machine: Machine, root: Path) -> None:
        write(root / "lab/rig", v1(NO_LIMIT_V1, 100 * MIB))
        write(root / "lab", v1(300 * MIB, 250 * MIB) | {"use_hierarchy": 0})
        write(root, v1(90 * MIB, 80 * MIB))
        assert machine.available() == 8 << 30

    def test_limits_above_a_containers_own_root(self, machine: Machine, root: Path) -> None:
        machine.is_member("4:memory:/")
        write(root, v1(NO_LIMIT_V1, 100 * MIB, hierarchical_memory_limit=300 * MIB))
        assert machine.available() == 200 * MIB

    def test_it_lacks_the_account_of_swap(self, machine: Machine, root: Path) -> None:
        write(root / "lab/rig", {"limit_in_bytes": 300 * MIB, "usage_in_bytes": 100 * MIB})
        assert machine.available() == 200 * MIB


class TestBothVersions:
    @pytest.mark.parametrize(("first", "second"), [(50, 200), (200, 50)])
    def test_the_least_of_both_counts(self, machine: Machine, first: int, second: int) -> None:
        machine.is_member("4:memory:/a", "0::/b")
        write(machine.mount("cgroup rw,memory", "memory") / "a", v1(300 * MIB, (300 - first) * MIB))
        write(machine.mount("cgroup2 rw", "unified") / "b", v2(300 * MIB, (300 - second) * MIB))
        assert machine.available() == 50 * MIB

    def test_a_unified_hierarchy_without_memory(self, machine: Machine) -> None:
        machine.is_member("4:memory:/", "0::/user.slice")
        write(machine.mount("cgroup rw,memory", "memory"), v1(300 * MIB, 100 * MIB))
        (machine.mount("cgroup2 rw", "unified") / "user.slice").mkdir()
        assert machine.available() == 200 * MIB


class TestMounts:
    """Where a container's own cgroup is, in what it sees of the tree."""

    @pytest.mark.parametrize(
        ("member", "root", "level"),
        [
            ("/", "/", "."),
            ("/a/b", "/", "a/b"),
            ("/docker/1f", "/docker/1f", "."),
            ("/docker/1f/a", "/docker/1f", "a"),
            ("/../x", "/..", "x"),  # the mount was made above the namespace's root
            ("/", "/..", "."),  # an ancestor, and no name of the way to it
            ("/../x", "/../..", "."),
        ],
    )
    def test_a_mount_that_shows_it(
        self, machine: Machine, member: str, root: str, level: str
    ) -> None:
        machine.is_member(f"0::{member}")
        place = machine.mount("cgroup2 rw", "unified", root)
        write(place / level, v2(300 * MIB, 100 * MIB))
        assert machine.available() == 200 * MIB

    @pytest.mark.parametrize(
        ("member", "root"),
        [
            ("/docker/1f", "/docker/2e"),
            ("/docker/1f", "/docker/1"),
            ("/../x", "/"),
            ("/..", "/"),
            ("/../../x", "/.."),
        ],
    )
    def test_a_mount_of_anothers(self, machine: Machine, member: str, root: str) -> None:
        machine.is_member(f"0::{member}")
        write(machine.mount("cgroup2 rw", "unified", root), v2(300 * MIB, 100 * MIB))
        assert machine.available() == 8 << 30

    def test_the_mount_that_shows_most(self, machine: Machine) -> None:
        machine.is_member("0::/a/b")
        machine.mount("cgroup2 rw", "part", "/a/b")
        write(machine.mount("cgroup2 rw", "all") / "a", v2(300 * MIB, 100 * MIB))
        machine.mount("cgroup2 rw", "others", "/c")
        assert machine.available() == 200 * MIB

    def test_a_mount_point_with_a_blank(self, machine: Machine) -> None:
        machine.is_member("0::/a:b")
        write(machine.mount("cgroup2 rw", "the groups") / "a:b", v2(300 * MIB, 100 * MIB))
        assert machine.available() == 200 * MIB

    def test_lines_that_are_not_understood(self, machine: Machine) -> None:
        (machine.proc / "self/mountinfo").write_text("31\n\n1 2 3 4 5 - \n1 2 - cgroup2 a b\n")
        machine.is_member("0::/", "odd", "")
        assert machine.available() == 8 << 30


class TestRequire:
    def test_enough_and_too_little(self, machine: Machine) -> None:
        machine.has(free=RESERVE + 4 * MIB)
        machine.headroom.require(4 * MIB, "an image")
        with pytest.raises(FileError, match=f"{4 * MIB + 1} bytes of an image do not") as refused:
            machine.headroom.require(4 * MIB + 1, "an image")
        assert refused.value.number == errno.ENOMEM

    def test_what_is_kept_gives_way(self, machine: Machine) -> None:
        asked: list[int] = []

        def give_back(size: int) -> None:
            asked.append(size)
            machine.has(free=RESERVE + 10 * MIB)

        machine.has(free=RESERVE + 4 * MIB)
        machine.headroom.give_back = give_back
        machine.headroom.require(4 * MIB, "an image")
        machine.headroom.require(10 * MIB, "an image")
        with pytest.raises(FileError):
            machine.headroom.require(11 * MIB, "an image")
        assert asked == [6 * MIB, MIB]


class TestGivingBack:
    @pytest.mark.parametrize(
        ("free", "total", "back"),
        [(256, 16384, 0), (255, 16384, 1), (0, 16384, 256), (64, 512, 0), (60, 512, 4)],
    )
    def test_the_machine_keeps_some_free(
        self, machine: Machine, free: int, total: int, back: int
    ) -> None:
        machine.has(free * MIB, total * MIB)
        assert machine.headroom.bytes_to_give_back() == back * MIB

    def test_so_does_each_limit(self, machine: Machine) -> None:
        machine.is_member("0::/a/b")
        root = machine.mount("cgroup2 rw", "unified")
        write(root / "a/b", v2(400 * MIB, 380 * MIB, inactive_file=25 * MIB))
        assert machine.headroom.bytes_to_give_back() == 5 * MIB
        write(root / "a", v2(4 << 30, (4 << 30) - 56 * MIB))
        assert machine.headroom.bytes_to_give_back() == 200 * MIB


def test_the_total_is_the_least_limit(machine: Machine) -> None:
    machine.has(free=1 << 30, total=4 << 30)
    assert machine.headroom.total() == 4 << 30
    cgroups = machine.mount("cgroup2", "unified")
    write(cgroups, v2(2 << 30, 0))
    machine.is_member("0::/")
    assert machine.headroom.total() == 4 << 30  # for some seconds
    assert Headroom(str(machine.proc)).total() == 2 << 30
