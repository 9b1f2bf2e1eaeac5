"""Whether the form that a request asks of its output can be held: compiled once here, so that the client hears of it at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.frontend.tokenizer import Tokenizer
from octavo.grammars import cannot_hold, compile_matcher, make_tokenizer, without_gbnf
from octavo.models.config import ModelConfig
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLTokenizer

KEPT_FORMS = 64
"""Forms that were found good lately and need no second look."""


class FormChecker:
    """Checks forms for one model; several threads may share it.

    Compiling takes milliseconds, for the worst forms that the limits let through most of a second, without the GIL: call
    ``check`` in a thread where others must not wait.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = config.vocab_size
        self._eos_token_ids = list(config.eos_token_ids)
        self._lock = threading.Lock()
        self._reader: LLTokenizer | None = None
        self._vocabulary: Vocabulary | None = None
        self._good: OrderedDict[bytes, StructuredOutputs] = OrderedDict()

    def check(self, form: StructuredOutputs) -> StructuredOutputs:
        """The form as the engine is told it (GBNF becomes Lark).

        Raises:
            InvalidRequestError: no output can have this form, it is too complex, or the model's tokenizer cannot be held to one.
        """
        key = form.key
        with self._lock:
            known = self._good.get(key)
        if known is None:
            known = self._compile(form)
            with self._lock:
                self._good[key] = known
                if len(self._good) > KEPT_FORMS:
                    self._good.popitem(last=False)
        return known

    def vocabulary(self) -> Vocabulary:
        """The model's tokens, for the engine. Made at the first call, which takes some time."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(
                    [self._tokenizer.token_bytes(token) for token in range(self._vocab_size)], self._special_ids(), self._eos_token_ids
                )
            return self._vocabulary

    def _compile(self, form: StructuredOutputs) -> StructuredOutputs:
        if self._tokenizer.separator:
            raise InvalidRequestError(
                "This model's tokenizer puts spaces between tokens, so that no form can be held to; leave structured_outputs out.",
                "structured_outputs",
            )
        with self._lock:
            if self._reader is None:
                self._reader = make_tokenizer(self._letters(), slices=[])
            reader = self._reader
        plain = without_gbnf(form)
        matcher = compile_matcher(reader, plain)
        matcher.compute_bitmask()  # a grammar that nothing can begin shows here
        if matcher.is_error():
            raise cannot_hold(form, f"nothing can begin an output of this form ({matcher.get_error()})")
        return plain

    def _letters(self) -> Vocabulary:
        """A vocabulary of single bytes and the model's special tokens, with the model's ids where a grammar can name them.

        Whether a form compiles does not depend on the other tokens, and without them a reader takes no time to make.
        """
        special = self._special_ids()
        tokens = [b""] * max(self._vocab_size, len(special) + 256)
        for token in special:
            tokens[token] = self._tokenizer.token_bytes(token)
        others = (token for token in range(len(tokens)) if token not in self._tokenizer.special_ids)
        for byte, token in zip(range(256), others, strict=False):
            tokens[token] = bytes([byte])
        return Vocabulary(tokens, special, self._eos_token_ids)

    def _special_ids(self) -> list[int]:
        return sorted(token for token in self._tokenizer.special_ids if token < self._vocab_size)
