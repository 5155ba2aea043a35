"""The probe of the machine: what it reads from the system's files, and that its measurements measure."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest

from finback import hardware

CPUINFO = """processor\t: 0
vendor_id\t: X
model name\t: Some Processor 9000
processor\t: 1
model name\t: Some Processor 9000
"""


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight cores and 64 GB, in files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    machine = namedtuple("machine", "total available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: machine(64 << 30, 40 << 30))
    write(tmp_path, **{"proc/cpuinfo": CPUINFO, "proc/self/cgroup": "0::/user/app\n"})
    write(tmp_path, **{"sys/fs/cgroup/user/app/cgroup.type": "domain"})
    return tmp_path


def test_the_processor(root: Path) -> None:
    found = hardware.processor(root)
    assert found.model == "Some Processor 9000"
    assert (found.cores, found.cores_online) == (8, 16)
    assert found.caches == ()
    assert found.last_level_cache_bytes == 0


def test_caches_are_counted_once_per_set_of_cores(root: Path) -> None:
    for core in range(4):
        shared = "0-1" if core < 2 else "2-3"
        levels = [("1", "Data", "32K", str(core)), ("3", "Unified", "16M", shared)]
        for index, (level, kind, size, cores) in enumerate(levels):
            base = f"sys/devices/system/cpu/cpu{core}/cache/index{index}"
            facts = {"level": level, "type": kind, "size": size, "shared_cpu_list": cores}
            write(root, **{f"{base}/{name}": text + "\n" for name, text in facts.items()})
    found = hardware.processor(root)
    assert found.caches == (hardware.Cache(1, "data", 32 << 10, 4), hardware.Cache(3, "unified", 16 << 20, 2))
    assert found.last_level_cache_bytes == 32 << 20


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("50000 100000", 1),
        ("150000 100000", 2),
        ("9900000 100000", 8),
        ("x", 8),
    ],
)
def test_a_quota_limits_the_cores(root: Path, text: str, cores: int) -> None:
    write(root, **{"sys/fs/cgroup/user/app/cpu.max": text})
    assert hardware.usable_cores(root) == cores


def test_a_quota_of_a_parent_group_counts(root: Path) -> None:
    write(root, **{"sys/fs/cgroup/user/cpu.max": "300000 100000", "sys/fs/cgroup/user/app/cpu.max": "max 100000"})
    assert hardware.usable_cores(root) == 3


def test_version_one_groups(root: Path) -> None:
    write(
        root,
        **{
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "200000",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(8 << 30),
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 << 30),
            "sys/fs/cgroup/memory/box/memory.stat": f"cache 5\ntotal_inactive_file {1 << 30}\n",
        },
    )
    assert hardware.usable_cores(root) == 2
    assert hardware.memory(root) == hardware.Memory(8 << 30, 6 << 30, limited=True)


def test_memory_of_the_machine(root: Path) -> None:
    assert hardware.memory(root) == hardware.Memory(64 << 30, 40 << 30, limited=False)


def test_memory_of_a_control_group(root: Path) -> None:
    group = "sys/fs/cgroup/user/app/memory"
    write(root, **{f"{group}.max": str(16 << 30), f"{group}.current": str(10 << 30), f"{group}.stat": "anon 1\n"})
    assert hardware.memory(root) == hardware.Memory(16 << 30, 6 << 30, limited=True)
    write(root, **{f"{group}.max": "max"})
    assert not hardware.memory(root).limited


def test_a_group_path_that_climbs_is_ignored(root: Path) -> None:
    write(root, **{"proc/self/cgroup": "0::/../../evil\n", "evil/cpu.max": "100000 100000"})
    assert hardware.usable_cores(root) == 8


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert hardware.processor(tmp_path).cores >= 1
    assert hardware.memory(tmp_path).available_bytes > 0


def test_this_machine() -> None:
    found = hardware.processor()
    assert found.model
    assert 1 <= found.cores <= found.cores_online
    assert 0 < hardware.memory().available_bytes <= hardware.memory().total_bytes


def test_the_disk_is_measured_on_a_sample(tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    sample.write_bytes(os.urandom(36 << 20))
    found = hardware.disk(tmp_path, sample=sample, seconds=0.1)
    assert found.free_bytes > 0
    if found.filesystem in ("tmpfs", "ramfs"):
        assert found.read_bytes_per_s is None
    else:
        assert found.method in ("direct", "cache dropped")
        assert found.read_bytes_per_s is not None
        assert 1e6 < found.read_bytes_per_s < 1e12


def test_the_disk_is_measured_on_a_scratch_file_that_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_SCRATCH_BYTES", 8 << 20)
    monkeypatch.setattr(hardware, "_filesystem", lambda place: "some")
    found = hardware.disk(tmp_path / "not" / "yet", seconds=0.05)
    assert found.path == tmp_path
    assert found.method
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hardware._timed_reads

    def no_direct(path: Path, flags: int, seconds: float) -> float:
        if flags != os.O_RDONLY:
            raise OSError(22, "Invalid argument")
        return real(path, flags, seconds)

    monkeypatch.setattr(hardware, "_timed_reads", no_direct)
    sample = tmp_path / "sample"
    sample.write_bytes(os.urandom(8 << 20))
    rate, method = hardware._read_speed(sample, 0.05)
    assert rate > 0
    assert method == "cache dropped"


def test_no_figure_where_nothing_could_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, seconds: float) -> tuple[float, str]:
        raise OSError("no")

    monkeypatch.setattr(hardware, "_read_speed", fail)
    assert hardware.disk(tmp_path, measure=False).read_bytes_per_s is None
    found = hardware.disk(tmp_path, seconds=0.01)
    assert (found.read_bytes_per_s, found.method) == (None, None)


def test_memory_filesystems_are_not_called_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_filesystem", lambda place: "tmpfs")
    assert hardware.disk(tmp_path).method is None
