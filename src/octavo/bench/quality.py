"""What a model's precision costs: its next-token distributions on a text, against those of the same checkpoint in bf16.

Both models run the real paged forward pass, a window of the text at a time, on the selected backend. Only one is in memory at once: what
is kept of it is the last hidden row of each token (some megabytes, exact), and the two vocabulary products alone are built again to be
compared. The scores themselves would be a gigabyte for a large vocabulary, and rounding them to keep them is no smaller an error than what
is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from octavo.batch import Batch, NewSequence, ScheduledSequence
from octavo.bench.report import percentile
from octavo.config import EngineOptions
from octavo.errors import ConfigError, MemoryPlanError, ModelLoadError, OctavoError
from octavo.frontend.tokenizer import Tokenizer, load_tokenizer
from octavo.layers.embedding import Embedding
from octavo.models.config import ModelConfig
from octavo.models.hub import ModelFiles
from octavo.models.loader import open_weights, read_model_config, stored_formats
from octavo.ops.select import select_ops
from octavo.quantization.formats import DENSE, resolve
from octavo.runner.device import Device, select_device
from octavo.runner.memory_plan import LOGITS_ROWS, plan_memory
from octavo.runner.runner import Runner
from octavo.sampling_params import SamplingParams

WINDOW = 512
"""Most tokens that see each other: a window's first tokens have no context, so that a short one would measure little else."""

TEXT = Path(__file__).with_name("quality_text.txt")
"""The text: prose, dialogue, a list, code, German. Written for Octavo, so that no model has learnt it by heart."""

REFERENCE = "bfloat16"

_COMPARED_ROWS = 16
"""Rows of scores compared at a time: at 64, fresh memory for float64 temporaries takes as long again as the arithmetic."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How near a model's distributions are to those of its checkpoint in bf16.

    Attributes:
        compared, reference: what was run, in words; ``backend``: on which kernels.
        tokens: of the text; ``window``: how many of them see each other at most.
        positions: next-token distributions compared.
        kl_mean, kl_p99, kl_max: KL(bf16 || this) over the positions, in nats.
        top1_agreement: positions where both find the same token the most likely one, in percent.
        perplexity, reference_perplexity: of the text.
        notes: what a reader of the figures should know.
    """

    compared: str
    reference: str
    backend: str
    tokens: int
    window: int
    positions: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Some positions compared: float64 tensors [R], ``same`` bool.

    Attributes:
        kl: KL(reference || ours) in nats.
        same: whether both have the same most likely token.
        nll, reference_nll: minus the log probability of the token that follows.
    """

    kl: torch.Tensor
    same: torch.Tensor
    nll: torch.Tensor
    reference_nll: torch.Tensor


def compare_rows(ours: torch.Tensor, reference: torch.Tensor, next_ids: torch.Tensor) -> Rows:
    """Compare two models' scores at the same positions, in float64: the divergence of good formats is near float32's rounding.

    Args:
        ours, reference: float32 logits [R, V].
        next_ids: int64 [R], the tokens that follow in the text.

    Raises:
        OctavoError: scores are not numbers.
    """
    ours_log, reference_log = (torch.log_softmax(logits, dim=1, dtype=torch.float64) for logits in (ours, reference))
    nll, reference_nll = (-logs.gather(1, next_ids.unsqueeze(1)).squeeze(1) for logs in (ours_log, reference_log))
    kl = reference_log.exp().mul_(reference_log.sub_(ours_log)).sum(1)
    if not kl.isfinite().all():
        raise OctavoError("a model's scores are not numbers: nothing can be compared. Check the checkpoint, or try --dtype float32.")
    # Where the two all but agree, rounding can leave a sum of terms of both signs a hair below nothing.
    return Rows(kl.clamp_(min=0.0), ours.argmax(1) == reference.argmax(1), nll, reference_nll)


def cut_windows(tokenizer: Tokenizer, text: str, size: int) -> list[list[int]]:
    """The text's token ids in windows of up to ``size``, each begun as the tokenizer begins a text (many models need that token).

    Raises:
        ConfigError: ``size`` is less than 2.
        ModelLoadError: the tokenizer makes fewer than 2 tokens of the text.
    """
    if size < 2:
        raise ConfigError(f"--quality compares what follows a token, for which max_model_len={size} leaves no room; give it 2 or more.")
    ids, whole = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text)
    start = whole[:1] if whole[:1] == [tokenizer.bos_token_id] and whole[:1] != ids[:1] else []
    step = size - len(start)
    found = [start + ids[at : at + step] for at in range(0, len(ids), step)]
    windows = [window for window in found if len(window) > 1]
    if not windows:
        raise ModelLoadError(f"the tokenizer makes {len(ids)} tokens of a text of {len(text)} characters; it does not fit this model.")
    return windows


def measure_quality(files: ModelFiles, options: EngineOptions, text: str | None = None) -> Quality:
    """Run a model under ``options`` and its checkpoint in bf16 over a text, and compare.

    Args:
        files: the model.
        options: weights, compute and cache types, device and threads are those of the engine; budgets are this measurement's own.
        text: what to read; the one that Octavo ships when None.

    Raises:
        ConfigError: options that cannot be honoured.
        ModelLoadError: the model or its tokenizer cannot be read, or they do not fit each other.
        MemoryPlanError: one of the two models does not fit.
    """
    if options.model.load_format == "dummy":
        raise ConfigError("--quality needs the model's own weights; load_format=dummy makes random ones, whose quality says nothing.")
    layout = options.device
    if (layout.tensor_parallel_size, layout.pipeline_parallel_size, layout.data_parallel_size) != (1, 1, 1):
        raise ConfigError("--quality runs a model on one rank; leave out the flags for parallel ones.")
    config = read_model_config(files)
    tokenizer = load_tokenizer(files, options.model.tokenizer, options.model.revision)
    size = min(WINDOW, options.model.max_model_len or config.max_position_embeddings)
    windows = cut_windows(tokenizer, TEXT.read_text(encoding="utf-8") if text is None else text, size)
    highest = max(max(window) for window in windows)
    if highest >= config.vocab_size:
        raise ModelLoadError(f"the tokenizer makes token {highest} of the text, but the model has {config.vocab_size} tokens.")
    formats = stored_formats(files, config, options.model.load_format)
    device = select_device(options.device)
    options = _for_windows(options, size)
    ours = _Side(files, config, options, formats, device)
    try:
        reference = _Side(files, config, _in_bf16(options), formats, device)
    except MemoryPlanError as error:
        raise MemoryPlanError(f"--quality runs the checkpoint in {REFERENCE} too, which does not fit. {error}") from None
    return _compared(ours, reference, windows)


class _Side:
    """One of the two models: what it is built from.

    Raises:
        MemoryPlanError: it does not fit.
    """

    def __init__(self, files: ModelFiles, config: ModelConfig, options: EngineOptions, formats: Mapping[str, str], device: Device) -> None:
        self.files = files
        self.config = config
        self.options = options
        self.device = device
        self.stored_in_blocks = any(resolve(storage, "auto", False) != DENSE for storage in formats.values())
        self.plan = plan_memory(config, options, device, formats=formats)

    def hidden(self, windows: Sequence[list[int]]) -> list[torch.Tensor]:
        """Load the model, run each window as a step of one sequence and forget the model: the final rows [tokens, H] of each."""
        runner = Runner(self.files, self.config, self.options, self.plan, self.device, lambda phase, fraction: None)
        with torch.inference_mode():
            return [self._run(runner, number, tokens) for number, tokens in enumerate(windows)]

    def _run(self, runner: Runner, number: int, tokens: list[int]) -> torch.Tensor:
        blocks = list(range(-(-len(tokens) // self.plan.block_size)))
        new = NewSequence(number, tokens, len(tokens), SamplingParams(), 0)
        scheduled = ScheduledSequence(number, 0, len(tokens), 0, blocks, samples=False)
        runner.inputs.apply(Batch(number, [number - 1] if number else [], [new], [], [scheduled]))
        step = runner.inputs.prepare([scheduled])
        return runner.forward(step.token_ids, step.attention)

    def head(self) -> Embedding:
        """The vocabulary product alone, built as the model builds it."""
        ops = select_ops(torch.device(self.device.kind), getattr(torch, self.plan.dtype), self.options.model.activation_bits)
        weights = open_weights(self.files, self.config, self.options.model.load_format, self.options.model.quantization)
        return Embedding(ops, weights, self.config.tie_word_embeddings, self.config.embedding_scale, self.config.logit_softcap)


def _for_windows(options: EngineOptions, size: int) -> EngineOptions:
    """The same model with budgets for one sequence of ``size`` tokens: the pool is then just as large."""
    return replace(
        options,
        model=replace(options.model, max_model_len=size),
        cache=replace(options.cache, kv_cache_memory_bytes=None, gpu_memory_utilization=None),
        scheduler=replace(options.scheduler, max_num_seqs=1, max_num_batched_tokens=size),
    )


def _in_bf16(options: EngineOptions) -> EngineOptions:
    return replace(
        options,
        model=replace(options.model, quantization="none", activation_bits=None, dtype=REFERENCE),
        cache=replace(options.cache, kv_cache_dtype=REFERENCE),
    )


def _compared(ours: _Side, reference: _Side, windows: Sequence[list[int]]) -> Quality:
    hidden = ours.hidden(windows), reference.hidden(windows)
    heads = ours.head(), reference.head()
    parts: list[Rows] = []
    with torch.inference_mode():
        for tokens, left, right in zip(windows, *hidden, strict=True):
            next_ids = torch.tensor(tokens[1:], device=left.device)
            for begin in range(0, len(next_ids), LOGITS_ROWS):
                rows = slice(begin, min(begin + LOGITS_ROWS, len(next_ids)))
                first, second = heads[0].logits(left[rows]), heads[1].logits(right[rows])
                assert first is not None and second is not None
                pieces = (torch.split(part, _COMPARED_ROWS) for part in (first, second, next_ids[rows]))
                parts += map(compare_rows, *pieces)
    kl = torch.cat([part.kl for part in parts]).tolist()
    return Quality(
        compared=f"{ours.plan.weight_formats}; KV cache {ours.plan.kv_dtype}",
        reference=f"the same checkpoint {'dequantised to' if ours.stored_in_blocks else 'in'} {REFERENCE}; KV cache {REFERENCE}",
        backend=f"{heads[0].ops.name} kernels on {ours.device.kind}",
        tokens=sum(map(len, windows)),
        window=max(map(len, windows)),
        positions=len(kl),
        kl_mean=math.fsum(kl) / len(kl),
        kl_p99=percentile(kl, 99.0),
        kl_max=max(kl),
        top1_agreement=100.0 * torch.cat([part.same for part in parts]).double().mean().item(),
        perplexity=_perplexity([part.nll for part in parts]),
        reference_perplexity=_perplexity([part.reference_nll for part in parts]),
        notes=(_STORED_IN_BLOCKS,) if ours.stored_in_blocks else (),
    )


_STORED_IN_BLOCKS = (
    "this checkpoint is quantised already: bf16 stands for its own values, dequantised. The figures show what running it "
    "this way adds, not what the file's quantisation cost."
)


def _perplexity(nll: Sequence[torch.Tensor]) -> float:
    return torch.cat(list(nll)).mean().exp().item()
