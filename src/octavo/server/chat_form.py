"""The form that a chat's answer must have: what was asked for as ``response_format``, and the calls that ``tool_choice`` requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.frontend.tool_calls.grammar import calls_grammar, quoted
from octavo.server.tool_fields import NamedTool
from octavo.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel
    from octavo.frontend.tokenizer import Tokenizer


def answer_form(
    asked: StructuredOutputs | None,
    tools: list[dict[str, Any]],
    choice: str | NamedTool | None,
    model: ServedModel,
    prompt: str,
    *,
    several: bool,
) -> StructuredOutputs | None:
    """Put together what an answer must look like.

    Args:
        asked: the form that the request gives the content.
        tools: those on offer, see ``tool_fields.offered``.
        choice: the request's ``tool_choice``.
        model: what is served. prompt: what it is given.
        several: whether more than one call may be made.

    Returns:
        None where the answer is free. A model that reasons does so first, freely.

    Raises:
        InvalidRequestError: a required call and a form exclude each other.
    """
    form = asked
    if tools and (choice == "required" or isinstance(choice, NamedTool)):
        if asked is not None:
            raise InvalidRequestError("A tool_choice that requires a call leaves no content to give a form to.", "tool_choice")
        functions = [tool["function"] for tool in tools]
        if isinstance(choice, NamedTool):
            functions, several = [function for function in functions if function["name"] == choice.function.name], False
        form = StructuredOutputs(grammar=calls_grammar(functions, model.tool_format, _speller(model.tokenizer), several=several))
    elif tools and asked is not None:
        form = _calls_or(asked, tools, model, several=several)
    if form is None or model.reasoning is None or prompt.rstrip().endswith(model.reasoning.end):
        return form
    return msgspec.structs.replace(form, starts_after=model.reasoning.end)


def _calls_or(asked: StructuredOutputs, tools: list[dict[str, Any]], model: ServedModel, *, several: bool) -> StructuredOutputs:
    """Calls are free to be made; an answer without one has the form asked for."""
    if asked.kind not in ("json", "json_object"):
        raise InvalidRequestError(f"A {asked.kind} and tools exclude each other; set tool_choice to none, or leave the tools out.", "tools")
    answer = "%json " + (asked.schema if asked.kind == "json" else '{"type": "object"}')
    functions = [tool["function"] for tool in tools]
    grammar = calls_grammar(functions, model.tool_format, _speller(model.tokenizer), several=several, answer=answer)
    return StructuredOutputs(grammar=grammar)


def _speller(tokenizer: Tokenizer) -> Callable[[str], str]:
    """How a grammar names a format's marks: by id where they are special tokens, which no text can spell."""

    def spell(mark: str) -> str:
        token = tokenizer.backend.token_to_id(mark)
        return f"<[{token}]>" if token in tokenizer.special_ids else quoted(mark)

    return spell
