"""The formats by name, and which one a model has: told from its chat template and vocabulary, so that no flag is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.frontend.tool_calls import hermes, llama, mistral
from octavo.frontend.tool_calls.generic import GenericParser
from octavo.frontend.tool_calls.parser import ToolCallParser


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family of models writes calls.

    Attributes:
        name: hermes, mistral (a list of objects), mistral_named (names and arguments), llama or generic.
        parser: of its answers.
        marks: texts of the format that may be special tokens, which are shown to the parser although special tokens are skipped.
        id_chars: length of a call's id where the family's templates insist on one; 0: OpenAI's ``call_...``.
        in_template: whether the model's own template describes tools; else ``prompt`` does.
    """

    name: str
    parser: type[ToolCallParser]
    marks: tuple[str, ...] = ()
    id_chars: int = 0
    in_template: bool = True


HERMES = ToolFormat("hermes", hermes.HermesParser, (hermes.OPEN, hermes.CLOSE))
_MISTRAL_MARKS = (mistral.OPEN, mistral.CALL_ID, mistral.ARGUMENTS)
MISTRAL = ToolFormat("mistral", mistral.MistralParser, _MISTRAL_MARKS, id_chars=9)
MISTRAL_NAMED = ToolFormat("mistral_named", mistral.MistralParser, _MISTRAL_MARKS, id_chars=9)
LLAMA = ToolFormat("llama", llama.LlamaParser, (llama.OPEN,))
GENERIC = ToolFormat("generic", GenericParser, in_template=False)


def find_tool_format(template: str, has_token: Callable[[str], bool]) -> ToolFormat:
    """The format of a model's calls.

    Args:
        template: source of its chat template for tools.
        has_token: whether a text is one token of its vocabulary.

    Returns:
        The generic one where the template says nothing of tools, or has a format that Octavo does not know: its tools are then
        described in a system message instead.
    """
    if "tools" not in template or "<function=" in template:
        return GENERIC
    if hermes.OPEN in template:
        return HERMES
    if mistral.OPEN in template or has_token(mistral.OPEN):
        return MISTRAL_NAMED if mistral.ARGUMENTS in template else MISTRAL
    if llama.OPEN in template or has_token(llama.OPEN):
        return LLAMA
    return GENERIC
