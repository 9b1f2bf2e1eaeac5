"""Reasoning models think aloud between two tags before they answer: how to tell, and how to take the two apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What stands before and after a model's reasoning."""

    start: str
    end: str

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt (as templates of DeepSeek-R1's kind make it) ends inside the reasoning."""
        return prompt.rfind(self.start) > prompt.rfind(self.end)


KNOWN_TAGS = (ReasoningTags("<think>", "</think>"), ReasoningTags("[THINK]", "[/THINK]"), ReasoningTags("<seed:think>", "</seed:think>"))


def find_reasoning_tags(template: str, has_token: Callable[[str], bool]) -> ReasoningTags | None:
    """The tags of a model that reasons, None for one that does not.

    Args:
        template: source of its chat template.
        has_token: whether a text is one token of its vocabulary.
    """
    for tags in KNOWN_TAGS:
        if tags.end in template or (has_token(tags.start) and has_token(tags.end)):
            return tags
    return None


class ReasoningSplitter:
    """Takes one answer apart, in whatever pieces it comes.

    Reasoning is what stands before the end tag, if the prompt opened it or the answer begins with the start tag. White space
    around it belongs to neither part. An answer that ends before the end tag is all reasoning.

    Args:
        tags: of the model.
        opened: whether the prompt opened the reasoning.
    """

    def __init__(self, tags: ReasoningTags, opened: bool) -> None:
        self._tags = tags
        self._held = ""
        self._part = "start"  # then "inside" (white space first: "entered"), "left" and "content"
        self._opened = opened

    def feed(self, text: str) -> tuple[str, str]:
        """Take in the next piece.

        Returns:
            The reasoning and the content that it makes certain.
        """
        if self._part == "content":
            return "", text
        self._held += text
        reasoning = ""
        if self._part == "start":
            self._begin()
        if self._part in ("entered", "inside"):
            reasoning = self._think()
        if self._part == "left" and (content := self._held.lstrip()):
            self._part = "content"
            self._held = ""
            return reasoning, content
        if self._part == "content":
            content, self._held = self._held, ""
            return reasoning, content
        return reasoning, ""

    def finish(self) -> tuple[str, str]:
        """The answer has ended: what was held back, as ``feed`` returns it."""
        held, self._held = self._held, ""
        if self._part in ("entered", "inside"):
            return held.rstrip() if self._part == "inside" else held.strip(), ""
        return "", "" if self._part == "left" else held

    def _begin(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._tags.start):
            self._held = begun.removeprefix(self._tags.start)
            self._part = "entered"
        elif not self._tags.start.startswith(begun):
            self._part = "entered" if self._opened else "content"

    def _think(self) -> str:
        """What is certain of the reasoning; holds back white space, and what may be the end tag's beginning."""
        if self._part == "entered":
            self._held = self._held.lstrip()
            if not self._held:
                return ""
            self._part = "inside"
        thought, end, rest = self._held.partition(self._tags.end)
        if end:
            self._part, self._held = "left", rest
            return thought.rstrip()
        overlap = next((size for size in range(len(self._tags.end) - 1, 0, -1) if self._held.endswith(self._tags.end[:size])), 0)
        certain = len(self._held[: len(self._held) - overlap].rstrip())
        thought, self._held = self._held[:certain], self._held[certain:]
        return thought
