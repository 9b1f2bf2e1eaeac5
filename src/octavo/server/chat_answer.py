"""From the text of a chat's answer to its parts: reasoning, content and calls of tools. One reader a choice, whole or streamed."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.frontend.reasoning import ReasoningSplitter, ReasoningTags
from octavo.frontend.tool_calls.events import CallArguments, CallBegun, Event, Text
from octavo.frontend.tool_calls.formats import ToolFormat

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel

_ID_CHARS = string.ascii_letters + string.digits


@dataclass(slots=True)
class CallPart:
    """News of one call: its id and name once, when it begins, and the next piece of its arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class AnswerPart:
    """News of an answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallPart] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How the answers to one request are to be read.

    Attributes:
        style: how the model writes calls.
        names: of the tools on offer; without any, calls are text.
        several: whether an answer may make more than one call; those after the first are left out if not.
        reasoning: the model's tags; None where it does not reason.
        opened: whether the prompt opened the reasoning.
    """

    style: ToolFormat
    names: frozenset[str]
    several: bool
    reasoning: ReasoningTags | None
    opened: bool

    @property
    def marks(self) -> list[str]:
        """Texts that must be in the answer even where they are special tokens."""
        tags = [self.reasoning.start, self.reasoning.end] if self.reasoning is not None else []
        return tags + (list(self.style.marks) if self.names else [])

    def reader(self) -> AnswerReader:
        """A reader for one choice."""
        return AnswerReader(self)


def plan_answer(model: ServedModel, prompt: str, names: frozenset[str], *, several: bool) -> AnswerPlan:
    """The plan for a model's answers to a prompt."""
    tags = model.reasoning
    return AnswerPlan(model.tool_format, names, several, tags, tags is not None and tags.opened_by(prompt))


class AnswerReader:
    """Reads one choice's text, in whatever pieces it comes.

    Attributes:
        called: whether it has called a tool so far.
    """

    def __init__(self, plan: AnswerPlan) -> None:
        self._splitter = ReasoningSplitter(plan.reasoning, plan.opened) if plan.reasoning is not None else None
        self._parser = plan.style.parser(plan.names) if plan.names else None
        self._several = plan.several
        self._id_chars = plan.style.id_chars
        self.called = False

    def read(self, text: str, *, last: bool) -> AnswerPart:
        """Take in the next piece; ``last`` says that the answer has ended with it."""
        reasoning, content = (self._splitter.feed(text)) if self._splitter is not None else ("", text)
        if last and self._splitter is not None:
            more, rest = self._splitter.finish()
            reasoning, content = reasoning + more, content + rest
        if self._parser is None:
            return AnswerPart(reasoning, content)
        events = self._parser.feed(content)
        if last:
            events += self._parser.finish()
        part = AnswerPart(reasoning)
        for event in events:
            self._add(part, event)
        return part

    def _add(self, part: AnswerPart, event: Event) -> None:
        if isinstance(event, Text):
            part.content += event.text
            return
        if event.index and not self._several:
            return
        if isinstance(event, CallBegun):
            self.called = True
            part.calls.append(CallPart(event.index, self._new_id(), event.name))
        elif isinstance(event, CallArguments):
            if not part.calls or part.calls[-1].index != event.index:
                part.calls.append(CallPart(event.index))
            part.calls[-1].arguments += event.text

    def _new_id(self) -> str:
        if self._id_chars:
            return "".join(secrets.choice(_ID_CHARS) for _ in range(self._id_chars))
        return f"call_{secrets.token_hex(12)}"
