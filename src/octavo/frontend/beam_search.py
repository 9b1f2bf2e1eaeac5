"""Beam search: the likeliest continuations of a prompt, found step by step from the likeliest tokens after each of a few beams.

``BeamSearch`` is the search alone and runs nothing. Who drives it (``beam_stream.py`` for the server, ``LLM.beam_search``) has the engine
run each live beam for one token with log probabilities, and hands those back. The prefix cache keeps a step's cost near that of one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import InvalidRequestError
from octavo.frontend.outputs import PositionLogprobs, SequenceDelta
from octavo.frontend.stop_strings import SequenceText
from octavo.frontend.tokenizer import Tokenizer
from octavo.request import FinishReason
from octavo.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Beam:
    """One continuation of the prompt.

    Attributes:
        token_ids: the tokens after the prompt, the end token included.
        logprob: the sum of their log probabilities.
        positions: the candidates at each of them, the token that stands there first.
        end_token: the end or stop token it ended with, None where it did not end.
    """

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    positions: tuple[PositionLogprobs, ...] = ()
    end_token: int | None = None

    def score(self, length_penalty: float) -> float:
        """Its log probability over its length to the power of ``length_penalty``; the end token counts in the length."""
        return _score(self.logprob, len(self.token_ids), length_penalty)


class BeamSearch:
    """One prompt's search.

    At each step every live beam is extended by its ``2 * params.n`` likeliest tokens. Extensions that end are set aside; the
    ``params.n`` likeliest of the others live on. The search is over after ``max_tokens`` steps, or as soon as no live beam can become
    better than the worst of ``params.n`` that have ended. The result is what running on to ``max_tokens`` would give.

    Args:
        params: ``n`` is the width; ``stop_token_ids``, ``ignore_eos`` and ``logprobs`` are honoured.
        length_penalty: above 0 favours long answers (log probabilities are negative), below 0 short ones.
        max_tokens: most tokens of a beam, at least 1.
        eos_token_ids: the model's end tokens.
        vocab_size: of the model.

    Raises:
        InvalidRequestError: ``n`` exceeds the vocabulary.

    Attributes:
        live: the beams to be extended next; the first is the empty one.
        num_tokens: tokens of all beams kept so far, a step after the other.
    """

    def __init__(
        self, params: SamplingParams, length_penalty: float, max_tokens: int, eos_token_ids: Sequence[int], vocab_size: int
    ) -> None:
        if params.n > vocab_size:
            raise InvalidRequestError(f"n must not exceed the vocabulary's {vocab_size} tokens in a beam search; got {params.n}.", "n")
        self._params = params
        self._length_penalty = length_penalty
        self._max_tokens = max_tokens
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._ends = self._eos | frozenset(params.stop_token_ids)
        # Each beam has to find n successors even where its likeliest tokens are all end tokens.
        self._num_candidates = min(vocab_size, params.n + max(params.n, len(self._ends)))
        self._ended: list[Beam] = []
        self._length = 0
        self.live = [Beam()]
        self.num_tokens = 0

    @property
    def num_logprobs(self) -> int:
        """Log probabilities that ``advance`` needs for each live beam."""
        wanted = self._params.logprobs or 0
        return wanted if wanted == -1 else max(wanted, self._num_candidates)

    @property
    def done(self) -> bool:
        """Nothing that could still be found would change the result."""
        if not self.live or self._length == self._max_tokens:
            return True
        if len(self._ended) < self._params.n:
            return False
        return self._best_reachable() <= self._ended[-1].score(self._length_penalty)

    def advance(self, found: Sequence[PositionLogprobs]) -> None:
        """Take one step.

        Args:
            found: for each live beam the likeliest next tokens, at least ``num_logprobs`` of them (or the whole vocabulary).
        """
        extended: list[Beam] = []
        for beam, position in zip(self.live, found, strict=True):
            for token, entry in position.items():
                if entry.rank <= self._num_candidates:
                    extended.append(self._extend(beam, token, entry.logprob, position))
        ended = [beam for beam in extended if beam.end_token is not None]
        self.live = sorted((beam for beam in extended if beam.end_token is None), key=_by_logprob)[: self._params.n]
        self.num_tokens += len(ended) + len(self.live)
        self._ended = sorted(self._ended + ended, key=self._by_score)[: self._params.n]
        self._length += 1

    def best(self) -> list[Beam]:
        """The ``n`` beams with the highest scores, best first; call it once the search is ``done``."""
        whole = self.live if self._length == self._max_tokens else []  # of a search that ended early the live ones are unfinished
        return sorted(self._ended + whole, key=self._by_score)[: self._params.n]

    def _extend(self, beam: Beam, token: int, logprob: float, position: PositionLogprobs) -> Beam:
        positions = beam.positions
        if (top := self._params.logprobs) is not None:
            kept = {token: position[token]}
            kept |= {other: entry for other, entry in position.items() if other != token and (top == -1 or entry.rank <= top)}
            positions = (*positions, kept)
        return Beam((*beam.token_ids, token), beam.logprob + logprob, positions, token if token in self._ends else None)

    def _best_reachable(self) -> float:
        """A bound on the score of whatever comes of the live beams: their log probabilities cannot rise, their lengths can."""
        logprob = max(beam.logprob for beam in self.live)
        return max(_score(logprob, length, self._length_penalty) for length in (self._length + 1, self._max_tokens))

    def _by_score(self, beam: Beam) -> float:
        return -beam.score(self._length_penalty)

    # ---- the result --------------------------------------------------------------------------------------------------

    def finish_reason(self, beam: Beam) -> tuple[str, int | None]:
        """Why a beam of the result ended, and the stop token that did it where that is not the model's own end token."""
        if beam.end_token is None:
            return FinishReason.LENGTH.value, None
        return FinishReason.STOP.value, None if beam.end_token in self._eos else beam.end_token

    def shown_tokens(self, beam: Beam) -> tuple[int, ...]:
        """A beam's tokens, without the end token unless ``include_stop_str_in_output``."""
        return beam.token_ids[:-1] if beam.end_token is not None and not self._params.include_stop_str_in_output else beam.token_ids

    def delta(self, index: int, beam: Beam, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> SequenceDelta:
        """A beam of the result as the whole of sequence ``index``."""
        finish_reason, stop_reason = self.finish_reason(beam)
        token_ids = list(beam.token_ids)
        text = SequenceText(tokenizer, self._params, prompt_token_ids).push(token_ids, True, beam.end_token is not None).text
        positions = list(beam.positions) if self._params.logprobs is not None else None
        return SequenceDelta(index, text, token_ids, positions, finish_reason, stop_reason)


def step_params(params: SamplingParams, num_logprobs: int) -> SamplingParams:
    """What the engine is asked for a live beam: one token (of which only the log probabilities are used) and its rivals."""
    return SamplingParams(temperature=0.0, max_tokens=1, logprobs=num_logprobs, detokenize=False, ignore_eos=params.ignore_eos)


def _by_logprob(beam: Beam) -> float:
    return -beam.logprob


def _score(logprob: float, length: int, length_penalty: float) -> float:
    if logprob == 0.0:  # certain; also keeps 0 / 0 and 0 * inf out of extreme penalties
        return 0.0
    try:
        return float(logprob / length**length_penalty)
    except (OverflowError, ZeroDivisionError):
        return 0.0 if length_penalty > 0 else float("-inf")
