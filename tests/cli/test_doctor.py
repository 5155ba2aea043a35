"""What doctor says about machines of several kinds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from finback import hardware
from finback.hardware import Cache, Disk, Kernels, Memory, Processor
from tests.cli.conftest import Cli

CPU = Processor("Some Processor", "x86_64", 8, 8, (Cache(1, "data", 32 << 10, 8), Cache(3, "unified", 32 << 20, 1)))
MEMORY = Memory(64 << 30, 50 << 30, limited=False)
DISK = Disk(Path("/home/x"), "ext4", 10**12, 5 * 10**11, 2e9, "direct")


class Machine:
    """Stands in for the probe; tests change its parts."""

    def __init__(self) -> None:
        self.cpu, self.memory, self.disk = CPU, MEMORY, DISK
        self.kernels = Kernels("avx2", ("scalar", "avx2"))
        self.busy = 0.0
        self.measured: list[str] = []

    def read_bandwidth(self) -> float:
        self.measured.append("memory")
        return 40e9

    def probe_disk(self, folder: Path, *, sample: Path | None, measure: bool) -> Disk:
        if measure:
            self.measured.append("disk")
            return self.disk
        return replace(self.disk, read_bytes_per_s=None, method=None)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    stand_in = Machine()
    monkeypatch.setattr(hardware, "processor", lambda: stand_in.cpu)
    monkeypatch.setattr(hardware, "memory", lambda: stand_in.memory)
    monkeypatch.setattr(hardware, "kernels", lambda: stand_in.kernels)
    monkeypatch.setattr(hardware, "busy_cores", lambda: stand_in.busy)
    monkeypatch.setattr(hardware, "read_bandwidth", stand_in.read_bandwidth)
    monkeypatch.setattr(hardware, "disk", stand_in.probe_disk)
    return stand_in


def test_a_sound_machine(cli: Cli, machine: Machine) -> None:
    text = cli("doctor", status=0).out
    for part in ("Some Processor", "avx2 chosen", "40 GB/s", "50", "2 GB/s", "nothing: all is well"):
        assert part in text
    assert "estimated" in text
    assert "does not fit, needs about 404 GB" in text


def test_the_same_as_json(cli: Cli, machine: Machine) -> None:
    record = cli("doctor", "--json", status=0).json
    assert record["isa"] == "avx2"
    assert record["isas_available"] == ["scalar", "avx2"]
    assert record["processor"]["model"] == "Some Processor"
    assert record["memory"]["total_bytes"] == 64 << 30
    assert record["read_bandwidth_bytes_per_s"] == 40e9
    assert record["disk"]["read_bytes_per_s"] == 2e9
    assert record["findings"] == []
    outlook = {model["name"]: model for model in record["outlook"]}
    assert outlook["smollm2:135m-q4_1"]["fits"]
    assert outlook["smollm2:135m-q4_1"]["tokens_per_s"] == pytest.approx(40e9 / 98_362_432)
    assert not outlook["deepseek-r1:671b-q4_k_m"]["fits"]


def test_quick_measures_nothing(cli: Cli, machine: Machine) -> None:
    text = cli("doctor", "--quick", status=0).out
    assert machine.measured == []
    assert "not measured" in text
    assert cli("doctor", "--quick", "--json", status=0).json["read_bandwidth_bytes_per_s"] is None


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("kernels", Kernels("scalar", ("scalar", "avx2")), "without vector instructions"),
        ("kernels", Kernels("avx2", ("scalar", "avx2", "avx512")), "avx512 is available"),
        ("cpu", replace(CPU, cores=2), "2 of 8 cores"),
        ("memory", replace(MEMORY, limited=True, total_bytes=8 << 30), "control group limits memory to 8.59 GB"),
        ("memory", replace(MEMORY, available_bytes=1 << 30), "only 1.07 GB"),
        ("disk", replace(DISK, free_bytes=10**9), "1 GB free"),
        ("disk", replace(DISK, filesystem="nfs4"), "network filesystem"),
        ("disk", replace(DISK, read_bytes_per_s=100e6), "reads 100 MB/s"),
        ("busy", 7.5, "7.5 cores busy"),
    ],
)
def test_what_is_out_of_the_ordinary_is_said_with_a_way_out(
    cli: Cli, machine: Machine, part: str, value: object, said: str
) -> None:
    setattr(machine, part, value)
    findings = cli("doctor", "--json", status=0).json["findings"]
    assert len([finding for finding in findings if said in finding["what"]]) == 1
    assert all(finding["do"] for finding in findings)
    assert said in cli("doctor", status=0).out


def test_this_machine(cli: Cli) -> None:
    record = cli("doctor", "--json", status=0).json
    assert record["isa"] in record["isas_available"]
    assert record["read_bandwidth_bytes_per_s"] > 1e8
    assert record["memory"]["available_bytes"] > 0
