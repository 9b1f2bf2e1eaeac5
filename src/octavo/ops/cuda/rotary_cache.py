"""Rotate queries and keys by their positions, and write keys and values to their slots of the page pool.

    tokens t, runs of HEADS_A_PROGRAM heads (queries first, then keys with the values beside them): a program each
        q: halves of each head rotated in place; dimensions past the rotary ones are left alone
        k: rotated on its way to the pool; v: copied to it
        with norms, which need all dimensions to be rotary ones: heads of q and k over their root mean square, times the weights, first

    pool: a layer's keys (and values) lie at base + block * block_stride + (slot * Hk + head) * D + dim
    cos_sin: float32 [positions, rotary dim]: cosines, then sines, of rotary dim / 2 angles

A slot of -1 is a graph's padding: nothing is written.
"""

# Triton's functions have no types; arguments of kernels cannot have any that mypy knows.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from octavo.ops.base import HeadNorms
from octavo.ops.cuda.launch import early_launch
from octavo.ops.cuda.variants import Variant

HEADS_A_PROGRAM = 8


def rotary_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: HeadNorms | None = None,
) -> None:
    """See the file's head.

    Args:
        q: [T, Hq, D]; k, v: [T, Hk, D]; heads side by side in a row. q is overwritten.
        cos_sin: float32 [positions, rotary dim].
        positions, slots: int64 [T].
        keys, values: [blocks, block size, Hk, D], strided over blocks.
        norms: of the heads of q and k, where the rotary dim is D.
    """
    tokens, heads, dim = q.shape
    kv_heads, block_size = keys.shape[2], keys.shape[1]
    query_programs, key_programs = triton.cdiv(heads, HEADS_A_PROGRAM), triton.cdiv(kv_heads, HEADS_A_PROGRAM)
    if tokens:
        _rotary_kernel[(tokens, query_programs + key_programs)](
            q,
            k,
            v,
            cos_sin,
            positions,
            slots,
            keys,
            values,
            cos_sin if norms is None else norms.queries,
            cos_sin if norms is None else norms.keys,
            0.0 if norms is None else norms.eps,
            q.stride(0),
            k.stride(0),
            v.stride(0),
            keys.stride(0),
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            ROTARY=cos_sin.shape[1],
            HALF=triton.next_power_of_2(cos_sin.shape[1] // 2),
            PADDED=triton.next_power_of_2(dim),
            BLOCK_SIZE=block_size,
            RUN=HEADS_A_PROGRAM,
            QUERY_PROGRAMS=query_programs,
            NORM=norms is not None,
            PLUS_ONE=norms is not None and norms.plus_one,
            EARLY=early_launch(tokens),
            num_warps=4,
            launch_pdl=early_launch(tokens),
        )


@triton.jit
def _rotary_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cos_sin_ptr,
    positions_ptr,
    slots_ptr,
    keys_ptr,
    values_ptr,
    q_norm_ptr,
    k_norm_ptr,
    eps,
    q_stride,
    k_stride,
    v_stride,
    block_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    RUN: tl.constexpr,
    QUERY_PROGRAMS: tl.constexpr,
    NORM: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1)
    angles = tl.arange(0, HALF)
    turning = angles < ROTARY // 2
    table_ptr = cos_sin_ptr + tl.load(positions_ptr + token) * ROTARY
    cos = tl.load(table_ptr + angles, mask=turning, other=1.0)[None, :]
    sin = tl.load(table_ptr + ROTARY // 2 + angles, mask=turning, other=0.0)[None, :]
    members = tl.arange(0, RUN)[:, None]
    if run < QUERY_PROGRAMS:
        heads = run * RUN + members
        mask = (heads < HEADS) & turning[None, :]
        first_ptr = q_ptr + token * q_stride + heads * DIM + angles[None, :]
        first = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(first_ptr + ROTARY // 2, mask=mask, other=0.0).to(tl.float32)
        if NORM:
            first, second = _normed(first, second, q_norm_ptr, angles, turning, eps, DIM, PLUS_ONE)
        tl.store(first_ptr, (first * cos - second * sin).to(q_ptr.dtype.element_ty), mask=mask)
        tl.store(first_ptr + ROTARY // 2, (second * cos + first * sin).to(q_ptr.dtype.element_ty), mask=mask)
    else:
        slot = tl.load(slots_ptr + token)
        if slot >= 0:
            heads = (run - QUERY_PROGRAMS) * RUN + members
            place = (slot // BLOCK_SIZE) * block_stride + ((slot % BLOCK_SIZE) * KV_HEADS + heads) * DIM
            mask = (heads < KV_HEADS) & turning[None, :]
            source_ptr = k_ptr + token * k_stride + heads * DIM
            first = tl.load(source_ptr + angles[None, :], mask=mask, other=0.0).to(tl.float32)
            second = tl.load(source_ptr + ROTARY // 2 + angles[None, :], mask=mask, other=0.0).to(tl.float32)
            if NORM:
                first, second = _normed(first, second, k_norm_ptr, angles, turning, eps, DIM, PLUS_ONE)
            rounded = k_ptr.dtype.element_ty
            stored = keys_ptr.dtype.element_ty
            tl.store(keys_ptr + place + angles[None, :], (first * cos - second * sin).to(rounded).to(stored), mask=mask)
            tl.store(keys_ptr + place + ROTARY // 2 + angles[None, :], (second * cos + first * sin).to(rounded).to(stored), mask=mask)
            dims = tl.arange(0, PADDED)[None, :]
            if ROTARY < DIM:
                rest = (heads < KV_HEADS) & (dims >= ROTARY) & (dims < DIM)
                tl.store(keys_ptr + place + dims, tl.load(source_ptr + dims, mask=rest, other=0.0).to(stored), mask=rest)
            whole = (heads < KV_HEADS) & (dims < DIM)
            value = tl.load(v_ptr + token * v_stride + heads * DIM + dims, mask=whole, other=0.0)
            tl.store(values_ptr + place + dims, value.to(stored), mask=whole)


@triton.jit
def _normed(first, second, weight_ptr, angles, turning, eps, DIM: tl.constexpr, PLUS_ONE: tl.constexpr):
    """Heads [RUN, HALF] twice, their two halves, over their root mean squares and times the weights."""
    first_weight = tl.load(weight_ptr + angles, mask=turning, other=0.0)[None, :]
    second_weight = tl.load(weight_ptr + DIM // 2 + angles, mask=turning, other=0.0)[None, :]
    if PLUS_ONE:
        first_weight += 1.0
        second_weight += 1.0
    inverse = tl.rsqrt(tl.sum(first * first + second * second, 1) / DIM + eps)[:, None]
    return first * inverse * first_weight, second * inverse * second_weight


def variants() -> Iterator[Variant]:
    """The forms of Llama 3 (also with an 8-bit cache), Qwen 3, Gemma 3, Phi-3 small's partial rotation, and SmolLM2."""
    for name, heads, kv_heads, dim, rotary, kind, stored, norm in (
        ("llama3", 32, 8, 128, 128, "bf16", "bf16", False),
        ("llama3_fp8", 32, 8, 128, 128, "bf16", "fp8e4nv", False),
        ("qwen3", 32, 8, 128, 128, "bf16", "bf16", True),
        ("gemma3", 8, 4, 256, 256, "bf16", "bf16", True),
        ("partial", 32, 32, 96, 48, "fp16", "fp16", False),
        ("smollm2", 9, 3, 64, 64, "bf16", "bf16", False),
        ("float32", 9, 3, 64, 64, "fp32", "fp32", False),
    ):
        yield Variant(
            f"rotary_{name}",
            _rotary_kernel,
            dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), f"*{kind}")
            | {
                "cos_sin_ptr": "*fp32",
                "q_norm_ptr": "*fp32",
                "k_norm_ptr": "*fp32",
                "eps": "fp32",
                "positions_ptr": "*i64",
                "slots_ptr": "*i64",
            }
            | dict.fromkeys(("keys_ptr", "values_ptr"), f"*{stored}")
            | dict.fromkeys(("q_stride", "k_stride", "v_stride", "block_stride"), "i32"),
            {
                "HEADS": heads,
                "KV_HEADS": kv_heads,
                "DIM": dim,
                "ROTARY": rotary,
                "HALF": triton.next_power_of_2(rotary // 2),
                "PADDED": triton.next_power_of_2(dim),
                "BLOCK_SIZE": 16,
                "RUN": HEADS_A_PROGRAM,
                "QUERY_PROGRAMS": triton.cdiv(heads, HEADS_A_PROGRAM),
                "NORM": norm,
                "PLUS_ONE": name == "gemma3",
                "EARLY": True,
            },
            aligned=(
                "q_ptr",
                "k_ptr",
                "v_ptr",
                "cos_sin_ptr",
                "q_norm_ptr",
                "k_norm_ptr",
                "keys_ptr",
                "values_ptr",
                "q_stride",
                "k_stride",
                "v_stride",
                "block_stride",
            ),
        )
