"""Which device is chosen, and what is said where the one asked for is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from octavo.cli.main import USAGE, main
from octavo.config import DeviceOptions
from octavo.errors import ConfigError
from octavo.runner import device
from octavo.runner.device import CudaDevice, available_ram, select_device, usable_cores

SAID = "--device cuda: torch sees no usable GPU on this machine; use --device cpu."


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose torch sees none, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert select_device(DeviceOptions(device="auto")).kind == "cpu"
    assert select_device(DeviceOptions(device="cpu")).kind == "cpu"
    with pytest.raises(ConfigError) as refusal:
        select_device(DeviceOptions(device="cuda"))
    assert str(refusal.value) == SAID


def test_each_rank_of_each_engine_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert select_device(DeviceOptions(device="cuda"), 2, 3).kind == "cuda"
    assert select_device(DeviceOptions(device="cuda"), None, 3).kind == "cuda"
    assert chosen == [2], "who computes nothing takes none"
    with pytest.raises(ConfigError, match=r"4 GPUs are needed on this host, .*; torch sees 3\."):
        select_device(DeviceOptions(device="cuda"), None, 4)


def test_a_gpu_that_is_too_old_is_refused_or_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number=0: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Tesla T4")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert select_device(DeviceOptions(device="auto")).kind == "cpu"
    with pytest.raises(ConfigError, match=r"Tesla T4 has compute capability 7\.5, and the kernels need 8\.0 \(Ampere\) or later"):
        select_device(DeviceOptions(device="cuda"))
    assert not CudaDevice().has_float8()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number=0: (8, 9))
    assert select_device(DeviceOptions(device="auto")).kind == "cuda" and CudaDevice().has_float8()


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_for_a_gpu_that_is_not_there_is_a_mistake_in_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", "--device", "cuda", str(tmp_path)]) == USAGE
    written = capsys.readouterr()
    assert written.err == f"octavo: error: {SAID}\n"
    assert written.out == ""


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's files."""
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    monkeypatch.setattr(device, "_meminfo_available", lambda: 64 * 2**30)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    return tmp_path


def test_a_containers_limit_bounds_what_is_free_and_files_that_it_has_read_give_way(group: Path) -> None:
    assert available_ram() == 64 * 2**30
    (group / "memory.max").write_text("8589934592\n")
    (group / "memory.current").write_text("6442450944\n")
    assert available_ram() == 2 * 2**30
    (group / "memory.stat").write_text("anon 1073741824\nfile 5368709120\nactive_file 1073741824\ninactive_file 4294967296\n")
    assert available_ram() == 7 * 2**30
    (group / "memory.max").write_text("max\n")
    assert available_ram() == 64 * 2**30


@pytest.mark.parametrize(("limit", "cores"), [("max 100000", 16), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_containers_limit_of_processor_time_bounds_the_threads(group: Path, limit: str, cores: int) -> None:
    assert usable_cores() == 16
    (group / "cpu.max").write_text(f"{limit}\n")
    assert usable_cores() == cores
