"""Text from tokens as they come, for one sequence."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from octavo.frontend.tokenizer import Tokenizer
from octavo.sampling_params import SamplingParams

_LONGEST_PARTIAL = 3
"""Most bytes an incomplete UTF-8 character can have."""


class Detokenizer:
    """The text of a sequence's output, given out as soon as it is certain.

    What the text is: take the bytes of the prompt's and the output's tokens in a row (``Tokenizer.token_bytes``; special tokens
    have none where ``skip_special_tokens`` hides them) and read them as UTF-8. The characters that end in the output's bytes are
    the output's text; a character that the prompt's last tokens began and the output completes is one of them. Each ill-formed
    stretch (Unicode's maximal subpart) is one U+FFFD. A vocabulary with a dummy prefix loses one leading space, at the start of
    the prompt's text, or at the start of the output where the prompt has no text. So, for prompts of whole characters,
    ``decode(prompt) + text == decode(prompt + output)``, however the output is cut into pushes.

    Args:
        tokenizer: of the model.
        params: ``skip_special_tokens``, ``shown_special_tokens`` and ``spaces_between_special_tokens`` are honoured.
        prompt_token_ids: what the output continues.
    """

    __slots__ = ("_before", "_partial", "_prompt_partial", "_spaces", "_strips", "_table", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._spaces = params.spaces_between_special_tokens
        self._table = tokenizer.byte_table(params.skip_special_tokens, params.shown_special_tokens)
        self._strips = tokenizer.strips_space
        self._before: int | None = None  # the last token shown, which decides whether a separator follows
        self._partial = b""
        self._prompt_partial = False  # whether all of _partial is the prompt's
        self._take_prompt(prompt_token_ids)

    def _take_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        """Look at the end of the prompt only: what it leaves incomplete, and whether it has text at all."""
        table = self._table
        tail = b""
        for token in reversed(prompt_token_ids):
            shown = table[token]
            if shown and self._before is None:
                self._before = token
            tail = shown + tail
            if len(tail) >= _LONGEST_PARTIAL:
                break
        if tail:
            self._strips = False
            tail = tail[-_LONGEST_PARTIAL:]
            self._partial = tail[utf_8_decode(tail, "replace", False)[1] :]
            self._prompt_partial = bool(self._partial)

    def push(self, token_ids: Sequence[int]) -> str:
        """Take in the next output tokens.

        Returns:
            The text they make certain; a character of which bytes are missing waits for them.
        """
        table = self._table
        if not self._tokenizer.separator:
            data = b"".join([table[token] for token in token_ids])
        else:
            data, self._before = self._tokenizer.join(token_ids, self._before, table, self._spaces)
        if not data:
            return ""
        if self._partial:
            if self._prompt_partial:
                self._drop_broken_prompt(data)
            data = self._partial + data
        text, used = utf_8_decode(data, "replace", False)
        self._partial = data[used:]
        return self._strip(text) if self._strips and text else text

    def flush(self) -> str:
        """End the text: what is left of an incomplete character becomes U+FFFD (nothing, if it is the prompt's alone)."""
        rest = b"" if self._prompt_partial else self._partial
        self._partial = b""
        return rest.decode("utf-8", "replace")

    def _drop_broken_prompt(self, data: bytes) -> None:
        """Forget what the prompt left incomplete where the output does not go on with it: that U+FFFD is the prompt's."""
        self._prompt_partial = False
        try:
            utf_8_decode(self._partial + data[:1], "strict", False)
        except UnicodeDecodeError:
            self._partial = b""

    def _strip(self, text: str) -> str:
        self._strips = False
        return text.removeprefix(" ")
