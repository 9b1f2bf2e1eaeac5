"""Which device is chosen, and what is said where the one asked for is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from octavo.cli.main import USAGE, main
from octavo.config import DeviceOptions
from octavo.errors import ConfigError
from octavo.runner.device import select_device

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


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_for_a_gpu_that_is_not_there_is_a_mistake_in_the_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", "--device", "cuda", str(tmp_path)]) == USAGE
    written = capsys.readouterr()
    assert written.err == f"octavo: error: {SAID}\n"
    assert written.out == ""
