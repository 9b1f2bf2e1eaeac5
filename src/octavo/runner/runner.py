"""A worker's whole job: load the model, hold the page pool, turn a batch into tensors, run it, sample.

Device-neutral: the device's peculiarities are in ``runner/device.py`` and behind ``ops/``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.batch import Batch, SampledToken, ScheduledSequence, StepResult, TokenLogprobs
from octavo.config import EngineOptions
from octavo.errors import FormFailedError, InvalidLogitsError
from octavo.log import get_logger
from octavo.models.config import ModelConfig
from octavo.models.hub import ModelFiles
from octavo.models.loader import open_weights
from octavo.models.registry import build_model
from octavo.ops.base import KVShape
from octavo.ops.select import select_ops
from octavo.runner.device import Device
from octavo.runner.input_batch import InputBatch, StepInputs
from octavo.runner.memory_plan import LOGITS_ROWS, MemoryPlan
from octavo.sampling.logprobs import prompt_logprobs
from octavo.sampling.sampler import Sampler

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
    """

    def __init__(
        self, files: ModelFiles, config: ModelConfig, options: EngineOptions, plan: MemoryPlan, device: Device, progress: Progress
    ) -> None:
        device.prepare(options.device.threads)
        self.torch_device = torch.device(device.kind)
        self.config = config
        dtype: torch.dtype = getattr(torch, plan.dtype)
        self.ops = select_ops(self.torch_device, dtype, options.model.activation_bits)
        weights = open_weights(files, config, options.model.load_format, options.model.quantization)
        # Not under inference mode: loaders fill tensors from threads of their own, where that mode would not hold.
        self.model = build_model(config, weights, self.ops, plan.max_model_len, lambda fraction: progress("loading", fraction))
        self.pool = device.allocate_pool(plan.num_blocks, plan.block_bytes)
        shape = KVShape(config.num_layers, config.num_kv_heads, config.head_dim, plan.block_size, plan.kv_dtype)
        self.forward = self.ops.prepare_forward(self.model.forward, self.ops.kv_layers(self.pool, shape))
        self.inputs = InputBatch(
            plan.max_num_seqs, plan.max_model_len, plan.block_size, config.vocab_size, self.torch_device, device.cores_free
        )
        self.sampler = Sampler()

    @torch.inference_mode()
    def execute(self, batch: Batch) -> StepResult:
        """Run one step. The batch's sequences learn the tokens they sampled."""
        self.inputs.apply(batch)
        if batch.block_copies:
            self.ops.copy_blocks(self.pool, batch.block_copies)
        if not batch.scheduled:
            return StepResult([])
        step = self.inputs.prepare(batch.scheduled)
        hidden = self.forward(step.token_ids, step.attention)
        result = self._sample(hidden, step)
        result.prompt_logprobs = self._prompt_logprobs(hidden, batch.scheduled)
        return result

    def _sample(self, hidden: torch.Tensor, step: StepInputs) -> StepResult:
        """Sample the step's rows, a chunk of logits at a time.

        Returns:
            the tokens, the sequences that are complete, and those whose logits are not numbers or whose grammar failed: one
            sequence's damage must not end the others.
        """
        sampled: list[SampledToken] = []
        failed: list[int] = []
        reasons: dict[int, str] = {}
        complete: list[int] = []
        todo = list(zip(step.sample_rows, step.states, strict=True))
        while todo:
            chunk, todo = todo[:LOGITS_ROWS], todo[LOGITS_ROWS:]
            rows, states = torch.tensor([row for row, _ in chunk], device=self.torch_device), [state for _, state in chunk]
            try:
                tokens = self.sampler(self.model.logits(hidden[rows]), states)
            except InvalidLogitsError as error:
                logger.error("%s", error)
                at_fault = error.rows
            except FormFailedError as error:
                reasons |= {states[row].seq_id: reason for row, reason in error.reasons.items()}
                at_fault = list(error.reasons)
            else:
                for state, (token, logprobs) in zip(states, tokens, strict=True):
                    state.append(token)
                    sampled.append(SampledToken(state.seq_id, token, logprobs))
                    if state.grammar is not None and state.grammar.complete:
                        complete.append(state.seq_id)
                continue
            failed += [states[row].seq_id for row in at_fault]
            todo = [entry for row, entry in enumerate(chunk) if row not in at_fault] + todo
        grammars = [state.grammar for state in step.states if state.grammar is not None]
        self.inputs.grammars.prepare([grammar for grammar in grammars if grammar.ahead and not grammar.complete])
        return StepResult(sampled, {}, failed, reasons, complete)

    def _prompt_logprobs(self, hidden: torch.Tensor, scheduled: list[ScheduledSequence]) -> dict[int, list[TokenLogprobs]]:
        results: dict[int, list[TokenLogprobs]] = {}
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
            scored += prompt_logprobs(logits, chunk, count)
        return scored
