"""Attention by a library: what Octavo hands to it, step by step and in graphs. The libraries are stand-ins that check their arguments."""

from __future__ import annotations

from pathlib import Path

import attention_libraries
import pytest
import torch
from attention_cases import KINDS, STEPS, filled_pool, naive, step
from family_checkpoints import LENGTH, save_checkpoint
from paged_steps import PagedModel, load, on_device

from octavo.errors import ConfigError
from octavo.ops.cuda.backend import CudaOps
from octavo.ops.cuda.graphs import DecodeSteps
from octavo.ops.cuda.kv import CudaKVLayer
from octavo.ops.reference import ReferenceOps
from octavo.ops.select import select_ops

CPU = torch.device("cpu")
BF16 = torch.bfloat16

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins compute on the CPU; the GPU's first run times the real ones")


@pytest.fixture(params=["fa3", "flashinfer"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    attention_libraries.install(monkeypatch)
    return str(request.param)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", list(STEPS))
def test_steps(library: str, kind: str, name: str) -> None:
    spec, batch = KINDS[kind], step(*STEPS[name])
    pool = filled_pool(batch, spec.num_kv_heads, BF16, spec.window, spec.head_dim)
    kv = CudaKVLayer(keys=pool[:, 1, 0], values=pool[:, 1, 1])
    q = torch.randn(sum(batch.query_lens), spec.num_heads + 2, spec.head_dim, dtype=BF16)[:, : spec.num_heads]
    ops = CudaOps(CPU, BF16, attention=library)
    for _ in range(2):  # a second step is planned anew
        actual = ops.paged_attention(q, on_device(batch, CPU), kv, spec)
        assert actual.shape == q.shape and actual.dtype == BF16
        assert (actual.double() - naive(q, batch, kv.keys, kv.values, spec)).abs().max().item() < 1.5e-2


def test_an_eight_bit_cache_is_flashinfers_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    attention_libraries.install(monkeypatch)
    spec, batch = KINDS["full"], step(*STEPS["mixed"])
    pool = filled_pool(batch, spec.num_kv_heads, BF16).to(torch.float8_e4m3fn)
    kv = CudaKVLayer(keys=pool[:, 1, 0], values=pool[:, 1, 1])
    q = torch.randn(sum(batch.query_lens), spec.num_heads, spec.head_dim, dtype=BF16)
    actual = CudaOps(CPU, BF16, attention="flashinfer").paged_attention(q, on_device(batch, CPU), kv, spec)
    assert (actual.double() - naive(q, batch, kv.keys, kv.values, spec)).abs().max().item() < 1.5e-2


def test_graphs_and_eager_steps_agree_bit_for_bit_and_with_the_reference(library: str, tmp_path: Path) -> None:
    """Two kinds of layers; batches that grow, shrink and change their order; prompts between decoding steps plan in the same memory."""
    save_checkpoint("gemma3", tmp_path)
    runs: list[list[torch.Tensor]] = []
    captured: list[set[tuple[int, ...]] | None] = []
    for ops in (CudaOps(CPU, BF16, attention=library), CudaOps(CPU, BF16, graphs=False, attention=library), ReferenceOps(CPU, BF16)):
        model, config = load(tmp_path, BF16, LENGTH, ops)
        paged, seen = PagedModel(model, config, BF16), []
        for turn, order in enumerate(([0], [1, 0], [4, 3, 2, 1, 0], [2], [1, 3, 0])):
            for which in order:
                if which not in paged.tables:
                    paged.step({which: [3 + (which + place) % 90 for place in range(5 + 6 * which)]})
            logits = paged.step({which: [3 + (turn + which) % 90] for which in order})
            seen.append(torch.cat([logits[which] for which in order]).clone())
        runs.append(seen)
        captured.append(set(paged.forward.graphs) if isinstance(paged.forward, DecodeSteps) else None)
    assert captured == [{(1,), (2,), (4,), (8,)}, set(), None]
    for graph, eager, reference in zip(*runs, strict=True):
        assert torch.equal(graph, eager)
        assert (graph - reference).abs().max().item() < 3e-2 * reference.abs().max().item()


@pytest.mark.parametrize(("option", "package"), [("fa3", "hopper/"), ("flashinfer", "pip install flashinfer-python")])
def test_a_library_that_is_not_there_is_named(option: str, package: str) -> None:
    with pytest.raises(ConfigError, match=f"attention_backend={option} needs .*{package}.*: No module named"):
        CudaOps(CPU, BF16, attention=option)


@pytest.mark.parametrize(("major", "option"), [(8, "fa3"), (10, "fa3"), (7, "flashinfer")])
def test_a_gpu_that_a_library_does_not_run_on_is_named(major: int, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention_libraries.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    with pytest.raises(ConfigError, match=rf"{option} does not run on NVIDIA Test \(compute capability {major}.x\); triton does"):
        select_ops(torch.device("cuda"), BF16, attention=option)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert select_ops(torch.device("cuda"), BF16, attention="fa3").name == "cuda"
