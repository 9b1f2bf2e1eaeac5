"""What the sampler keeps of one live sequence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from octavo.batch import NewSequence
from octavo.sampling.constraints import Constraints
from octavo.sampling.grammar import Grammars
from octavo.sampling.growing import GrowingArray
from octavo.sampling.penalties import TokenCounts, needs_counts
from octavo.sampling.random import uniform
from octavo.sampling_params import SamplingParams


class SequenceState:
    """A sequence's parameters and history in the worker. Only what its parameters use is built.

    Args:
        new: the sequence as the scheduler sends it; ``token_ids`` may already hold output (after a preemption).
        vocab_size: width V of the logits.
        grammars: the worker's; None in a worker that does not sample, and holds nobody to a form.

    Attributes:
        constraints: bias, allowed ids and bans; None where the request has none.
        counts: for the penalties; None where the request has none.
        grammar: the way through the form of ``structured_outputs``; None where the output is free.
        greedy: whether the most likely token is taken (temperature 0, or top_k 1, which leaves no other).
        plain: greedy, without constraints, penalties and logprobs: one argmax is all it needs, if the form has no objection.
        tried: drawn, and held to a form that nothing else depends on (filters, constraints, penalties): the sampler tries draws of the
            whole row before it asks what the form allows.

    Raises:
        InvalidRequestError: ``allowed_token_ids`` has no id below ``vocab_size``.
    """

    __slots__ = ("_tokens", "constraints", "counts", "grammar", "greedy", "num_prompt_tokens", "params", "plain", "seed", "seq_id", "tried")

    def __init__(self, new: NewSequence, vocab_size: int, grammars: Grammars | None = None) -> None:
        self.seq_id = new.seq_id
        self.params: SamplingParams = new.params
        self.seed = new.seed
        self.num_prompt_tokens = new.num_prompt_tokens
        self._tokens = GrowingArray(new.token_ids)
        self.greedy = new.params.greedy or new.params.top_k == 1
        self.constraints = Constraints.of(new, vocab_size)
        self.counts: TokenCounts | None = None
        if needs_counts(new.params):
            # The repetition penalty alone looks at the prompt.
            first = 0 if new.params.repetition_penalty != 1.0 else new.num_prompt_tokens
            seen = self.token_ids[first : new.num_prompt_tokens]
            self.counts = TokenCounts(seen[seen < vocab_size], self.output_ids)
        edited = self.constraints is not None or self.counts is not None
        self.plain = self.greedy and not edited and new.params.logprobs is None
        filtered = 0 < new.params.top_k < vocab_size or new.params.top_p < 1.0 or new.params.min_p > 0.0
        self.tried = new.params.structured_outputs is not None and not (self.greedy or edited or filtered)
        self.grammar = None
        form = new.params.structured_outputs
        if form is not None and grammars is not None:
            output = new.token_ids[new.num_prompt_tokens :]
            self.grammar = grammars.state(form, output, ignore_eos=new.params.ignore_eos, guessed=self.plain or self.tried)

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """Prompt and output, int64; a view that is out of date after the next ``append``."""
        return self._tokens.view

    @property
    def output_ids(self) -> npt.NDArray[np.int64]:
        """The output part of ``token_ids``."""
        return self._tokens.view[self.num_prompt_tokens :]

    @property
    def position(self) -> int:
        """Position of the token to be sampled: the number of tokens known."""
        return len(self._tokens)

    @property
    def num_output_tokens(self) -> int:
        return len(self._tokens) - self.num_prompt_tokens

    def append(self, token_id: int) -> None:
        """Take in the token that was sampled at ``position``."""
        self._tokens.append(token_id)
        if self.counts is not None:
            self.counts.add(token_id)
        if self.grammar is not None:
            self.grammar.advance(token_id)

    def uniform(self, attempt: int = 0) -> float:
        """The random number in [0, 1) of this sequence at its ``position``, for each attempt to draw there another one."""
        return uniform(self.seed, self.position, attempt)
