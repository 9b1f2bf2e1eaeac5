"""Bad input on a live server: each gets its clear answer, and the next request is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Server

GOOD = {"prompt": "What is the capital of France?", "max_tokens": 50, "temperature": 0}


def still_right(server: Server) -> None:
    assert httpx.post(f"{server.url}/generate", json=GOOD, timeout=60).json()["text"] == ["The capital of France is Paris."]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


COMPLETION = {"model": "smollm2", "prompt": "Hello", "max_tokens": 2}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 1_000_000}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 2.5}, "n"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"logprobs": 50_000}, "logprobs"),
        ({"top_k": -7}, "top_k"),
        ({"stop": [""]}, "stop"),
        ({"stop": 7}, "stop"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"seed": "lucky"}, "seed"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [99_999_999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"temprature": 1}, "temprature"),
        ({"guided_json": {"type": "no such type"}}, "guided_json"),
        ({"use_beam_search": True, "top_p": 0.5}, "top_p"),
        ({"suffix": "end"}, "suffix"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_wrong_field_is_named(server: Server, change: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json=COMPLETION | change, timeout=60)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["param"].split(".")[0] == param, error
    still_right(server)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "JSON"),
        (b"", "JSON"),
        (b"[1, 2]", "object"),
        (b'{"prompt": "x", "temperature": NaN}', "finite"),
        (b'{"prompt": "x", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b"\xff\xfe{}", "UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000 + b"}", ""),
    ],
)
def test_a_body_that_is_no_request(server: Server, body: bytes, said: str) -> None:
    answer = httpx.post(f"{server.url}/generate", content=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 400, answer.text
    assert said.lower() in error_of(answer)["message"].lower()
    still_right(server)


def test_a_prompt_past_the_context_is_refused_with_the_figures(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json=COMPLETION | {"prompt": "word " * 5000}, timeout=60)
    assert answer.status_code == 400
    message = error_of(answer)["message"]
    assert message.startswith("This model's maximum context length is 2048 tokens. However, your prompt contains ")
    chat = {"model": "smollm2", "messages": [{"role": "user", "content": "word " * 5000}]}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=60).status_code == 400
    still_right(server)


def test_unknown_model_route_method_and_type(server: Server) -> None:
    unknown = httpx.post(f"{server.url}/v1/completions", json=COMPLETION | {"model": "gpt-9"})
    assert unknown.status_code == 404
    assert "`gpt-9`" in error_of(unknown)["message"] and "smollm2" in error_of(unknown)["message"]
    assert httpx.get(f"{server.url}/v2/everything").status_code == 404
    assert httpx.get(f"{server.url}/generate").status_code == 405
    text = httpx.post(f"{server.url}/generate", content=json.dumps(GOOD), headers={"Content-Type": "text/plain"})
    assert text.status_code == 415
    still_right(server)


def test_a_body_past_the_limit_is_413(server: Server) -> None:
    answer = httpx.post(f"{server.url}/generate", json={"prompt": "x" * (40 * 2**20)}, timeout=60)
    assert answer.status_code == 413
    still_right(server)


def run_serve(model: Path) -> str:
    command = [sys.executable, "-m", "octavo.entrypoints.api_server", "--port", "0", "--model", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_gguf_cut_short_is_refused(tmp_path: Path) -> None:
    from octavo.models.hub import resolve

    whole = resolve(None).path
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[: 60 * 2**20])
    assert "cut.gguf" in run_serve(cut)


def tiny_checkpoint(folder: Path) -> Path:
    """A Llama of two layers with a safetensors file and no tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_safetensors_with_a_lying_header_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(64)}, "unk_token": "t0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    name = next(key for key in header if key != "__metadata__")
    header[name]["data_offsets"][1] += 2**40
    lying = json.dumps(header).encode()
    file.write_bytes(len(lying).to_bytes(8, "little") + lying + raw[8 + size :])
    assert "model.safetensors" in run_serve(folder)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    assert "tokenizer" in run_serve(tiny_checkpoint(tmp_path))
