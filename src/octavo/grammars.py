"""Compiled forms: from ``StructuredOutputs`` to llguidance's matchers, the same in the server that checks and the engine that obeys.

llguidance is imported when the first one is needed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

JSON_DEFAULTS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""JSON on one line, at most one space after a comma or a colon: a small model left free to put white space never ends."""

_ROOT = '%llguidance {"no_forcing": true}\nstart: @form'
"""The grammar around every form. Without forcing, all tokens that spell an allowed text are allowed, and the model chooses; with it,
llguidance would allow only the tokens that the model's own tokenizer makes of a text, which is not there to be asked."""

MAX_GRAMMAR_SYMBOLS = 200_000
MAX_MESSAGE_CHARS = 600

_GBNF_RULE = re.compile(r"^[ \t]*[A-Za-z0-9_-]+[ \t]*::=", re.MULTILINE)


def make_tokenizer(vocabulary: Vocabulary, *, slices: list[str] | None = None) -> LLTokenizer:
    """llguidance's view of a vocabulary. Holds the GIL while it works (150 ms for 50,000 tokens).

    Args:
        vocabulary: the tokens.
        slices: None for those that make masks of JSON strings fast, [] for none.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    eos = vocabulary.eos_token_ids or None
    return LLTokenizer(TokenizerWrapper(_Tokens(vocabulary)), n_vocab=len(vocabulary.tokens), eos_token=eos, slices=slices)


class _Tokens:
    """What ``TokenizerWrapper`` asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_ids
        self.eos_token_id = vocabulary.eos_token_ids[0] if vocabulary.eos_token_ids else None
        self.bos_token_id = None

    def __call__(self, text: bytes) -> list[int]:
        return []  # asked only to force tokens, which _ROOT turns off


def compile_matcher(tokenizer: LLTokenizer, form: StructuredOutputs) -> LLMatcher:
    """A matcher at the start of the form (that is, after ``starts_after``). Releases the GIL while llguidance works.

    Raises:
        InvalidRequestError: the form does not compile, or is too complex.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(max_grammar_size=MAX_GRAMMAR_SYMBOLS, verbose_errors=False)
    try:
        matcher = LLMatcher(tokenizer, _grammar(form), log_level=0, limits=limits)
    except ValueError as error:
        raise cannot_hold(form, str(error)) from None
    if matcher.is_error():
        raise cannot_hold(form, matcher.get_error())
    return matcher


def _grammar(form: StructuredOutputs) -> str:
    """The form in llguidance's own terms.

    Raises:
        ValueError: the schema is no JSON object.
    """
    from llguidance import LLMatcher, regex_to_lark

    if form.json is not None or form.json_object:
        schema = form.schema if form.json is not None else '{"type": "object"}'
        made = json.loads(LLMatcher.grammar_from_json_schema(schema, defaults=JSON_DEFAULTS))  # type: ignore[arg-type]
        body = {"json_schema": made["grammars"][0]["json_schema"]}
    elif form.regex is not None:
        body = {"lark_grammar": f"start: /{regex_to_lark(form.regex, 'dws')}/"}
    elif form.choice is not None:
        body = {"lark_grammar": "start: " + " | ".join(json.dumps(text) for text in form.choice)}
    else:
        body = {"lark_grammar": form.grammar}
    return json.dumps({"grammars": [{"lark_grammar": _ROOT}, {"name": "form", **body}]})


def without_gbnf(form: StructuredOutputs) -> StructuredOutputs:
    """The same form, with a grammar in GBNF turned into Lark's syntax.

    Raises:
        InvalidRequestError: the grammar is no GBNF.
    """
    if form.grammar is None or _GBNF_RULE.search(form.grammar) is None:
        return form
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        lark = gbnf_to_lark(form.grammar)
    except RecursionError:
        raise cannot_hold(form, "it is nested too deeply") from None
    except Exception as error:
        raise cannot_hold(form, str(error)) from None
    return StructuredOutputs(grammar=lark, starts_after=form.starts_after)


def cannot_hold(form: StructuredOutputs, reason: str) -> InvalidRequestError:
    """The error for a form that no output can be held to.

    Args:
        form: what was asked.
        reason: llguidance's words.
    """
    what = {"json": "JSON schema", "json_object": "JSON object", "regex": "regular expression", "choice": "choice", "grammar": "grammar"}
    reason = re.split(r"\s*<(?:state|non-verbose/)>", reason)[0].strip()
    shown = reason if len(reason) <= MAX_MESSAGE_CHARS else f"{reason[:MAX_MESSAGE_CHARS]}..."
    return InvalidRequestError(f"The {what[form.kind]} cannot be used: {shown}", "structured_outputs")
