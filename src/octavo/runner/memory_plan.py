"""The memory bill, computed before anything is loaded: weights, pages, activations, the process itself.

``octavo plan`` prints it, the engine prints it at start and keeps to it. Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from octavo import env
from octavo.config import EngineOptions
from octavo.errors import ConfigError, MemoryPlanError
from octavo.models.config import ModelConfig
from octavo.models.expected_tensors import expected_tensors
from octavo.models.sharding import Shard, share_out
from octavo.ops.workspace import CPU_SLOT_TILE, attention_workspace, cpu_workspace, cuda_workspace, flashinfer_workspace, shared_slot_floats
from octavo.quantization.formats import DENSE, DTYPE_BYTES, PackedFormat, is_vocabulary, packed_bytes, resolve
from octavo.runner.device import CudaDevice, Device, usable_cores

KV_SCALE_BYTES = 4
"""int8 keys (and values) have a float32 scale for each token and head."""

LOGITS_ROWS = 64
"""Rows whose logits the host's sampler works on at once, and, on a CPU, that exist at once (``Device.logits_rows``): it bounds the bill."""

FLASHINFER_HEADS = (64, 128, 256)
"""Head sizes that FlashInfer's kernels are made for."""

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
        weight_formats: how the weights are held, in words.
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
    weight_formats: str
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
            ("weights", self.weights, self.weight_formats),
            ("KV pool", self.kv_pool, pages),
            ("activations", self.activations, f"steps of up to {LOGITS_ROWS} rows of logits at a time"),
            ("runtime", self.runtime, "the process before it holds a model"),
            ("total", self.total, f"context {self.max_model_len} tokens, up to {self.max_num_seqs} sequences a step"),
            ("free now", self.available, f"on {self.device}"),
        ]


def kernels_for(device: Device, dtype: str) -> str:
    """Which backend ``ops.select`` will choose: cpu, cuda or reference. The reference holds all weights dense, the others do not."""
    if device.kind == "cuda":
        return "cuda"
    return "cpu" if dtype in ("float32", "bfloat16") and env.cpu_kernels() != "reference" else "reference"


def matrix_formats(
    config: ModelConfig, quantization: str, formats: Mapping[str, str] | None = None, shard: Shard | None = None
) -> dict[str, PackedFormat]:
    """How each weight of a matrix product is held.

    Args:
        quantization: the option.
        formats: how tensors are stored, by Hugging Face name; those that are not in it are dense.
        shard: the rank's part of the model, whose own weights are asked for.

    Returns:
        by Hugging Face name; the embedding table is one of them, since a tied one is the head too.
    """
    stored = formats or {}
    names = {name: name if shard is None else shard.stored_name(name) for name in _tensors(config, shard)}
    return {
        name: resolve(stored.get(names[name], "F32"), quantization, is_vocabulary(name))
        for name, shape in _tensors(config, shard).items()
        if len(shape) == 2
    }


def _tensors(config: ModelConfig, shard: Shard | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a rank holds, by its own layers' numbers."""
    return expected_tensors(config) if shard is None else shard.tensors(config)


def weight_bytes(config: ModelConfig, dtype: str, matrices: Mapping[str, PackedFormat] | None = None, shard: Shard | None = None) -> int:
    """Bytes of all parameters.

    Args:
        config: of the whole model.
        dtype: compute type.
        matrices: how matrices are held; None for the reference kernels, which hold them dense, and a tied table twice: once for look-ups,
            once laid out for the product. Kernels that compute in blocks look tokens up in the packed table itself.
        shard: the rank's part, whose own parameters are counted.
    """
    total = 0
    tensors = _tensors(config, shard)
    for name, shape in tensors.items():
        if len(shape) == 1:
            total += 4 * shape[0]  # norms are kept in float32; biases are counted so
        elif matrices is None:
            total += math.prod(shape) * DTYPE_BYTES[dtype]
        else:
            rows, columns = shape
            total += packed_bytes(matrices[name], rows, columns, dtype)
    if matrices is None and config.tie_word_embeddings and (shard is None or shard.num_stages == 1):
        total += math.prod(tensors.get("model.embed_tokens.weight", (0,))) * DTYPE_BYTES[dtype]
    return total


def describe_formats(matrices: Mapping[str, PackedFormat], dtype: str) -> str:
    """The formats in words, such as ``4-bit blocks, vocabulary 8-bit blocks; computed in bfloat16``."""
    layers = Counter(packed.label for name, packed in matrices.items() if not is_vocabulary(name))
    vocabulary = Counter(packed.label for name, packed in matrices.items() if is_vocabulary(name))
    if {*layers, *vocabulary} == {DENSE.label}:
        return dtype
    if len(layers) == 1:
        parts = list(layers)
    else:
        parts = [f"{count} {label}" for label, count in layers.most_common()]
    return f"{', '.join(parts)}, vocabulary {' and '.join(vocabulary)}; computed in {dtype}"


def block_bytes(config: ModelConfig, block_size: int, kv_dtype: str) -> int:
    """Bytes of a block of the pool: keys and values of all layers, and the scales that int8 ones have."""
    if kv_dtype == "fp8":
        return config.kv_values_per_token * block_size
    if kv_dtype != "int8":
        return config.kv_values_per_token * block_size * DTYPE_BYTES[kv_dtype]
    return (config.kv_values_per_token + 2 * config.num_layers * config.num_kv_heads * KV_SCALE_BYTES) * block_size


def activation_bytes(config: ModelConfig, options: EngineOptions, device: Device, dtype: str, context: int, quantised: bool = False) -> int:
    """Bytes of a step's temporaries at the token and sequence budgets.

    Args:
        context: the longest context: the reference kernels gather it for attention.
        quantised: whether some weights are.
    """
    tokens, sequences = options.scheduler.max_num_batched_tokens, options.scheduler.max_num_seqs
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    logits = min(LOGITS_ROWS, sequences) * config.vocab_size * 4 * _SAMPLER_COPIES
    kernels = kernels_for(device, dtype)
    if kernels == "cuda":
        logits += min(device.logits_rows, sequences) * config.vocab_size * 4
        step = cuda_workspace(tokens, config.hidden_size, config.intermediate_size, heads, DTYPE_BYTES[dtype], quantised)
        if options.device.attention_backend == "flashinfer":
            step += flashinfer_workspace(sequences, -(-context // options.cache.block_size), len(set(config.windows)))
        return step + logits
    if kernels == "cpu":
        threads = options.device.threads or usable_cores()
        return cpu_workspace(tokens, config.hidden_size, config.intermediate_size, heads, threads) + logits
    row = 4 * config.hidden_size + 3 * config.intermediate_size + 3 * heads
    # Norms and rotations compute in float32 beside the activations themselves.
    attention = attention_workspace(
        context, config.num_heads, config.num_kv_heads, config.head_dim, DTYPE_BYTES[dtype], config.attention_softcap is not None
    )
    return tokens * row * (DTYPE_BYTES[dtype] + 4) + logits + attention


def plan_memory(
    config: ModelConfig,
    options: EngineOptions,
    device: Device,
    available: int | None = None,
    formats: Mapping[str, str] | None = None,
) -> MemoryPlan:
    """Compute the bill of a worker that has the model to itself.

    Args:
        available: free bytes to plan against; asked from the device when None.
        formats: what ``models.loader.stored_formats`` says of the checkpoint; None for one that is dense.

    Raises:
        MemoryPlanError: the weights or one full context do not fit, with the figures and what to change.
        ConfigError: ``max_model_len`` exceeds the model's own limit, or the device or the compute type has no kernels for what is asked.
    """
    available = device.free_bytes() if available is None else available
    return _fit_context(_with_pool(_plan_without_pool(config, options, device, available, formats, None), options, device), options)


def plan_ranks(
    config: ModelConfig,
    options: EngineOptions,
    device: Device,
    available: int | None = None,
    formats: Mapping[str, str] | None = None,
    elsewhere: Sequence[int] = (),
) -> list[MemoryPlan]:
    """The bill of each rank that shares the model. One pool is shared out: all ranks have the same blocks, each its part.

    Args:
        available: what this host's ranks may take (``Device.free_for``); asked from the device when None.
        formats: as ``plan_memory`` takes them.
        elsewhere: the same as ``available`` of the other hosts, each of which has as many ranks as this one.

    Raises:
        MemoryPlanError, ConfigError: as ``plan_memory``; ``ConfigError`` also where the model cannot be shared out so.
    """
    tensor, pipeline = options.device.tensor_parallel_size, options.device.pipeline_parallel_size
    if tensor * pipeline == 1:
        return [plan_memory(config, options, device, available, formats)]
    a_host = tensor * pipeline // (1 + len(elsewhere))
    available = device.free_for(0, a_host) if available is None else available
    kept = formats if options.model.quantization == "auto" else None
    plans = [_plan_without_pool(config, options, device, available, formats, shard) for shard in share_out(config, tensor, pipeline, kept)]
    if tensor > 1:
        sums = _sums_bytes(config, options, device, plans[0].dtype)
        plans = [replace(plan, activations=plan.activations + sums) for plan in plans]
    together = 1 if device.kind == "cuda" else a_host  # ranks that have one memory
    memories = [
        bill_of([replace(plan, available=free) for plan in plans[first : first + together]])
        for host, free in enumerate((available, *elsewhere))
        for first in range(host * a_host, (host + 1) * a_host, together)
    ]
    block = sum(plan.block_bytes for plan in plans)
    least = min((_with_pool(memory, options, device, block) for memory in memories), key=lambda memory: memory.num_blocks)
    whole = _fit_context(least, options)
    count, context = whole.num_blocks, whole.max_model_len
    return [replace(plan, num_blocks=count, kv_pool=count * plan.block_bytes, max_model_len=context, notes=whole.notes) for plan in plans]


def _sums_bytes(config: ModelConfig, options: EngineOptions, device: Device, dtype: str) -> int:
    """What a rank takes to sum its rows with others': its slots of shared memory on a CPU, two copies of a step's rows on a GPU."""
    if device.kind == "cuda":
        return 2 * options.scheduler.max_num_batched_tokens * config.hidden_size * DTYPE_BYTES[dtype]
    return 2 * 4 * shared_slot_floats(config.hidden_size, config.vocab_size)


def bill_of(plans: list[MemoryPlan]) -> MemoryPlan:
    """One bill for ranks together; ``available`` is the first one's."""
    if len(plans) == 1:
        return plans[0]
    return replace(
        plans[0],
        weights=sum(plan.weights for plan in plans),
        kv_pool=sum(plan.kv_pool for plan in plans),
        activations=sum(plan.activations for plan in plans),
        runtime=sum(plan.runtime for plan in plans),
        block_bytes=sum(plan.block_bytes for plan in plans),
        weight_formats=f"{plans[0].weight_formats}; on {len(plans)} ranks",
    )


def _plan_without_pool(
    config: ModelConfig,
    options: EngineOptions,
    device: Device,
    available: int,
    formats: Mapping[str, str] | None,
    shard: Shard | None,
) -> MemoryPlan:
    """What a worker takes before it has pages, and how large they are.

    Args:
        shard: the rank's part of the model, whose bill it is; None for one that runs it alone.

    Raises:
        ConfigError: see ``plan_memory``.
    """
    dtype = options.model.dtype if options.model.dtype != "auto" else device.default_dtype(config.dtype)
    kv_dtype = options.cache.kv_cache_dtype if options.cache.kv_cache_dtype != "auto" else dtype
    wanted_len = options.model.max_model_len or config.max_position_embeddings
    if wanted_len > config.max_position_embeddings:
        raise ConfigError(f"max_model_len={wanted_len} is more than the {config.max_position_embeddings} tokens the model is made for.")
    matrices = matrix_formats(config, options.model.quantization, formats, shard)
    described = describe_formats(matrix_formats(config, options.model.quantization, formats), dtype)
    kernels = kernels_for(device, dtype)
    if kernels != "cuda" and options.device.attention_backend != "triton":
        raise ConfigError(f"attention_backend={options.device.attention_backend} needs a GPU; this is {device.kind}.")
    if kernels == "cpu":
        _refuse_for_cpu(options, kv_dtype)
    elif kernels == "cuda":
        _refuse_for_cuda(options, device, kv_dtype)
        _refuse_for_library(config, options.device.attention_backend, dtype, kv_dtype)
    else:
        _refuse_for_reference(options, dtype, kv_dtype)
        described = dtype if described == dtype else f"{dtype}, dequantised at load"
    local = config if shard is None else shard.local(config)
    # Only the last stage has scores. All of them are on its first rank, and on every one where GPUs sample.
    whole = shard is None or shard.samples or (shard.is_last and kernels == "cuda")
    scores = config.vocab_size if whole else local.vocab_size if shard is not None and shard.is_last else 0
    return MemoryPlan(
        device=device.kind,
        available=available,
        weights=weight_bytes(config, dtype, None if kernels == "reference" else matrices, shard),
        kv_pool=0,
        activations=activation_bytes(
            replace(local, vocab_size=scores), options, device, dtype, wanted_len, any(packed != DENSE for packed in matrices.values())
        ),
        runtime=device.runtime_bytes,
        num_blocks=0,
        block_size=options.cache.block_size,
        block_bytes=block_bytes(local, options.cache.block_size, kv_dtype),
        max_model_len=wanted_len,
        max_num_seqs=options.scheduler.max_num_seqs,
        dtype=dtype,
        kv_dtype=kv_dtype,
        weight_formats=described,
    )


def _refuse_for_reference(options: EngineOptions, dtype: str, kv_dtype: str) -> None:
    """What only kernels that compute in blocks can do is refused where others run."""
    needs = f"needs a GPU, or dtype float32 or bfloat16 and the C++ kernels; this is cpu and {dtype}"
    if env.cpu_kernels():
        needs += f" with OCTAVO_CPU_KERNELS={env.cpu_kernels()}"
    if options.model.quantization in ("int8", "int4"):
        raise ConfigError(f"quantization={options.model.quantization} {needs}.")
    _refuse_float8(options)
    if options.model.activation_bits is not None:
        raise ConfigError(f"activation_bits={options.model.activation_bits} {needs}.")
    if kv_dtype in ("int8", "fp8"):
        raise ConfigError(f"kv_cache_dtype={kv_dtype} {needs}.")


def _refuse_for_cpu(options: EngineOptions, kv_dtype: str) -> None:
    """What the CPU's kernels cannot do."""
    _refuse_float8(options)
    if kv_dtype == "float16":
        raise ConfigError("kv_cache_dtype=float16 needs a GPU or dtype float16; on a CPU use bfloat16, which takes as much, or int8.")
    if kv_dtype == "fp8":
        raise ConfigError("kv_cache_dtype=fp8 needs a GPU; on a CPU use int8, which takes as much.")
    if options.cache.block_size % CPU_SLOT_TILE:
        raise ConfigError(f"block_size={options.cache.block_size}: on a CPU it must be a multiple of {CPU_SLOT_TILE}.")


def _refuse_float8(options: EngineOptions) -> None:
    """What no kernels but the GPU's can do."""
    if options.model.quantization == "fp8":
        raise ConfigError("quantization=fp8 needs a GPU; on a CPU use int8, which takes as much.")


def _refuse_for_cuda(options: EngineOptions, device: Device, kv_dtype: str) -> None:
    """What the GPU's kernels cannot do."""
    if options.model.activation_bits is not None:
        raise ConfigError(f"activation_bits={options.model.activation_bits} needs --device cpu and its C++ kernels.")
    if kv_dtype == "int8":
        raise ConfigError("kv_cache_dtype=int8 needs --device cpu; on a GPU use fp8, which takes as much.")
    if isinstance(device, CudaDevice) and not device.has_float8():
        if kv_dtype == "fp8":
            raise ConfigError("kv_cache_dtype=fp8 needs a GPU of compute capability 8.9 (Ada) or later; use auto, the compute type.")
        if options.model.quantization == "fp8":
            raise ConfigError("quantization=fp8 needs a GPU of compute capability 8.9 (Ada) or later; use int8, which takes as much.")


def _refuse_for_library(config: ModelConfig, library: str, dtype: str, kv_dtype: str) -> None:
    """What the libraries that may attend on a GPU cannot do."""
    if library == "triton":
        return
    named = f"attention_backend={library}"
    if dtype == "float32":
        raise ConfigError(f"{named} attends in bfloat16 or float16, not in float32; triton does.")
    if library == "fa3":
        if kv_dtype != dtype:
            raise ConfigError(f"{named} needs a KV cache of the compute type, {dtype}; triton and flashinfer take {kv_dtype}.")
        if config.head_dim > 256 or config.head_dim % 8:
            raise ConfigError(f"{named} takes heads of up to 256 values, a multiple of 8; this model's have {config.head_dim}.")
    elif kv_dtype not in (dtype, "fp8"):
        raise ConfigError(f"{named} needs a KV cache of the compute type, {dtype}, or fp8, not {kv_dtype}.")
    elif config.head_dim not in FLASHINFER_HEADS:
        sizes = ", ".join(map(str, FLASHINFER_HEADS))
        raise ConfigError(f"{named} takes heads of {sizes} values; this model's have {config.head_dim}.")


def _with_pool(plan: MemoryPlan, options: EngineOptions, device: Device, whole_block: int | None = None) -> MemoryPlan:
    """Size the pool: as told, or a share of what weights and activations leave, never more than could be used.

    Args:
        whole_block: bytes of a block on all hosts together, where this is one's bill.
    """
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
        num_blocks = told // (whole_block or plan.block_bytes)
        if fixed + num_blocks * plan.block_bytes > plan.available:
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
