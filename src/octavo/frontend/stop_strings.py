"""Stop strings: where a growing text ends, and how much of it may be given out before that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from octavo.frontend.detokenizer import Detokenizer
from octavo.frontend.tokenizer import Tokenizer
from octavo.sampling_params import SamplingParams


class _Pattern:
    """One stop string as a Knuth-Morris-Pratt automaton: after each character, how much of the string the text ends with.

    The table of borders grows with the longest match so far, so that a huge stop string that never matches costs nothing.
    """

    __slots__ = ("_borders", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._borders = [0, 0]  # [k]: length of the longest proper prefix of text[:k] that is also its suffix

    def step(self, char: str) -> bool:
        """Take in one character; True when the string ends here. Amortised constant time."""
        text, borders, matched = self.text, self._borders, self.matched
        while matched and text[matched] != char:
            matched = borders[matched]
        if text[matched] == char:
            matched += 1
        if matched == len(borders):
            self._add_border()
        whole = matched == len(text)
        self.matched = borders[matched] if whole else matched
        return whole

    def _add_border(self) -> None:
        text, borders = self.text, self._borders
        last = text[len(borders) - 1]
        border = borders[-1]
        while border and text[border] != last:
            border = borders[border]
        borders.append(border + 1 if text[border] == last else 0)


class StopStrings:
    """Lets a text through up to its first stop string.

    The stop string that counts is the one that ends first; of several that end at the same character, the longest. Text that may
    be the beginning of one is held back, never more than that. With ``include`` a stop string is text like any other, so nothing
    is held back and the text ends with it.

    Args:
        stop: the strings, none of them empty.
        include: whether the stop string stays at the text's end.
    """

    __slots__ = ("_active", "_held", "_include", "_starts")

    def __init__(self, stop: Sequence[str], include: bool = False) -> None:
        self._starts: dict[str, list[_Pattern]] = {}  # patterns by their first character
        for text in dict.fromkeys(stop):
            self._starts.setdefault(text[0], []).append(_Pattern(text))
        self._include = include
        self._held = ""
        self._active: list[_Pattern] = []  # those that the text ends with a part of

    def push(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """Take in the text that follows.

        Args:
            text: new text.
            armed: whether a stop string that ends in it counts.

        Returns:
            The text to give out, and the stop string that ended it, if one did; after that there is nothing more to push.
        """
        if not self._active and self._starts.keys().isdisjoint(text):
            return text, None
        known = self._held + text
        for position, char in enumerate(text, len(self._held) + 1):
            ended = self._step(char)
            if ended and armed:
                stop = max(ended, key=len)
                self._held = ""
                return known[: position if self._include else position - len(stop)], stop
        if self._include:
            return text, None
        given = len(known) - max((pattern.matched for pattern in self._active), default=0)
        self._held = known[given:]
        return known[:given], None

    def _step(self, char: str) -> list[str]:
        """Take in one character; the stop strings that end with it."""
        starting = self._starts.get(char, ())
        if not self._active and not starting:
            return []
        candidates = self._active + [pattern for pattern in starting if not pattern.matched]
        ended = [pattern.text for pattern in candidates if pattern.step(char)]
        self._active = [pattern for pattern in candidates if pattern.matched]
        return ended

    def flush(self) -> str:
        """The text held back, at the end of the sequence."""
        held, self._held = self._held, ""
        return held


class TextDelta(NamedTuple):
    """What a push added to a sequence's text.

    Attributes:
        text: new text to give out.
        num_tokens_used: how many of the pushed tokens belong to the answer: all, or those up to and including the one that
            completed the stop string.
        stop: the stop string that ended the sequence.
    """

    text: str
    num_tokens_used: int
    stop: str | None = None


class SequenceText:
    """One sequence's text: tokens go in, text that may be shown comes out.

    Honours ``stop``, ``include_stop_str_in_output``, ``min_tokens``, ``detokenize``, ``skip_special_tokens`` and
    ``spaces_between_special_tokens``. As in vLLM, a stop string counts when a token after the first ``min_tokens`` completes it.

    Args:
        tokenizer: of the model.
        params: the request's.
        prompt_token_ids: what the sequence continues.
    """

    __slots__ = ("_detokenizer", "_include", "_min_tokens", "_num_tokens", "_over", "_stop", "_stops")

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self._detokenizer = Detokenizer(tokenizer, params, prompt_token_ids) if params.detokenize else None
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output) if params.stop else None
        self._include = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._over = False
        self._stop: str | None = None

    def push(self, token_ids: Sequence[int], finished: bool = False, ended_by_token: bool = False) -> TextDelta:
        """Take in the next output tokens.

        Args:
            token_ids: they may be none.
            finished: no more will come; what is held back is given out, an incomplete character as U+FFFD.
            ended_by_token: the last of them is an end-of-sequence or stop token: it counts, but is not text (unless
                ``include_stop_str_in_output``; a special one then still needs ``skip_special_tokens=False`` to show).

        Returns:
            The news. After the end (``finished``, or a ``stop``) a push adds nothing and uses no token.
        """
        if self._over:
            return TextDelta("", 0, self._stop)
        self._over = finished
        if self._detokenizer is None:
            return TextDelta("", len(token_ids))
        shown = token_ids[:-1] if finished and ended_by_token and not self._include else token_ids
        if self._stops is None:
            text = self._detokenizer.push(shown)
            return TextDelta(text + self._detokenizer.flush() if finished else text, len(token_ids))
        return self._push_watched(self._detokenizer, self._stops, shown, len(token_ids), finished)

    def _push_watched(
        self, detokenizer: Detokenizer, stops: StopStrings, shown: Sequence[int], num_tokens: int, finished: bool
    ) -> TextDelta:
        parts: list[str] = []
        before = self._num_tokens
        self._num_tokens += num_tokens
        for index, token in enumerate(shown, 1):
            text, stop = stops.push(detokenizer.push((token,)), before + index > self._min_tokens)
            parts.append(text)
            if stop is not None:
                return self._end(parts, index, stop)
        if finished:
            text, stop = stops.push(detokenizer.flush(), before + len(shown) > self._min_tokens)
            parts.append(text)
            if stop is not None:
                return self._end(parts, num_tokens, stop)
            parts.append(stops.flush())
        return TextDelta("".join(parts), num_tokens)

    def _end(self, parts: list[str], num_tokens_used: int, stop: str) -> TextDelta:
        self._over = True
        self._stop = stop
        return TextDelta("".join(parts), num_tokens_used, stop)
