"""Holding outputs to a form: one matcher a sequence, whose mask of allowed tokens is computed while the model runs.

As soon as a step's sequences have their tokens, their matchers start on the masks for the next ones, in threads and mostly without the
GIL; the sampler joins them when the logits are there. A mask depends on the form and the output so far alone, so that tokens stay the
same whatever runs beside them.

Where the model leaves no core free, nothing hides behind it: every microsecond for a mask is taken from the kernels. So there, if the
request is such that one token will do if it may come next (the most likely of all, or a draw from all), that one is put to the matcher
first (half a microsecond), and a mask is computed only when it may not. The tokens are the same.

Where a form starts after a marker (``</think>``), tokens that hold the marker's end and more are forbidden before it: the form
begins at a token's start.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.grammars import cannot_hold, compile_matcher, make_tokenizer
from octavo.sampling.token_mask import Mask, holds, mask_of_bytes, without
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

KEPT_MATCHERS = 64
"""Compiled forms kept for further sequences."""

MASK_THREADS = 4
MASKS_A_TASK = 8
"""Masks that a thread is given at a time: most take 20 microseconds, about as long as handing one over."""
COMPILE_THREADS = 2
"""Compiling has threads of its own: a form that takes long must not hold up the masks of running sequences."""


class Reader:
    """A vocabulary as matchers read it. Takes 150 ms for 50,000 tokens, most of it with the GIL held."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tokenizer = make_tokenizer(vocabulary)
        self._lock = threading.Lock()
        self._sorted: list[tuple[bytes, int]] = []
        self._straddling: dict[bytes, list[int]] = {}

    def straddling(self, marker: bytes, tail: bytes) -> list[int]:
        """Tokens that, put after ``tail``, hold the end of the marker and go on beyond it.

        Args:
            marker: not empty.
            tail: the last bytes of the text so far, which does not hold the marker.
        """
        with self._lock:
            if not self._sorted:
                self._sorted = sorted((text, token) for token, text in enumerate(self.vocabulary.tokens))
            if marker not in self._straddling:
                holding = [(text, token) for text, token in self._sorted if marker in text]
                self._straddling[marker] = [token for text, token in holding if text.index(marker) + len(marker) < len(text)]
        found = list(self._straddling[marker])
        for begun in range(1, len(marker)):
            if tail.endswith(marker[:begun]):
                found += self._longer_than(marker[begun:])
        return found

    def _longer_than(self, start: bytes) -> list[int]:
        """Tokens that start with ``start`` and go on."""
        found = []
        for text, token in self._sorted[bisect_left(self._sorted, (start, -1)) :]:
            if not text.startswith(start):
                break
            if len(text) > len(start):
                found.append(token)
        return found


class Grammars:
    """A worker's compiled forms. Cheap until the first one: threads and the reader are made then.

    Args:
        cores_free: whether there are cores beside those that the model keeps busy.
    """

    def __init__(self, *, cores_free: bool = True) -> None:
        self._cores_free = cores_free
        self._pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None
        self._reader: Future[Reader] | None = None
        self._compiled: OrderedDict[bytes, Future[LLMatcher]] = OrderedDict()

    def learn(self, vocabulary: Vocabulary) -> None:
        """Take in the model's vocabulary; needed before the first form."""
        self._compiled.clear()
        self._reader = self._both[0].submit(Reader, vocabulary)

    @property
    def mask_pool(self) -> ThreadPoolExecutor:
        """The threads that masks are computed in."""
        return self._both[1]

    @property
    def _both(self) -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
        if self._pools is None:
            self._pools = (ThreadPoolExecutor(COMPILE_THREADS, "compile"), ThreadPoolExecutor(MASK_THREADS, "mask"))
        return self._pools

    @property
    def reader(self) -> Reader:
        """What ``learn`` was told, once it is ready."""
        if self._reader is None:
            raise RuntimeError("a form was asked for before the vocabulary was told")
        return self._reader.result()

    def compile(self, form: StructuredOutputs) -> Future[LLMatcher]:
        """Start to compile a form, if that has not been done yet.

        Returns:
            The matcher to copy for each sequence; ``InvalidRequestError`` where the form does not compile.
        """
        key = form.key
        if key in self._compiled:
            self._compiled.move_to_end(key)
        else:
            self._compiled[key] = self._both[0].submit(lambda: compile_matcher(self.reader.tokenizer, form))
            if len(self._compiled) > KEPT_MATCHERS:
                self._compiled.popitem(last=False)
        return self._compiled[key]

    def prepare(self, states: Sequence[GrammarState]) -> None:
        """Start on the next masks of sequences that have taken in their tokens."""
        for start in range(0, len(states), MASKS_A_TASK):
            some = states[start : start + MASKS_A_TASK]
            task = self.mask_pool.submit(_fill, some)
            for state in some:
                state._task = task

    def state(self, form: StructuredOutputs, output: Sequence[int], *, ignore_eos: bool, guessed: bool = False) -> GrammarState:
        """The state of a sequence.

        Args:
            form: what it is held to.
            output: its tokens so far; after a preemption there are some.
            ignore_eos: end-of-sequence tokens are allowed only where nothing else is.
            guessed: the sampler tries a token before it asks for the mask.
        """
        return GrammarState(self, form, output, ignore_eos=ignore_eos, ahead=self._cores_free or not guessed)


class GrammarState:
    """One sequence's way through its form. Made and used by one thread; only masks are computed in others.

    Attributes:
        ahead: whether masks are to be computed before they are asked for.
        complete: whether the form is fulfilled and nothing may follow: the sequence is to end.
    """

    __slots__ = (
        "_allowed",
        "_begun",
        "_error",
        "_form",
        "_grammars",
        "_ignore_eos",
        "_marker",
        "_matcher",
        "_stale",
        "_tail",
        "_task",
        "ahead",
        "complete",
    )

    def __init__(self, grammars: Grammars, form: StructuredOutputs, output: Sequence[int], *, ignore_eos: bool, ahead: bool) -> None:
        self._grammars = grammars
        self._form = form
        self._ignore_eos = ignore_eos
        self._marker = (form.starts_after or "").encode()
        self._begun = not self._marker
        self._tail = b""
        self._error: str | None = None
        self._allowed: Mask | None = None
        self._stale = True
        self._matcher: LLMatcher | None = None
        self.ahead = ahead
        self.complete = False
        self._task: Future[None] | None = grammars.mask_pool.submit(self._begin, grammars.compile(form), output)

    def error(self) -> str | None:
        """Why no token can be drawn, if none can; waits for the mask."""
        self._join()
        self.fill()
        return self._error

    def mask(self) -> Mask | None:
        """The tokens that may come next, at least one; None where all may. Waits for it to be computed."""
        self._join()
        self.fill()
        return self._allowed

    def allows(self, token: int) -> bool:
        """Whether the token may come next: the mask's answer, without computing one for it."""
        self._join()
        if self._error is not None:
            return False
        vocabulary, matcher = self._grammars.reader.vocabulary, self._matcher
        assert matcher is not None
        quick = self._stale and self._begun and token < len(vocabulary.tokens)
        if quick and not (self._ignore_eos and token in vocabulary.eos_token_ids):
            return bool(matcher.validate_tokens([token]))
        mask = self.mask()
        return self._error is None and (mask is None or holds(mask, token))

    def advance(self, token: int) -> None:
        """Take in the token that was drawn. ``Grammars.prepare`` then starts on the next mask."""
        self._join()
        self._take(token)

    @property
    def lacks_mask(self) -> bool:
        """Whether the next mask has neither been computed nor been started on."""
        return self._task is None and self._stale

    def _join(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.result()

    def fill(self) -> None:
        """Compute the mask of the next token, if that has not been done."""
        if not self._stale or self.complete or self._error is not None:
            return
        vocabulary = self._grammars.reader.vocabulary
        self._allowed = self._within_form(vocabulary) if self._begun else self._before_form(vocabulary)
        self._stale = False

    def _begin(self, template: Future[LLMatcher], output: Sequence[int]) -> None:
        try:
            self._matcher = template.result().deep_copy()
        except InvalidRequestError as error:
            self._error = str(error)
            return
        for token in output:
            self._take(token)
        if self.ahead:
            self.fill()

    def _take(self, token: int) -> None:
        vocabulary, matcher = self._grammars.reader.vocabulary, self._matcher
        assert matcher is not None
        self._stale = True
        if self._begun:
            if matcher.consume_token(token):
                self.complete = matcher.is_stopped()
            else:
                self._fail(matcher)
            return
        text = self._tail + (vocabulary.tokens[token] if token < len(vocabulary.tokens) else b"")
        self._begun = self._marker in text
        self._tail = text[-len(self._marker) :]

    def _within_form(self, vocabulary: Vocabulary) -> Mask:
        matcher = self._matcher
        assert matcher is not None
        allowed = mask_of_bytes(matcher.compute_bitmask(), len(vocabulary.tokens))
        if matcher.is_error() or not allowed.any():
            self._fail(matcher)
        return without(allowed, vocabulary.eos_token_ids) if self._ignore_eos else allowed

    def _before_form(self, vocabulary: Vocabulary) -> Mask | None:
        banned = self._grammars.reader.straddling(self._marker, self._tail)
        if self._ignore_eos:
            banned += vocabulary.eos_token_ids
        size = len(vocabulary.tokens)
        return without(mask_of_bytes(b"\xff" * (size // 8 + 1), size), banned) if banned else None

    def _fail(self, matcher: LLMatcher) -> None:
        self._error = str(cannot_hold(self._form, matcher.get_error() or "no token of the vocabulary can go on with it"))


def fill_masks(states: Sequence[GrammarState]) -> None:
    """Start on the masks that are missing, where they are more than one thread is given: else whoever asks computes them.

    Args:
        states: of one worker.
    """
    missing = [state for state in states if state.lacks_mask]
    if len(missing) > MASKS_A_TASK:
        missing[0]._grammars.prepare(missing)


def _fill(states: Sequence[GrammarState]) -> None:
    for state in states:
        state.fill()
