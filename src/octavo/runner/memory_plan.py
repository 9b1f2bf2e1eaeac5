"""The memory bill, computed before anything is loaded: weights, pages, activations, the process itself.

``octavo plan`` prints it, the engine prints it at start and keeps to it. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.config import EngineOptions
from octavo.errors import ConfigError, MemoryPlanError
from octavo.models.config import ModelConfig
from octavo.ops.workspace import attention_workspace
from octavo.runner.device import Device

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

LOGITS_ROWS = 64
"""Rows whose logits exist at once: the runner computes and samples them in chunks of this many, which bounds the bill."""

_SAMPLER_COPIES = 8
"""float32 copies of a chunk's logits that filters hold at their worst (sorted values, indices and float64 sums)."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the engine will take, in bytes, and what follows from it.

    Attributes:
        available: free memory the plan was made against.
        weights, kv_pool, activations, runtime: the bill.
        num_blocks, block_size, block_bytes: the pool's pages.
        max_model_len: the context limit in tokens that results.
        dtype, kv_dtype: resolved compute and cache types.
        notes: decisions worth a line to the user.
    """

    device: str
    available: int
    weights: int
    kv_pool: int
    activations: int
    runtime: int
    num_blocks: int
    block_size: int
    block_bytes: int
    max_model_len: int
    max_num_seqs: int
    dtype: str
    kv_dtype: str
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.weights + self.kv_pool + self.activations + self.runtime

    @property
    def pool_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def as_bytes(self) -> dict[str, int]:
        """The bill by name, for metrics and messages."""
        return {
            "weights": self.weights,
            "kv_pool": self.kv_pool,
            "activations": self.activations,
            "runtime": self.runtime,
            "total": self.total,
            "available": self.available,
        }

    def rows(self) -> list[tuple[str, int, str]]:
        """(part, bytes, note) in the order of the bill, the total and what is free last."""
        pages = f"{self.num_blocks} blocks of {self.block_size} tokens in {self.kv_dtype}: {self.pool_tokens} tokens"
        return [
            ("weights", self.weights, self.dtype),
            ("KV pool", self.kv_pool, pages),
            ("activations", self.activations, f"steps of up to {LOGITS_ROWS} rows of logits at a time"),
            ("runtime", self.runtime, "the process before it holds a model"),
            ("total", self.total, f"context {self.max_model_len} tokens, up to {self.max_num_seqs} sequences a step"),
            ("free now", self.available, f"on {self.device}"),
        ]


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all parameters in the compute type.

    A tied embedding counts twice: the table that tokens are looked up in, and the copy packed for the product with it.
    """
    hidden, heads, kv_heads, dim = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
    attention = hidden * (heads + 2 * kv_heads) * dim + heads * dim * hidden
    mlp = 3 * hidden * config.intermediate_size
    norms = (4 if config.norm_plus_one else 2) * hidden + 2 * dim
    biases = (heads + 2 * kv_heads) * dim + hidden + 2 * config.intermediate_size + hidden
    parameters = config.num_layers * (attention + mlp + norms + biases) + 2 * config.vocab_size * config.hidden_size + hidden
    return parameters * DTYPE_BYTES[dtype]


def activation_bytes(config: ModelConfig, options: EngineOptions, dtype: str, context: int) -> int:
    """Bytes of a step's temporaries at the token and sequence budgets: the widest layer, the logits, attention over ``context`` tokens."""
    tokens = options.scheduler.max_num_batched_tokens
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    row = 4 * config.hidden_size + 3 * config.intermediate_size + 3 * heads
    logits = min(LOGITS_ROWS, options.scheduler.max_num_seqs) * config.vocab_size * 4 * _SAMPLER_COPIES
    # Norms and rotations compute in float32 beside the activations themselves.
    attention = attention_workspace(
        context, config.num_heads, config.num_kv_heads, config.head_dim, DTYPE_BYTES[dtype], config.attention_softcap is not None
    )
    return tokens * row * (DTYPE_BYTES[dtype] + 4) + logits + attention


def plan_memory(config: ModelConfig, options: EngineOptions, device: Device, available: int | None = None) -> MemoryPlan:
    """Compute the bill.

    Args:
        available: free bytes to plan against; asked from the device when None.

    Raises:
        MemoryPlanError: the weights or one full context do not fit, with the figures and what to change.
        ConfigError: ``max_model_len`` exceeds the model's own limit.
    """
    available = device.free_bytes() if available is None else available
    dtype = options.model.dtype if options.model.dtype != "auto" else device.default_dtype(config.dtype)
    kv_dtype = options.cache.kv_cache_dtype if options.cache.kv_cache_dtype != "auto" else dtype
    wanted_len = options.model.max_model_len or config.max_position_embeddings
    if wanted_len > config.max_position_embeddings:
        raise ConfigError(f"max_model_len={wanted_len} is more than the {config.max_position_embeddings} tokens the model is made for.")
    plan = MemoryPlan(
        device=device.kind,
        available=available,
        weights=weight_bytes(config, dtype),
        kv_pool=0,
        activations=activation_bytes(config, options, dtype, wanted_len),
        runtime=device.runtime_bytes,
        num_blocks=0,
        block_size=options.cache.block_size,
        block_bytes=config.kv_values_per_token * options.cache.block_size * DTYPE_BYTES[kv_dtype],
        max_model_len=wanted_len,
        max_num_seqs=options.scheduler.max_num_seqs,
        dtype=dtype,
        kv_dtype=kv_dtype,
    )
    return _fit_context(_with_pool(plan, options, device), options)


def _with_pool(plan: MemoryPlan, options: EngineOptions, device: Device) -> MemoryPlan:
    """Size the pool: as told, or a share of what weights and activations leave, never more than could be used."""
    fixed = plan.total
    if fixed >= plan.available:
        raise MemoryPlanError(
            f"The model needs {gib(plan.weights)} of weights and {gib(plan.activations)} of activations; "
            f"with the process itself that is {gib(fixed)}, and {gib(plan.available)} are free on {plan.device}."
        )
    blocks_a_context = -(-plan.max_model_len // plan.block_size)
    most = options.scheduler.max_num_seqs * blocks_a_context
    told = options.cache.kv_cache_memory_bytes
    if told is None:
        share = options.cache.gpu_memory_utilization or device.default_share
        num_blocks = min(int(share * (plan.available - fixed)) // plan.block_bytes, most)
    else:
        num_blocks = told // plan.block_bytes
        if fixed + told > plan.available:
            raise MemoryPlanError(
                f"--kv-cache-memory-bytes {told} ({gib(told)}) does not fit: {gib(plan.available)} are free on {plan.device}, "
                f"of which weights, activations and the process take {gib(fixed)}."
            )
    if num_blocks < 1:
        raise MemoryPlanError(f"The KV pool has no room for one block of {plan.block_bytes} bytes; give it more (--kv-cache-memory-bytes).")
    return replace(plan, num_blocks=num_blocks, kv_pool=num_blocks * plan.block_bytes)


def _fit_context(plan: MemoryPlan, options: EngineOptions) -> MemoryPlan:
    """One full context must fit the pool: an explicit limit is an error then, the model's own is lowered with a note."""
    if plan.max_model_len <= plan.pool_tokens:
        return plan
    if options.model.max_model_len is not None:
        raise MemoryPlanError(
            f"One context of max_model_len={plan.max_model_len} tokens does not fit the KV pool, which holds {plan.pool_tokens}; "
            "lower --max-model-len or raise --kv-cache-memory-bytes."
        )
    note = f"context lowered from the model's {plan.max_model_len} tokens to the pool's {plan.pool_tokens}"
    return replace(plan, max_model_len=plan.pool_tokens, notes=(*plan.notes, note))


def gib(size: int) -> str:
    """A size as people read it: 1.50 GiB, 96.0 MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
