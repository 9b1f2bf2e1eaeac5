"""``octavo bench throughput`` and ``latency`` through the real engine, on a checkpoint made here."""

import json
from pathlib import Path

import pytest
from tiny_checkpoint import write_tiny_llama

from octavo.bench import limits
from octavo.bench.yardstick import yardstick
from octavo.cli.main import main

FLAGS = ["--device", "cpu", "--dtype", "float32", "--threads", "1", "--kv-cache-memory-bytes", "1M", "--max-num-seqs", "4"]
FLAGS += ["--max-num-batched-tokens", "64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_BUFFER_BYTES", 2**22)
    monkeypatch.setattr(limits, "MATRIX_SIZES", (64,))


@pytest.mark.parametrize("name", ["throughput", "latency"])
def test_a_run_ends_with_its_share_of_the_limit(name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    amount = ["--num-prompts", "6"] if name == "throughput" else ["--batch-size", "2", "--num-iters", "2", "--num-iters-warmup", "1"]
    argv = ["bench", name, "--model", model, "--input-len", "8", "--output-len", "4", "--output-json", str(path)]
    assert main([*argv, *amount, *FLAGS]) == 0
    result = json.loads(path.read_text())
    assert result["limit"]["dtype"] == "float32" and result["limit"]["threads"] == 1
    assert result["limit"]["share"] > 0.0
    assert "Share of the limit (%):" in capsys.readouterr().out


def test_a_prompt_past_the_context_is_one_clear_error(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "throughput", "--model", model, "--input-len", "300", "--output-len", "4", "--num-prompts", "1", *FLAGS]) == 1
    assert "maximum context length is 256" in capsys.readouterr().err


def test_the_yardstick_knows_what_the_plan_knows(model: str) -> None:
    known = yardstick({"model": model, "device": "cpu", "dtype": "float32", "kv_cache_dtype": "bfloat16", "threads": 1})
    assert (known.dtype, known.kv_dtype, known.config.vocab_size) == ("float32", "bfloat16", 64)
    assert known.limits is not None and known.limits.threads == 1
    least = known.least([(8, 4)] * 2)
    assert least is not None and least > 0.0
