"""From what the engine says of a request to what its client reads: text, stop strings, log probabilities, the best of several."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from octavo.batch import TokenLogprobs
from octavo.engine.messages import RequestTimes, SequenceUpdate
from octavo.frontend.input_processor import PreparedRequest
from octavo.frontend.outputs import CompletionOutput, Logprob, PositionLogprobs, RequestDelta, RequestOutput, SequenceDelta
from octavo.frontend.stop_strings import SequenceText
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import FinishReason
from octavo.sampling_params import SamplingParams

_ENDED_BY_TOKEN = FinishReason.STOP.value
_ABORTED = FinishReason.ABORT.value
_FAILED = FinishReason.ERROR.value


class OutputProcessor:
    """One request's state between the engine's updates and the client's deltas.

    Args:
        request: the request as it went to the engine.
        request_id: the client's name for it, which the deltas carry.
        tokenizer: the model's.
        stream: False when only the end counts: text is then made once, at each sequence's end (stop strings still end it early).

    With ``best_of > n`` everything is held until the last sequence ends; the one delta then has the ``n`` best as 0 .. n-1.
    """

    def __init__(self, request: PreparedRequest, request_id: str, tokenizer: Tokenizer, *, stream: bool = True) -> None:
        params = request.params
        self._request_id = request_id
        self._params = params
        self._token_text = tokenizer.token_text
        self._arrival = request.message.arrival_time
        self._times: RequestTimes | None = None
        self._num_cached_tokens = 0
        waits = not stream and not params.stop
        self._sequences = {index: _SequenceState(index, request, tokenizer, waits=waits) for index in range(params.num_sequences)}
        self._live = set(self._sequences)
        self._held: OutputCollector | None = None
        if params.num_sequences > params.n:
            self._held = OutputCollector(request_id, request.prompt, request.prompt_token_ids, params.num_sequences, wants_logprobs=True)
        self._stopped: list[int] = []

    @property
    def finished(self) -> bool:
        """All sequences have ended."""
        return not self._live

    def take_stopped(self) -> list[int]:
        """Sequences ended here since the last call that the engine still runs; tell it with ``AbortSequences``."""
        stopped, self._stopped = self._stopped, []
        return stopped

    def update(self, update: SequenceUpdate) -> RequestDelta | None:
        """Take in one update.

        Returns:
            What the client can read of it; None when that is nothing yet. Updates of sequences that have ended are ignored.
        """
        if update.times is not None:
            self._times = update.times
        if update.index not in self._live:
            return None
        if update.index == 0:  # the first computes the prompt for all; what the others save is its work, not the cache's
            self._num_cached_tokens = update.num_cached_tokens
        if update.finish_reason == _FAILED:
            self._stopped.extend(sorted(self._live - {update.index}))
            return self._end_all(_FAILED, update.stop_reason)
        delta = self._sequences[update.index].push(update, self._token_text)
        prompt_logprobs = self._prompt_logprobs(update)
        if delta is not None and delta.finish_reason is not None:
            self._live.discard(update.index)
            if update.finish_reason is None:
                self._stopped.append(update.index)
        if delta is None and prompt_logprobs is None:
            return None
        return self._deliver([delta] if delta is not None else [], prompt_logprobs)

    def abort(self) -> RequestDelta:
        """End every sequence that still runs, as aborted; text held back for a possible stop string is let go."""
        return self._end_all(_ABORTED, None)

    def _end_all(self, finish_reason: str, stop_reason: int | str | None) -> RequestDelta:
        deltas = [self._sequences[index].end(finish_reason, stop_reason, self._token_text) for index in sorted(self._live)]
        self._live.clear()
        return self._deliver(deltas, None) or RequestDelta(self._request_id, finished=True)

    def _deliver(self, sequences: list[SequenceDelta], prompt_logprobs: list[PositionLogprobs | None] | None) -> RequestDelta | None:
        finished = not self._live
        times = self._final_times() if finished else None
        delta = RequestDelta(self._request_id, sequences, prompt_logprobs, self._num_cached_tokens, finished, times)
        if self._held is None:
            return delta
        self._held.add(delta)
        return _best(self._held.output(), self._params, delta) if finished else None

    def _prompt_logprobs(self, update: SequenceUpdate) -> list[PositionLogprobs | None] | None:
        if update.prompt_logprobs is None or self._params.prompt_logprobs is None:
            return None
        positions: list[PositionLogprobs | None] = [None]
        positions.extend(position_logprobs(entry, self._token_text) for entry in update.prompt_logprobs)
        return positions

    def _final_times(self) -> RequestTimes:
        """The engine's, where it ended the request; what is known of them, where a stop string or an abort did."""
        now = time.monotonic()
        if self._times is None:
            return RequestTimes(self._arrival, 0.0, 0.0, now)
        if not self._times.finished:
            self._times.finished = now
        return self._times


class _SequenceState:
    """One sequence: its text so far, and what waits to be made text."""

    def __init__(self, index: int, request: PreparedRequest, tokenizer: Tokenizer, *, waits: bool) -> None:
        params = request.params
        self._index = index
        self._has_form = params.structured_outputs is not None
        self._eos_token_ids = request.message.eos_token_ids
        self._waits = waits
        self._wants_logprobs = params.logprobs is not None or params.num_sequences > params.n
        self._text = SequenceText(tokenizer, params, request.prompt_token_ids)
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    def push(self, update: SequenceUpdate, token_text: Callable[[int], str]) -> SequenceDelta | None:
        """Take in an update; None when there is nothing to show for it yet."""
        if self._waits and update.finish_reason is None:
            self._token_ids.extend(update.token_ids)
            if update.logprobs is not None:
                self._logprobs.extend(update.logprobs)
            return None
        token_ids, logprobs = update.token_ids, update.logprobs or []
        if self._token_ids:
            token_ids, logprobs = self._token_ids + token_ids, self._logprobs + logprobs
            self._token_ids, self._logprobs = [], []
        return self._delta(token_ids, logprobs, update.finish_reason, update.stop_reason, token_text)

    def end(self, finish_reason: str, stop_reason: int | str | None, token_text: Callable[[int], str]) -> SequenceDelta:
        """The last delta of a sequence that the engine did not end itself."""
        return self._delta(self._token_ids, self._logprobs, finish_reason, stop_reason, token_text)

    def _delta(
        self,
        token_ids: list[int],
        logprobs: list[TokenLogprobs],
        finish_reason: str | None,
        stop_reason: int | str | None,
        token_text: Callable[[int], str],
    ) -> SequenceDelta:
        by_token = finish_reason == _ENDED_BY_TOKEN
        if self._has_form and stop_reason is None and token_ids and token_ids[-1] not in self._eos_token_ids:
            by_token = False  # its form was complete: the last token is text
        text, num_tokens_used, stop = self._text.push(token_ids, finish_reason is not None, by_token)
        if stop is not None:
            finish_reason, stop_reason = FinishReason.STOP.value, stop
            token_ids, logprobs = token_ids[:num_tokens_used], logprobs[:num_tokens_used]
        positions = [position_logprobs(entry, token_text) for entry in logprobs] if self._wants_logprobs else None
        return SequenceDelta(self._index, text, token_ids, positions, finish_reason, stop_reason)


def position_logprobs(entry: TokenLogprobs, token_text: Callable[[int], str]) -> PositionLogprobs:
    """The engine's figures of one position as the public type: the token that stands there first, then the likeliest by rank."""
    chosen = entry.token_ids[0]
    position = {chosen: Logprob(entry.logprobs[0], entry.rank, token_text(chosen))}
    for rank, (token, logprob) in enumerate(zip(entry.token_ids[1:], entry.logprobs[1:], strict=True), 1):
        if token != chosen:
            position[token] = Logprob(logprob, rank, token_text(token))
    return position


def _best(output: RequestOutput, params: SamplingParams, last: RequestDelta) -> RequestDelta:
    """The ``n`` sequences with the highest mean log probability, best first, as the one delta of a ``best_of`` request."""

    def mean_logprob(sequence: CompletionOutput) -> float:
        if not sequence.token_ids or sequence.cumulative_logprob is None:
            return float("-inf")
        return sequence.cumulative_logprob / len(sequence.token_ids)

    ranked = sorted(output.outputs, key=mean_logprob, reverse=True)[: params.n]
    sequences = [
        SequenceDelta(
            index,
            sequence.text,
            sequence.token_ids,
            sequence.logprobs if params.logprobs is not None else None,
            sequence.finish_reason,
            sequence.stop_reason,
        )
        for index, sequence in enumerate(ranked)
    ]
    discarded = sum(len(sequence.token_ids) for sequence in output.outputs) - sum(len(sequence.token_ids) for sequence in sequences)
    return RequestDelta(last.request_id, sequences, output.prompt_logprobs, output.num_cached_tokens, True, last.times, discarded)


def merge_deltas(deltas: list[RequestDelta]) -> RequestDelta:
    """Several deltas of one request, in order, as one that says the same. At least one is needed; the given ones are left alone."""
    if len(deltas) == 1:
        return deltas[0]
    merged = RequestDelta(deltas[0].request_id)
    parts: dict[int, list[SequenceDelta]] = {}
    for delta in deltas:
        merged.prompt_logprobs = delta.prompt_logprobs or merged.prompt_logprobs
        merged.num_cached_tokens = max(merged.num_cached_tokens, delta.num_cached_tokens)
        merged.finished = merged.finished or delta.finished
        merged.times = delta.times or merged.times
        merged.num_discarded_tokens += delta.num_discarded_tokens
        for sequence in delta.sequences:
            parts.setdefault(sequence.index, []).append(sequence)
    merged.sequences = [_merge_sequences(parts[index]) for index in sorted(parts)]
    return merged


def _merge_sequences(parts: list[SequenceDelta]) -> SequenceDelta:
    last = parts[-1]
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    return SequenceDelta(
        last.index,
        "".join(part.text for part in parts),
        [token for part in parts for token in part.token_ids],
        [position for some in logprobs for position in some] if logprobs else None,
        last.finish_reason,
        last.stop_reason,
    )


class OutputCollector:
    """Folds a request's deltas into its ``RequestOutput``.

    Args:
        request_id, prompt, prompt_token_ids: of the request, as the output shows them.
        num_sequences: how many outputs there are (``params.n``).
        wants_logprobs: whether each has log probabilities (``params.logprobs is not None``).
    """

    def __init__(self, request_id: str, prompt: str | None, prompt_token_ids: list[int], num_sequences: int, wants_logprobs: bool) -> None:
        self._outputs = [
            CompletionOutput(index, "", [], 0.0 if wants_logprobs else None, [] if wants_logprobs else None)
            for index in range(num_sequences)
        ]
        self._texts: list[list[str]] = [[] for _ in range(num_sequences)]
        self._output = RequestOutput(request_id, prompt, prompt_token_ids, self._outputs)

    def add(self, delta: RequestDelta) -> None:
        """Take in the next delta."""
        output = self._output
        output.finished = output.finished or delta.finished
        output.prompt_logprobs = delta.prompt_logprobs or output.prompt_logprobs
        output.num_cached_tokens = max(output.num_cached_tokens, delta.num_cached_tokens)
        output.times = delta.times or output.times
        for news in delta.sequences:
            sequence = self._outputs[news.index]
            self._texts[news.index].append(news.text)
            sequence.token_ids.extend(news.token_ids)
            if news.logprobs and sequence.logprobs is not None:
                sequence.logprobs.extend(news.logprobs)
                chosen = (next(iter(position.values())).logprob for position in news.logprobs)
                sequence.cumulative_logprob = (sequence.cumulative_logprob or 0.0) + sum(chosen)
            if news.finish_reason is not None:
                sequence.finish_reason, sequence.stop_reason = news.finish_reason, news.stop_reason

    def output(self) -> RequestOutput:
        """All taken in so far; later deltas do not change what was returned."""
        for sequence, parts in zip(self._outputs, self._texts, strict=True):
            if parts:
                sequence.text += "".join(parts)
                parts.clear()
        outputs = [
            replace(
                sequence,
                token_ids=list(sequence.token_ids),
                logprobs=None if sequence.logprobs is None else list(sequence.logprobs),
            )
            for sequence in self._outputs
        ]
        return replace(self._output, outputs=outputs)
