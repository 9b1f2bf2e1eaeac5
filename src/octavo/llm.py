"""Offline inference: the engine in this process, no server, results in the order of the prompts."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, overload

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from octavo.config import engine_options
from octavo.engine.core import EngineCore
from octavo.engine.messages import AbortSequences, Call, StepOutput
from octavo.errors import ConfigError, EngineDeadError, InvalidRequestError
from octavo.frontend.beam_search import BeamSearch, step_params
from octavo.frontend.beam_types import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
from octavo.frontend.chat_template import require_chat_template
from octavo.frontend.input_processor import Ask, InputProcessor, PreparedRequest, unwrap_prompt
from octavo.frontend.output_processor import OutputCollector, OutputProcessor
from octavo.frontend.outputs import RequestOutput
from octavo.frontend.served_model import load_served_model
from octavo.frontend.tokenizer import Tokenizer
from octavo.models.hub import resolve
from octavo.sampling_params import SamplingParams

PromptLike = str | Sequence[int] | Mapping[str, Any]
"""A string, token ids, ``{"prompt": ...}`` or ``{"prompt_token_ids": ...}``."""

Conversation = list[dict[str, Any]]
"""Chat messages: ``{"role": ..., "content": ...}`` and what else the chat template knows."""

_SHOW_EVERY_SECONDS = 0.1


class LLM:
    """A model, loaded and ready to generate. Use it from one thread at a time.

    Args:
        model: a directory, a GGUF file or a Hugging Face repository id; the embedded default when omitted.
        options: the server's engine flags, with underscores (``max_model_len=``, ``kv_cache_memory_bytes=``, ``dtype=``, ...).

    Raises:
        TypeError: an option that does not exist.
        ConfigError, ModelLoadError, MemoryPlanError: what cannot be honoured, read or fitted.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self._options = engine_options(model=model, **options)
        if self._options.device.data_parallel_size != 1:
            raise ConfigError("data_parallel_size: an LLM runs one engine; several side by side are a server's, or an AsyncLLM's.")
        files = resolve(self._options.model.model, self._options.model.revision)
        with ThreadPoolExecutor(1) as pool:  # the small files are read while the weights load
            reading = pool.submit(load_served_model, self._options.model, files)
            self._engine = EngineCore(self._options, files)
            served = reading.result()
        self._model = dataclasses.replace(served, max_model_len=self._engine.ready.max_model_len)
        self._inputs = InputProcessor(self._model, self._options)
        self._counter = itertools.count()
        self._knows_vocabulary = False
        self._dead: str | None = None

    # ---- generation --------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts.

        Args:
            prompts: one prompt or several: strings, lists of token ids, ``{"prompt": ...}`` or ``{"prompt_token_ids": ...}``.
            sampling_params: for all, or one each; the model's own defaults when omitted.
            use_tqdm: show a progress bar on standard error.
            priority: one each (smaller runs earlier), under ``scheduling_policy="priority"``.

        Returns:
            One output a prompt, in their order. A sequence the engine could not run has the finish reason ``error`` and says why in
            ``stop_reason``.

        Raises:
            InvalidRequestError: something is wrong with one of them; none has been started then.
            EngineDeadError: the engine failed, in this call or before.
            KeyboardInterrupt: Ctrl-C ends the running step's work; the object stays usable.
        """
        listed = _as_list(prompts)
        requests = self._prepare([unwrap_prompt(prompt) for prompt in listed], sampling_params, priority, add_special_tokens=True)
        return self._run(requests, use_tqdm)

    def chat(
        self,
        messages: Conversation | list[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answer conversations through the model's chat template.

        Args:
            messages: one conversation or several.
            sampling_params, use_tqdm, priority: see ``generate``.
            add_generation_prompt: end the prompt with the opening of the model's turn.
            continue_final_message: leave the last message open for the model to go on with; needs ``add_generation_prompt=False``.
            tools: descriptions of functions, for templates that know them.
            chat_template_kwargs: further variables for the template.

        Raises:
            InvalidRequestError: the model has no chat template, or a conversation is malformed; see also ``generate``.
        """
        template = require_chat_template(self._model.chat_template)
        texts = [
            template.render(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **(chat_template_kwargs or {}),
            )
            for conversation in _conversations(messages)
        ]
        return self._run(self._prepare(texts, sampling_params, priority, add_special_tokens=False), use_tqdm)

    def beam_search(self, prompts: PromptLike | Sequence[PromptLike], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """Find the likeliest continuations of prompts.

        Args:
            prompts: as ``generate`` takes them.
            params: how to search, for all.

        Returns:
            One output a prompt, in their order, with ``beam_width`` beams each, best first.

        Raises:
            InvalidRequestError, EngineDeadError, KeyboardInterrupt: as ``generate``.
        """
        wanted, config = params.sampling_params(), self._model.config
        listed = [unwrap_prompt(prompt) for prompt in _as_list(prompts)]
        requests = self._prepare(listed, wanted, None, add_special_tokens=True)
        searches: list[BeamSearch] = []
        for request in requests:
            most = request.message.params.max_tokens or 1
            searches.append(BeamSearch(wanted, params.length_penalty, most, config.eos_token_ids, config.vocab_size))
        while live := [(search, request) for search, request in zip(searches, requests, strict=True) if not search.done]:
            self._beam_step(live, wanted)
        return [self._beam_output(search, request) for search, request in zip(searches, requests, strict=True)]

    def _beam_step(self, live: list[tuple[BeamSearch, PreparedRequest]], wanted: SamplingParams) -> None:
        """One step of all searches, their beams side by side."""
        prompts: list[str | list[int]] = []
        for search, request in live:
            prompts.extend([*request.prompt_token_ids, *beam.token_ids] for beam in search.live)
        steps = step_params(wanted, live[0][0].num_logprobs)
        outputs = iter(self._run(self._prepare(prompts, steps, None, add_special_tokens=False), show=False))
        for search, _ in live:
            found = []
            for _ in search.live:
                sequence = next(outputs).outputs[0]
                if not sequence.logprobs:
                    raise EngineDeadError(f"The engine could not run a beam: {sequence.stop_reason or sequence.finish_reason}.")
                found.append(sequence.logprobs[0])
            search.advance(found)

    def _beam_output(self, search: BeamSearch, request: PreparedRequest) -> BeamSearchOutput:
        sequences = []
        for beam in search.best():
            tokens = [*request.prompt_token_ids, *search.shown_tokens(beam)]
            text = self._model.tokenizer.decode(tokens)
            sequences.append(BeamSearchSequence(tokens, text, beam.logprob, list(beam.positions), *search.finish_reason(beam)))
        return BeamSearchOutput(sequences)

    def _prepare(
        self,
        prompts: Sequence[str | list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        *,
        add_special_tokens: bool,
    ) -> list[PreparedRequest]:
        if params is None:
            params = self.get_default_sampling_params()
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        priorities = [0] * len(prompts) if priority is None else priority
        for name, values in (("sampling_params", every), ("priority", priorities)):
            if len(values) != len(prompts):
                raise InvalidRequestError(f"{name} has {len(values)} entries for {len(prompts)} prompts.", name)
        asks = [Ask(str(next(self._counter)), prompt, one, rank) for prompt, one, rank in zip(prompts, every, priorities, strict=True)]
        return self._inputs.process(asks, add_special_tokens=add_special_tokens)

    def _run(self, requests: list[PreparedRequest], show: bool) -> list[RequestOutput]:
        """Put requests through the engine, step by step."""
        if self._dead is not None:
            raise EngineDeadError(f"This LLM cannot be used any more: {self._dead}. Make a new one.")
        with _interrupt_between_steps() as interrupted, _Bar(show, requests) as bar:
            self._tell_vocabulary(requests)
            run = _Run(self._engine, requests, self._model.tokenizer)
            try:
                while not run.done:
                    output = self._step()
                    run.take(output)
                    bar.update(output, run)
                    if interrupted:
                        raise KeyboardInterrupt
            except BaseException:
                if self._dead is None:
                    run.abort()
                raise
        return run.outputs()

    def _tell_vocabulary(self, requests: list[PreparedRequest]) -> None:
        """Once, before the first request whose output has to have a form."""
        if not self._knows_vocabulary and any(request.params.structured_outputs is not None for request in requests):
            self._engine.handle(self._inputs.vocabulary())
            self._knows_vocabulary = True

    def _step(self) -> StepOutput:
        """One step. Whatever goes wrong in it leaves the engine in a state that nobody can vouch for."""
        try:
            output = self._engine.step()
        except BaseException as error:
            self._dead = f"a step failed with {type(error).__name__}: {error}"
            raise
        if output is None:
            self._dead = "requests wait, and the engine can run none of them"
            raise EngineDeadError(f"Bug in the engine: {self._dead}.")
        return output

    # ---- all else ----------------------------------------------------------------------------------------------------

    @overload
    def encode(self, prompts: str, *, add_special_tokens: bool = True) -> list[int]: ...
    @overload
    def encode(self, prompts: list[str], *, add_special_tokens: bool = True) -> list[list[int]]: ...
    def encode(self, prompts: str | list[str], *, add_special_tokens: bool = True) -> list[int] | list[list[int]]:
        """Tokenise, as ``generate`` would (this is no embedding: Octavo's models generate).

        Returns:
            The token ids of a string, or a list of them for several strings.
        """
        if isinstance(prompts, str):
            return self._model.tokenizer.encode(prompts, add_special_tokens=add_special_tokens)
        return self._model.tokenizer.encode_batch(prompts, add_special_tokens=add_special_tokens)

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._model.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What ``generate`` uses where no parameters are given: Octavo's defaults under the model's own."""
        return SamplingParams(**self._model.sampling_defaults)

    def get_metrics(self) -> dict[str, Any]:
        """The engine's state after its last step; the keys are the fields of ``octavo.engine.messages.EngineStats``."""
        return msgspec.structs.asdict(self._engine.stats)

    def reset_prefix_cache(self) -> bool:
        """Forget all shared pages; False when some are in use, and nothing was forgotten."""
        result = self._engine.handle(Call(0, "reset_prefix_cache"))
        return result is not None and bool(result.value)

    def shutdown(self) -> None:
        """Free the model and its pages; the object cannot be used after. Idempotent."""
        if self._dead is None:
            self._dead = "it was shut down"
        self._engine.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()


@dataclass(slots=True, eq=False)
class _Job:
    """One request of a run."""

    processor: OutputProcessor
    collector: OutputCollector


class _Run:
    """One call's requests on their way through the engine."""

    def __init__(self, engine: EngineCore, requests: list[PreparedRequest], tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._jobs = {request.message.request_id: _job(request, tokenizer) for request in requests}
        self._live = dict(self._jobs)
        for request in requests:
            engine.handle(request.message)

    @property
    def done(self) -> bool:
        return not self._live

    @property
    def num_finished(self) -> int:
        return len(self._jobs) - len(self._live)

    def take(self, output: StepOutput) -> None:
        """Take in a step's news."""
        for update in output.updates:
            job = self._live.get(update.request_id)
            if job is None:
                continue
            delta = job.processor.update(update)
            if delta is not None:
                job.collector.add(delta)
            stopped = job.processor.take_stopped()
            if stopped:
                self._engine.handle(AbortSequences(update.request_id, stopped))
            if job.processor.finished:
                del self._live[update.request_id]

    def abort(self) -> None:
        """Make the engine forget what still runs."""
        for request_id in self._live:
            self._engine.handle(AbortSequences(request_id))
        self._live.clear()

    def outputs(self) -> list[RequestOutput]:
        return [job.collector.output() for job in self._jobs.values()]


def _job(request: PreparedRequest, tokenizer: Tokenizer) -> _Job:
    request_id, params = request.message.request_id, request.params
    collector = OutputCollector(request_id, request.prompt, request.prompt_token_ids, params.n, params.logprobs is not None)
    return _Job(OutputProcessor(request, request_id, tokenizer, stream=False), collector)


class _Bar:
    """The progress bar of a run, or nothing where none is wanted."""

    def __init__(self, show: bool, requests: list[PreparedRequest]) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not show)
        self._show = show
        self._task = self._progress.add_task("Prompts", total=len(requests), speed="")
        self._num_prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self._num_tokens = 0
        self._begin = self._shown = time.perf_counter()

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, output: StepOutput, run: _Run) -> None:
        """Count a step; redraw now and then, and at the end."""
        if not self._show:
            return
        self._num_tokens += sum(len(update.token_ids) for update in output.updates)
        now = time.perf_counter()
        if run.done or now - self._shown >= _SHOW_EVERY_SECONDS:
            self._shown = now
            speed = f"{self._num_tokens / max(now - self._begin, 1e-9):.1f} output tokens/s"
            self._progress.update(self._task, completed=run.num_finished, speed=speed)


@contextmanager
def _interrupt_between_steps() -> Iterator[list[int]]:
    """Hold Ctrl-C back until a step is over, so that the engine is never left half-way.

    Yields:
        a list that is no longer empty once Ctrl-C came. Where the program handles SIGINT itself, or outside the main thread,
        nothing is held back.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield caught
        return

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _as_list(prompts: PromptLike | Sequence[PromptLike]) -> list[Any]:
    """Several prompts as they are; one prompt as a list of one."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts and all(isinstance(entry, int) for entry in prompts):
        return [prompts]
    return list(prompts)


def _conversations(messages: Conversation | list[Conversation]) -> list[Conversation]:
    """Several conversations as they are; one as a list of one."""
    several = [entry for entry in messages if isinstance(entry, list)]
    one = [entry for entry in messages if isinstance(entry, dict)]
    if not messages or (several and one) or len(several) + len(one) != len(messages):
        raise InvalidRequestError("messages must be a list of message dictionaries, or a list of such lists, and not empty.", "messages")
    return several or [one]
