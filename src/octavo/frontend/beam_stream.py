"""A beam search as a request that the server can follow: submitted, read and aborted as any other, run as many small ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.engine.messages import AddRequest, RequestTimes
from octavo.frontend.beam_search import BeamSearch, step_params
from octavo.frontend.input_processor import PreparedRequest, Prompt, num_prompt_tokens_kept, resolve_max_tokens
from octavo.frontend.outputs import PositionLogprobs, RequestDelta, RequestOutput, SequenceDelta
from octavo.frontend.request_stream import DeltaChannel, RequestStream
from octavo.request import FinishReason
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from octavo.frontend.client import EngineClient


async def submit_beams(
    client: EngineClient,
    prompt: Prompt,
    params: SamplingParams,
    length_penalty: float,
    *,
    request_id: str,
    priority: int = 0,
    cache_salt: str = "",
    add_special_tokens: bool = True,
) -> RequestStream:
    """Begin a beam search; returns once its first step is submitted.

    Args:
        client: whose model is known.
        params: ``n`` is the width; see ``BeamSearch`` for what else counts.
        length_penalty: see ``BeamSearch``.
        request_id, priority, cache_salt, add_special_tokens: as ``EngineClient.submit`` takes them.

    Returns:
        A stream with one delta, which holds all beams, best first; dropped or aborted, it takes the whole search with it.

    Raises:
        InvalidRequestError, QueueFullError, NotReadyError: as ``EngineClient.submit``.
    """
    assert client.model is not None
    model = client.model
    vocab_size, eos_token_ids = model.config.vocab_size, model.config.eos_token_ids
    trial = BeamSearch(params, length_penalty, 1, eos_token_ids, vocab_size)  # refuses what cannot be searched before anything runs
    first_params = msgspec.structs.replace(
        step_params(params, trial.num_logprobs),
        stop_token_ids=params.stop_token_ids,  # checked against the vocabulary there
        prompt_logprobs=params.prompt_logprobs,
        truncate_prompt_tokens=num_prompt_tokens_kept(model.max_model_len, params),
    )
    placing: dict[str, Any] = {"priority": priority, "cache_salt": cache_salt}
    first = await client.submit(prompt, first_params, request_id=f"{request_id}.0.0", add_special_tokens=add_special_tokens, **placing)
    try:
        max_tokens = resolve_max_tokens(model.max_model_len, len(first.prompt_token_ids), params)
    except BaseException:
        first.abort()
        raise
    search = BeamSearch(params, length_penalty, max_tokens, eos_token_ids, vocab_size)
    run = _Run(client, search, params, request_id, placing, first)
    request = PreparedRequest(first.prompt, params, AddRequest(request_id, first.prompt_token_ids, params, seed=0))
    return RequestStream(request_id, request, run.channel, run.abort, first.engine)


class _Run:
    """One search under way; its own task drives it, and is the only thing that holds it."""

    def __init__(
        self,
        client: EngineClient,
        search: BeamSearch,
        params: SamplingParams,
        request_id: str,
        placing: dict[str, Any],
        first: RequestStream,
    ) -> None:
        self.channel = DeltaChannel()
        self._client = client
        self._search = search
        self._params = params
        self._request_id = request_id
        self._placing = placing
        self._prompt_token_ids = first.prompt_token_ids
        self._streams = [first]
        self._first: RequestOutput | None = None
        self._times = RequestTimes(0.0, 0.0, 0.0, 0.0)
        self._task = asyncio.create_task(self._drive(), name=f"octavo-beams-{request_id}")

    def abort(self) -> None:
        """End the search now, with all that the engine still runs for it."""
        if self.channel.closed:
            return
        self._task.cancel()
        self._drop_streams()
        self._end_all(FinishReason.ABORT.value, None)

    async def _drive(self) -> None:
        try:
            with self._client.holding():
                while (found := await self._read_step()) is not None:
                    self._search.advance(found)
                    if self._search.done:
                        self._finish()
                        return
                    await self._submit_step()
        except Exception as error:
            if not self.channel.closed:
                self.channel.fail(error)
        finally:
            self._drop_streams()

    async def _submit_step(self) -> None:
        search, self._streams = self._search, []
        step = len(search.live[0].token_ids)
        params = step_params(self._params, search.num_logprobs)
        for index, beam in enumerate(search.live):
            token_ids = [*self._prompt_token_ids, *beam.token_ids]
            name = f"{self._request_id}.{step}.{index}"
            self._streams.append(await self._client.submit(token_ids, params, request_id=name, admitted=True, **self._placing))

    async def _read_step(self) -> list[PositionLogprobs] | None:
        """The candidates after each live beam; None where the engine did not get to them, and the readers have been told."""
        found: list[PositionLogprobs] = []
        for stream in self._streams:
            collector = stream.collector()
            async for delta in stream:
                collector.add(delta)
            output = collector.output()
            (sequence,) = output.outputs
            if not sequence.logprobs:
                self._end_all(sequence.finish_reason or FinishReason.ABORT.value, sequence.stop_reason)
                return None
            found.append(sequence.logprobs[0])
            self._count(output)
        return found

    def _count(self, output: RequestOutput) -> None:
        self._first = self._first or output
        if output.times is not None:
            before = self._times
            self._times = (
                output.times
                if not before.arrival
                else RequestTimes(
                    before.arrival,
                    before.first_scheduled,
                    before.first_token,
                    output.times.finished,
                    before.num_preemptions + output.times.num_preemptions,
                )
            )

    def _finish(self) -> None:
        assert self._first is not None and self._client.model is not None
        tokenizer = self._client.model.tokenizer
        beams = self._search.best()
        sequences = [self._search.delta(index, beam, tokenizer, self._prompt_token_ids) for index, beam in enumerate(beams)]
        discarded = self._search.num_tokens - sum(len(beam.token_ids) for beam in beams)
        delta = RequestDelta(self._request_id, sequences, self._first.prompt_logprobs, self._first.num_cached_tokens, True, self._times)
        delta.num_discarded_tokens = max(0, discarded)
        self.channel.put(delta)

    def _end_all(self, finish_reason: str, stop_reason: int | str | None) -> None:
        if not self.channel.closed:
            sequences = [SequenceDelta(index, "", [], None, finish_reason, stop_reason) for index in range(self._params.n)]
            self.channel.put(RequestDelta(self._request_id, sequences, finished=True, times=None))

    def _drop_streams(self) -> None:
        for stream in self._streams:
            stream.abort()
