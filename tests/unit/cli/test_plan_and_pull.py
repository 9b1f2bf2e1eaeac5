"""``octavo plan`` and ``octavo pull`` on a directory that holds a config and no weights, and ``plan --quality`` on one that has some."""

import json
import os
from pathlib import Path

import pytest
from tiny_checkpoint import write_tiny_llama

from octavo.cli import plan, pull
from octavo.errors import ConfigError, MemoryPlanError, ModelLoadError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}
FLAGS = ["--device", "cpu", "--kv-cache-memory-bytes", "1M", "--max-num-batched-tokens", "64", "--max-num-seqs", "4"]


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return str(directory)


def test_the_bill_is_a_table(model, capsys):
    assert plan.run([model, *FLAGS]) == 0
    out = capsys.readouterr().out
    for part in ("weights", "KV pool", "activations", "total", "free now", "512 tokens", "1.0 MiB"):
        assert part in out


def test_the_bill_is_json_where_asked(model, capsys):
    assert plan.run(["--model", model, "--json", *FLAGS]) == 0
    bill = json.loads(capsys.readouterr().out)
    assert bill["model"] == model and bill["dtype"] == "float32" and bill["max_model_len"] == 512
    assert bill["kv_pool"] == bill["num_blocks"] * bill["block_bytes"] <= 2**20
    assert bill["total"] == bill["weights"] + bill["kv_pool"] + bill["activations"] + bill["runtime"]


def test_a_bill_that_does_not_fit_is_refused(model):
    with pytest.raises(MemoryPlanError):
        plan.run([model, "--kv-cache-memory-bytes", "900T"])


def test_a_context_beyond_the_model_is_refused(model):
    with pytest.raises(ConfigError, match="1024"):
        plan.run([model, "--max-model-len", "1024"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("checkpoint")))


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_quality_stands_beside_the_bill(checkpoint: str, quantization: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dtype", "bfloat16", "--threads", "1", "--max-model-len", "200", "--quantization", quantization, *FLAGS]
    assert plan.run([checkpoint, "--quality", "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    quality = found["quality"]
    assert found["model"] == checkpoint and found["dtype"] == "bfloat16"
    assert quality["positions"] > 1000 and quality["window"] == 200
    if quantization == "none":
        assert (quality["kl_mean"], quality["kl_max"], quality["top1_agreement"]) == (0.0, 0.0, 100.0)
    else:
        assert 0.0 < quality["kl_mean"] <= quality["kl_max"]


def test_quality_is_a_table(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dtype", "float32", "--threads", "1", "--max-model-len", "200", "--quantization", "int8", *FLAGS]
    assert plan.run([checkpoint, "--quality", *flags]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in ("Memory plan", "KL divergence, mean", "same first choice", "perplexity, bf16", "this: int8", "bf16: the same checkpoint"):
        assert part in out


def test_quality_needs_a_tokenizer(tmp_path: Path) -> None:
    bare = write_tiny_llama(tmp_path, tokenizer=False)
    with pytest.raises(ModelLoadError, match="tokenizer"):
        plan.run([str(bare), "--quality", *FLAGS])


def test_pull_prints_the_path_alone(model, capsys):
    assert pull.run([model]) == 0
    assert capsys.readouterr().out == model + os.linesep


def test_what_is_not_there_is_told(tmp_path):
    for command in (plan, pull):
        with pytest.raises(ModelLoadError, match="none"):
            command.run([str(tmp_path / "none")])
