"""A worker's whole job: load the model, hold the page pool, turn a batch into tensors, run it, sample.

Device-neutral: the device's peculiarities are in ``runner/device.py`` and behind ``ops/``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.batch import Batch, PendingStep, SampledToken, ScheduledSequence, StepResult, TokenLogprobs
from octavo.config import EngineOptions
from octavo.errors import InvalidLogitsError
from octavo.log import get_logger
from octavo.models.config import ModelConfig
from octavo.models.hub import ModelFiles
from octavo.models.loader import open_weights
from octavo.models.registry import build_model
from octavo.ops.base import KVShape, StepLimits
from octavo.ops.select import select_ops
from octavo.ops.transfer import HostCopy
from octavo.runner.device import Device
from octavo.runner.device_tokens import DrawnRows
from octavo.runner.host_heap import temporaries_go_back
from octavo.runner.input_batch import InputBatch, StepInputs
from octavo.runner.memory_plan import LOGITS_ROWS, MemoryPlan
from octavo.runner.place import Place
from octavo.sampling.logprobs import prompt_logprobs
from octavo.sampling.retrying import sample_what_can
from octavo.sampling.state import SequenceState

logger = get_logger(__name__)

Progress = Callable[[str, float], None]


class Runner:
    """One model on one device.

    Args:
        files: where the checkpoint is.
        config: its shape.
        options: the engine's options.
        plan: the memory plan the pool is made by.
        device: where it runs.
        progress: told (phase, fraction) while weights load.
        place: its rank's place among several; None where it runs the model alone.

    Attributes:
        samples: whether it samples; others compute their part of the scores and hear of the tokens.
    """

    def __init__(
        self,
        files: ModelFiles,
        config: ModelConfig,
        options: EngineOptions,
        plan: MemoryPlan,
        device: Device,
        progress: Progress,
        place: Place | None = None,
    ) -> None:
        device.prepare(options.device.threads)
        self.torch_device = device.torch_device
        self.config = config
        shard, group = (None, None) if place is None else (place.shard, place.group)
        self.link = None if place is None else place.link
        self.samples = shard is None or shard.samples
        local = config if shard is None else shard.local(config)
        dtype: torch.dtype = getattr(torch, plan.dtype)
        self.ops = select_ops(
            self.torch_device,
            dtype,
            options.model.activation_bits,
            graphs=not options.device.enforce_eager,
            group=group,
            attention=options.device.attention_backend,
        )
        weights = open_weights(files, config, options.model.load_format, options.model.quantization, self.torch_device, shard)
        # Not under inference mode: loaders fill tensors from threads of their own, where that mode would not hold.
        with temporaries_go_back():
            self.model = build_model(local, weights, self.ops, plan.max_model_len, lambda fraction: progress("loading", fraction), shard)
        self.pool = device.allocate_pool(plan.num_blocks, plan.block_bytes)
        shape = KVShape(local.num_layers, local.num_kv_heads, local.head_dim, plan.block_size, plan.kv_dtype)
        limits = StepLimits(plan.max_num_seqs, -(-plan.max_model_len // plan.block_size))
        width = None if self.model.is_first else config.hidden_size
        self.forward = self.ops.prepare_forward(self.model.forward, self.ops.kv_layers(self.pool, shape), limits, width)
        self.inputs = InputBatch(
            plan.max_num_seqs,
            plan.max_model_len,
            plan.block_size,
            config.vocab_size,
            self.torch_device,
            device.cores_free,
            self.ops.samples and self.model.is_last,
            self.samples,
        )
        self._logits_rows = device.logits_rows

    @torch.inference_mode()
    def launch(self, batch: Batch) -> PendingStep:
        """Start one step; where the host samples, it is done on return. The batch's sequences learn the tokens they sampled.

        A device runs its steps in order, so what ``batch`` lets go of (pages, rows) may be used by a step that is still in flight.
        """
        self.inputs.apply(batch)
        step = self.inputs.prepare(batch.scheduled) if batch.scheduled else None
        return self._start(batch, step)

    def _start(self, batch: Batch, step: StepInputs | None) -> PendingStep:
        """The device's part of a step. Nothing in it waits for the device unless the host samples rows or scores a prompt."""
        if batch.block_copies:
            self.ops.copy_blocks(self.pool, batch.block_copies)
        if step is None:
            return PendingStep(lambda: StepResult([]))
        if step.unknown is not None:
            self.inputs.device_tokens.fill(step.token_ids, *step.unknown)
        start = step.token_ids if self.model.is_first or self.link is None else self.link.receive(len(step.token_ids))
        hidden = self.forward(start, step.attention)
        if not self.model.is_last and self.link is not None:
            self.link.send(hidden)
            return PendingStep(lambda: StepResult([]))
        drawn = [] if step.drawn is None else self._draw(hidden, step.drawn)
        result = self._sample(hidden, step)
        result.prompt_logprobs = self._prompt_logprobs(hidden, batch.scheduled)
        return PendingStep(lambda: self._finish(batch, result, drawn), lambda: all(copy.ready() for _, copy in drawn))

    def _draw(self, hidden: torch.Tensor, drawn: DrawnRows) -> list[tuple[list[SequenceState], HostCopy]]:
        """Have the device sample rows, a chunk of logits at a time. The tokens stay there for the next step.

        Returns:
            the sequences and their tokens, on the way here.
        """
        copies = []
        for chunk in drawn.chunks(self._logits_rows):
            logits = self.model.logits(hidden[chunk.hidden_rows])
            assert logits is not None, "a device that samples has all scores"
            tokens = self.ops.sample(logits, chunk.params)
            self.inputs.device_tokens.keep(chunk.rows, tokens)
            copies.append((chunk.states, HostCopy(tokens)))
        return copies

    def _finish(self, batch: Batch, result: StepResult, drawn: list[tuple[list[SequenceState], HostCopy]]) -> StepResult:
        """Wait for the tokens that the device samples and put them beside those that the host has sampled."""
        mixed = bool(result.sampled and drawn)
        for states, copy in drawn:
            tokens = copy.wait()
            for state, token in zip(states, tokens, strict=True):
                self.inputs.settle(state, token)
            result.sampled += [SampledToken(state.seq_id, token) for state, token in zip(states, tokens, strict=True) if token >= 0]
            wrong = [row for row, token in enumerate(tokens) if token < 0]
            if wrong:
                logger.error("%s", InvalidLogitsError(wrong))
                result.failed += [states[row].seq_id for row in wrong]
        if mixed:
            place = {entry.seq_id: index for index, entry in enumerate(batch.scheduled)}
            result.sampled.sort(key=lambda entry: place[entry.seq_id])
        return result

    def _sample(self, hidden: torch.Tensor, step: StepInputs) -> StepResult:
        """Sample the rows that are the host's, a chunk of logits at a time.

        Returns:
            the tokens, the sequences that are complete, and those whose logits are not numbers or whose grammar failed: one
            sequence's damage must not end the others.
        """
        result = StepResult([])
        for begin in range(0, len(step.states), LOGITS_ROWS):
            chunk = slice(begin, begin + LOGITS_ROWS)
            logits = self.model.logits(hidden[torch.tensor(step.sample_rows[chunk], device=self.torch_device)])
            if logits is None or not self.samples:
                continue
            sampled = sample_what_can(logits, step.states[chunk])
            result.failed += sampled.failed
            result.reasons |= sampled.reasons
            for state, (token, logprobs) in sampled.tokens:
                state.append(token)
                result.sampled.append(SampledToken(state.seq_id, token, logprobs))
                if state.grammar is not None and state.grammar.complete:
                    result.complete.append(state.seq_id)
        grammars = [state.grammar for state in step.states if state.grammar is not None]
        self.inputs.grammars.prepare([grammar for grammar in grammars if grammar.ahead and not grammar.complete])
        return result

    def _prompt_logprobs(self, hidden: torch.Tensor, scheduled: list[ScheduledSequence]) -> dict[int, list[TokenLogprobs]]:
        results: dict[int, list[TokenLogprobs]] = {}
        if not self.inputs.scored:
            return results
        row = 0
        for entry in scheduled:
            state = self.inputs.states[entry.seq_id]
            wanted = state.params.prompt_logprobs
            last = min(entry.num_computed + entry.num_tokens, state.num_prompt_tokens - 1)
            if wanted is not None and entry.num_computed < last:
                results[entry.seq_id] = self._score_prompt(hidden, row, state.token_ids[entry.num_computed + 1 : last + 1].tolist(), wanted)
            row += entry.num_tokens
        return results

    def _score_prompt(self, hidden: torch.Tensor, row: int, next_ids: list[int], count: int) -> list[TokenLogprobs]:
        scored: list[TokenLogprobs] = []
        for begin in range(0, len(next_ids), LOGITS_ROWS):
            chunk = next_ids[begin : begin + LOGITS_ROWS]
            logits = self.model.logits(hidden[row + begin : row + begin + len(chunk)])
            if logits is not None and self.samples:
                scored += prompt_logprobs(logits, chunk, count)
        return scored
