"""``finback doctor``: what this machine has, what will limit it, and what to do about that, in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finback.cli import options

if TYPE_CHECKING:
    from finback.config import Settings
    from finback.hardware import Disk, Kernels, Memory, Processor

_FREE_DISK_BYTES = 5e9
_SLOW_DISK_BYTES_PER_S = 300e6
_EXAMPLES = (
    "smollm2:135m-q4_1",
    "r1-distill-qwen:7b-q4_k_m",
    "deepseek-v2-lite-chat:16b-q4_k_m",
    "deepseek-r1:671b-q4_k_m",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that limits this machine, and the way out."""

    what: str
    do: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """A model on this machine. ``tokens_per_s`` is an estimate and an upper bound: bandwidth over bytes per token."""

    name: str
    fits: bool
    needs_bytes: int
    tokens_per_s: float | None


@click.command()
@click.option("--quick", is_flag=True, help="Measure nothing; only look.")
@options.json
def doctor(quick: bool, json: bool) -> None:
    """Examine this machine: what it has and what limits it."""
    from finback import hardware
    from finback.cli.output import print_json

    settings = options.settings_of()
    cpu, memory, kernels = hardware.processor(), hardware.memory(), hardware.kernels()
    bandwidth = None if quick else hardware.read_bandwidth()
    disk = hardware.disk(settings.home, sample=_largest_model(settings), measure=not quick)
    outlook = [_outlook(name, memory, bandwidth) for name in _names(settings)]
    findings = list(_findings(cpu, kernels, memory, disk))
    if json:
        print_json(_record(cpu, kernels, memory, bandwidth, disk, outlook, findings))
    else:
        _print(cpu, kernels, memory, bandwidth, disk, outlook, findings)


def _largest_model(settings: Settings) -> Path | None:
    """A big file on the disk in question, to measure on."""
    from finback.hub.store import Store

    files = [
        Store(settings.home).files_folder(model.name) / file.path
        for model in Store(settings.home).models()
        for file in model.files
        if not model.linked
    ]
    present = [path for path in files if path.is_file()]
    return max(present, key=lambda path: path.stat().st_size, default=None)


def _names(settings: Settings) -> list[str]:
    """A small, a middle, a larger and the largest model: the range that a user may think of."""
    from finback.hub import catalog

    return [name for name in _EXAMPLES if catalog.find(name)]


def _outlook(name: str, memory: Memory, bandwidth: float | None) -> Outlook:
    from finback.hub import catalog

    entry = catalog.find(name)
    assert entry is not None  # listed by _names
    weights = entry.source.member_size_bytes if isinstance(entry.source, catalog.Wheel) else entry.size_bytes
    read_per_token = weights * entry.active_parameters / entry.parameters
    fits = weights * 1.05 < memory.total_bytes
    speed = bandwidth / read_per_token if bandwidth is not None and fits else None
    return Outlook(name, fits, weights, speed)


def _findings(cpu: Processor, kernels: Kernels, memory: Memory, disk: Disk) -> Iterable[Finding]:
    """What is out of the ordinary, the most important first."""
    from finback import hardware
    from finback.cli.output import size_text

    best = kernels.available[-1] if kernels.available else kernels.isa
    if kernels.isa == "scalar":
        yield Finding("kernels run without vector instructions", "use a processor with AVX2, or unset FINBACK_ISA")
    elif kernels.isa != best:
        yield Finding(f"kernels run on {kernels.isa}, and {best} is available", "unset FINBACK_ISA")
    if cpu.cores < cpu.cores_online:
        yield Finding(
            f"this process may use {cpu.cores} of {cpu.cores_online} cores",
            "raise the container's CPU limit or the affinity mask, if they are yours to set",
        )
    if hardware.busy_cores() > 0.5 * cpu.cores_online:
        yield Finding(
            f"other programs keep {hardware.busy_cores():.1f} cores busy, so speeds measured now are too low",
            "run `finback doctor` again when the machine is idle",
        )
    if memory.limited:
        yield Finding(
            f"a control group limits memory to {size_text(memory.total_bytes)}", "raise the container's limit"
        )
    if memory.available_bytes < 0.25 * memory.total_bytes:
        yield Finding(
            f"only {size_text(memory.available_bytes)} of {size_text(memory.total_bytes)} memory is free",
            "close other programs: a model that does not stay in memory is read from disk for every token",
        )
    if disk.free_bytes < _FREE_DISK_BYTES:
        yield Finding(
            f"{disk.path} has {size_text(disk.free_bytes)} free", "free space, or set FINBACK_HOME to a larger disk"
        )
    if disk.filesystem in ("nfs", "nfs4", "cifs", "fuse.sshfs", "9p"):
        yield Finding(f"models lie on a network filesystem ({disk.filesystem})", "set FINBACK_HOME to a local disk")
    if disk.read_bytes_per_s is not None and disk.read_bytes_per_s < _SLOW_DISK_BYTES_PER_S:
        yield Finding(
            f"the disk reads {size_text(disk.read_bytes_per_s)}/s, so first starts are slow",
            "set FINBACK_HOME to an SSD",
        )


def _record(
    cpu: Processor,
    kernels: Kernels,
    memory: Memory,
    bandwidth: float | None,
    disk: Disk,
    outlook: list[Outlook],
    findings: list[Finding],
) -> dict[str, Any]:
    return {
        "processor": asdict(cpu),
        "isa": kernels.isa,
        "isas_available": list(kernels.available),
        "memory": asdict(memory),
        "read_bandwidth_bytes_per_s": bandwidth,
        "disk": asdict(disk) | {"path": str(disk.path)},
        "outlook": [asdict(model) for model in outlook],
        "findings": [asdict(finding) for finding in findings],
        "bottleneck": _bottleneck(bandwidth, disk),
    }


def _print(
    cpu: Processor,
    kernels: Kernels,
    memory: Memory,
    bandwidth: float | None,
    disk: Disk,
    outlook: list[Outlook],
    findings: list[Finding],
) -> None:
    from finback.cli.output import print_facts, size_text

    limited = " (limited by a control group)" if memory.limited else ""
    print_facts(
        [
            ("processor", f"{cpu.model} ({cpu.architecture}), {cpu.cores} of {cpu.cores_online} cores"),
            ("caches", _caches_text(cpu)),
            ("instructions", f"{kernels.isa} chosen; available: {', '.join(kernels.available)}"),
            ("memory", f"{size_text(memory.total_bytes)}, {size_text(memory.available_bytes)} free{limited}"),
            ("bandwidth", f"{size_text(bandwidth)}/s, measured over all cores" if bandwidth else "not measured"),
            ("disk", _disk_text(disk)),
            ("bottleneck", _bottleneck(bandwidth, disk)),
            ("models", "\n".join(_outlook_text(model) for model in outlook)),
            ("to do", "\n".join(f"{finding.what}: {finding.do}" for finding in findings) or "nothing: all is well"),
        ]
    )


def _caches_text(cpu: Processor) -> str:
    from finback.cli.output import size_text

    return ", ".join(
        f"L{c.level}{'' if c.kind == 'unified' else ' ' + c.kind} {c.count} x {c.size_bytes / 1024:.0f} KiB"
        if c.size_bytes < 1 << 20
        else f"L{c.level} {c.count} x {c.size_bytes / (1 << 20):.0f} MiB"
        for c in cpu.caches
    ) or size_text(0)


def _disk_text(disk: Disk) -> str:
    from finback.cli.output import size_text

    speed = "speed not measured"
    if disk.read_bytes_per_s is not None:
        how = "past the page cache" if disk.method == "direct" else "after dropping the page cache"
        speed = f"reads {size_text(disk.read_bytes_per_s)}/s, measured {how}"
    return f"{disk.path} ({disk.filesystem or 'unknown'}): {size_text(disk.free_bytes)} free; {speed}"


def _bottleneck(bandwidth: float | None, disk: Disk) -> str:
    """What decides the speed, in a sentence or two."""
    from finback.cli.output import size_text

    text = "An answer's speed is limited by how fast memory can be read: each token reads all active weights once. "
    if bandwidth:
        text += f"At {size_text(bandwidth)}/s, 1 GB of active weights allows at most {bandwidth / 1e9:.0f} tokens/s. "
    text += "Reading the prompt is limited by the cores."
    if disk.read_bytes_per_s is not None:
        text += f" A model that does not fit in memory is limited by the disk's {size_text(disk.read_bytes_per_s)}/s."
    return text


def _outlook_text(model: Outlook) -> str:
    from finback.cli.output import rate_text, size_text

    if not model.fits:
        return f"{model.name}: does not fit, needs about {size_text(model.needs_bytes)} of memory"
    speed = f", at most {rate_text(model.tokens_per_s)} tokens/s (estimated)" if model.tokens_per_s else ""
    return f"{model.name}: fits ({size_text(model.needs_bytes)}){speed}"
