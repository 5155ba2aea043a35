"""What this machine is and what it can do: processor, memory, disk. Facts are read, speeds are measured, nothing is
guessed.

A container may own less than the machine shows, so cores and memory respect affinity and control groups. A speed that
could not be measured is None, never a figure from a table.
"""

from __future__ import annotations

import mmap
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

_DISK_BLOCK_BYTES = 4 << 20
_DISK_READERS = 4
_SCRATCH_BYTES = 128 << 20
_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs"})
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Cache:
    """One level of cache. ``count`` copies of ``size_bytes`` each serve the cores of this machine."""

    level: int
    kind: str
    size_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Processor:
    """``cores`` is what this process may use; ``cores_online`` what the machine has."""

    model: str
    architecture: str
    cores: int
    cores_online: int
    caches: tuple[Cache, ...]

    @property
    def last_level_cache_bytes(self) -> int:
        """All copies of the largest level together; 0 if unknown."""
        level = max((cache.level for cache in self.caches), default=0)
        return sum(cache.size_bytes * cache.count for cache in self.caches if cache.level == level)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The instruction set that the kernels run on, and those that they could."""

    isa: str
    available: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What this process may have; ``limited`` by a control group below the machine's own."""

    total_bytes: int
    available_bytes: int
    limited: bool


@dataclass(frozen=True, slots=True)
class Disk:
    """Where models are kept. ``method`` tells how the speed was measured; None for both if it was not."""

    path: Path
    filesystem: str
    total_bytes: int
    free_bytes: int
    read_bytes_per_s: float | None
    method: str | None


def processor(root: Path = Path("/")) -> Processor:
    """The processor, and how much of it this process may use."""
    online = os.cpu_count() or 1
    return Processor(_model(root), platform.machine(), usable_cores(root), online, _caches(root))


def usable_cores(root: Path = Path("/")) -> int:
    """Cores by affinity and control-group quota, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(root)
    return max(1, min(allowed, round(quota) if quota is not None else allowed))


def busy_cores() -> float:
    """Cores' worth of work that ran here in the last minute, of whatever programs; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def kernels() -> Kernels:
    """What the kernels chose for this processor."""
    from finback import kernels as native

    return Kernels(native.isa(), tuple(native.available_isas()))


def memory(root: Path = Path("/")) -> Memory:
    """Memory that this process may have and that is free now."""
    machine_total, available = _machine_memory(root)
    total, limited = machine_total, False
    for folder in _cgroups(root, "memory"):
        limit = _first_number(folder, "memory.max", "memory.limit_in_bytes")
        used = _first_number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is None or used is None or limit >= machine_total:
            continue
        limited = True
        total = min(total, limit)
        available = min(available, max(0, limit - used + _reclaimable(folder)))
    return Memory(total, available, limited)


def read_bandwidth(seconds: float = 0.5) -> float:
    """Bytes per second that all cores together read from memory now, far outside the caches: the median pass."""
    from finback import kernels as native

    wanted = max(256 << 20, 4 * processor().last_level_cache_bytes)
    size = min(wanted, max(64 << 20, memory().available_bytes // 4))
    return float(native.read_bandwidth(size, seconds))


def disk(folder: Path, *, sample: Path | None = None, seconds: float = 1.0, measure: bool = True) -> Disk:
    """The disk of ``folder``; its speed measured on ``sample``, a large file there, or on a scratch file."""
    place = folder
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    filesystem = _filesystem(place)
    speed: tuple[float, str] | None = None
    if measure and filesystem not in _MEMORY_FILESYSTEMS:
        with suppress(OSError), _sample_file(place, sample) as path:
            speed = _read_speed(path, seconds)
    rate, method = speed or (None, None)
    return Disk(place, filesystem, usage.total, usage.free, rate, method)


def _model(root: Path) -> str:
    text = _text(root / "proc/cpuinfo")
    for key in ("model name", "Model", "Hardware", "cpu model"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _caches(root: Path) -> tuple[Cache, ...]:
    """Every distinct cache of every core, counted: cores that share one list it under the same set of cores."""
    found: dict[tuple[int, str, int], set[str]] = {}
    for index in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size = _text(index / "level").strip(), _size(_text(index / "size"))
        if level.isdecimal() and size:
            key = (int(level), _text(index / "type").strip().lower(), size)
            found.setdefault(key, set()).add(_text(index / "shared_cpu_list").strip())
    return tuple(Cache(*key, len(sharers)) for key, sharers in sorted(found.items()))


def _size(text: str) -> int:
    matched = re.fullmatch(r"(\d+)([KMG]?)\s*", text)
    return int(matched[1]) * _UNITS[matched[2]] if matched else 0


def _cpu_quota(root: Path) -> float | None:
    """Cores' worth of time that the tightest control group allows."""
    quotas = []
    for folder in _cgroups(root, "cpu"):
        words = _text(folder / "cpu.max").split() or [
            _text(folder / "cpu.cfs_quota_us").strip(),
            _text(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _machine_memory(root: Path) -> tuple[int, int]:
    """Bytes that the whole machine has, and that are free or can be freed."""
    pattern = r"^(MemTotal|MemAvailable):\s*(\d+) kB$"
    found = dict(re.findall(pattern, _text(root / "proc/meminfo"), re.MULTILINE))
    if len(found) == 2:
        return int(found["MemTotal"]) << 10, int(found["MemAvailable"]) << 10
    import psutil  # for systems that tell it elsewhere

    machine = psutil.virtual_memory()
    return int(machine.total), int(machine.available)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders that limit this process, from its own control group up to the root; both versions."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or (parts[1] and controller not in parts[1].split(",")):
            continue
        base = root / "sys/fs/cgroup" / parts[1]
        group = Path(parts[2].lstrip("/"))
        for inner in (group, *group.parents):
            if ".." not in inner.parts and (base / inner).is_dir():
                yield base / inner


def _first_number(folder: Path, *names: str) -> int | None:
    for name in names:
        text = _text(folder / name).strip()
        if text.isdecimal():
            return int(text)
    return None


def _reclaimable(folder: Path) -> int:
    """File cache that the group would give back: it counts as used, but it is available."""
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return int(found[1]) if found else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _filesystem(place: Path) -> str:
    """The type of the filesystem that holds ``place``; "" where the system does not say."""
    best, kind = -1, ""
    resolved = place.resolve()
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        fields, _, rest = line.partition(" - ")
        mount = Path(fields.split()[4])
        if resolved.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), rest.split()[0]
    return kind


@contextmanager
def _sample_file(folder: Path, sample: Path | None) -> Iterator[Path]:
    if sample and sample.is_file() and sample.stat().st_size >= 2 * _DISK_BLOCK_BYTES * _DISK_READERS:
        yield sample
        return
    with NamedTemporaryFile(dir=folder, prefix=".disk-speed-") as file:
        block = os.urandom(_DISK_BLOCK_BYTES)  # not zeros: some storage keeps those for free
        for _ in range(_SCRATCH_BYTES // _DISK_BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _read_speed(path: Path, seconds: float) -> tuple[float, str]:
    """(bytes per second, how): past the page cache where the system allows, else after dropping the file."""
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        with suppress(OSError):
            return _timed_reads(path, os.O_RDONLY | direct, seconds), "direct"
    if not hasattr(os, "posix_fadvise"):
        raise OSError("this system can neither bypass nor drop its page cache")
    return _timed_reads(path, os.O_RDONLY, seconds), "cache dropped"


def _timed_reads(path: Path, flags: int, seconds: float) -> float:
    """Several readers, each on its own blocks, until time is over or the file is read (once, if cacheable)."""
    descriptor = os.open(path, flags)
    try:
        if flags == os.O_RDONLY:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        reading = _Reading(descriptor, os.fstat(descriptor).st_size, seconds, again=flags != os.O_RDONLY)
        return reading.run()
    finally:
        os.close(descriptor)


class _Reading:
    """The shared course of several readers of one file."""

    def __init__(self, descriptor: int, size_bytes: int, seconds: float, *, again: bool) -> None:
        self._descriptor = descriptor
        self._blocks = size_bytes // _DISK_BLOCK_BYTES
        self._deadline = time.perf_counter() + seconds
        self._again = again
        self._next = 0
        self._read_bytes = 0
        self._lock = threading.Lock()
        self._fault: OSError | None = None

    def run(self) -> float:
        started = time.perf_counter()
        readers = [threading.Thread(target=self._read) for _ in range(_DISK_READERS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        if self._fault:
            raise self._fault
        return self._read_bytes / (time.perf_counter() - started)

    def _read(self) -> None:
        try:
            with mmap.mmap(-1, _DISK_BLOCK_BYTES) as buffer:  # page-aligned, as direct reads want it
                while (block := self._take()) is not None:
                    count = os.preadv(self._descriptor, [buffer], block * _DISK_BLOCK_BYTES)
                    with self._lock:
                        self._read_bytes += count
        except OSError as fault:
            self._fault = fault

    def _take(self) -> int | None:
        with self._lock:
            block = self._next
            self._next += 1
        if time.perf_counter() > self._deadline or (block >= self._blocks and not self._again):
            return None
        return block % self._blocks
