"""What a benchmark asks: prompts and output lengths, the same for the same seed.

A data set is drawn from *tongue*, which knows how to write a random prompt of a length for the server at hand: as token ids
where it takes them (the length is exact), else as text of common words (the length is about right).
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from octavo.errors import ConfigError

Prompt = str | list[int]

WORDS_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand part place case week "
    "company system program question work government number night point home water room mother area money story fact month lot right study "
    "book eye job word business issue side kind head house service friend father power hour game line end member law car city community "
    "name president team minute idea kid body information back parent face others level office door health person art war history party "
    "result change morning reason research girl guy moment air teacher force education foot boy age policy music market sense nation plan"
)
WORDS = tuple(WORDS_TEXT.split())
"""Common nouns, most of them one token in most vocabularies: what text prompts are made of, and where ids are gathered from."""

SHAREGPT_TOKENS = (4, 1024, 2048)
"""Conversations kept: at least 4 tokens in question and answer, a question of at most 1024, at most 2048 together (vLLM's choice)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request to be sent.

    Attributes:
        prompt_len: tokens of the prompt, exact or estimated.
        output_len: most tokens to generate.
    """

    prompt: Prompt
    prompt_len: int
    output_len: int


class Tongue(Protocol):
    """How random prompts are written for a server."""

    def write(self, rng: random.Random, length: int) -> Prompt:
        """A random prompt of about ``length`` tokens."""

    def join(self, first: Prompt, second: Prompt) -> Prompt:
        """Two prompts as one."""


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Prompts of token ids, drawn from ``pool`` (ids that are known to be ordinary tokens of the model)."""

    pool: Sequence[int]

    def write(self, rng: random.Random, length: int) -> Prompt:
        return rng.choices(self.pool, k=length)

    def join(self, first: Prompt, second: Prompt) -> Prompt:
        return [*first, *second]


@dataclass(frozen=True, slots=True)
class Text:
    """Prompts of common words, of which each is ``tokens_per_word`` tokens on average."""

    tokens_per_word: float

    def write(self, rng: random.Random, length: int) -> Prompt:
        return " ".join(rng.choices(WORDS, k=max(1, round(length / self.tokens_per_word))))

    def join(self, first: Prompt, second: Prompt) -> Prompt:
        return f"{first} {second}"


def random_samples(tongue: Tongue, num: int, input_len: int, output_len: int, range_ratio: float, seed: int) -> list[Sample]:
    """Prompts with nothing in common.

    Args:
        range_ratio: lengths are drawn evenly from ``len * (1 - ratio) .. len * (1 + ratio)``; 0 makes all the same.
    """
    rng = random.Random(seed)

    def length(mean: int) -> int:
        return max(1, rng.randint(round(mean * (1.0 - range_ratio)), round(mean * (1.0 + range_ratio))))

    samples = []
    for _ in range(num):
        prompt_len = length(input_len)
        samples.append(Sample(tongue.write(rng, prompt_len), prompt_len, length(output_len)))
    return samples


def prefix_repetition_samples(
    tongue: Tongue, num: int, prefix_len: int, suffix_len: int, num_prefixes: int, output_len: int, seed: int
) -> list[Sample]:
    """Prompts that share one of a few prefixes, in random order: what a prefix cache is for."""
    rng = random.Random(seed)
    prefixes = [tongue.write(rng, prefix_len) for _ in range(num_prefixes)]
    samples = [
        Sample(tongue.join(prefixes[i % num_prefixes], tongue.write(rng, suffix_len)), prefix_len + suffix_len, output_len)
        for i in range(num)
    ]
    rng.shuffle(samples)
    return samples


async def sharegpt_samples(path: Path, num: int, output_len: int | None, seed: int, count: Callable[[str], Awaitable[int]]) -> list[Sample]:
    """First questions of conversations in a ShareGPT file, in random order; conversations out of ``SHAREGPT_TOKENS`` are left out.

    Args:
        output_len: most tokens to generate; the length of the answer in the file when None.
        count: tokens of a text.

    Raises:
        ConfigError: the file cannot be read, is not of this form, or holds too few conversations.
    """
    shortest, longest_prompt, longest = SHAREGPT_TOKENS
    turns = _read_sharegpt(path)
    random.Random(seed).shuffle(turns)
    samples: list[Sample] = []
    for question, answer in turns:
        if len(samples) == num:
            break
        prompt_len, answer_len = await count(question), output_len or await count(answer)
        if min(prompt_len, answer_len) >= shortest and prompt_len <= longest_prompt and prompt_len + answer_len <= longest:
            samples.append(Sample(question, prompt_len, answer_len))
    if len(samples) < num:
        raise ConfigError(f"{path} has {len(samples)} conversations of usable length; --num-prompts asks for {num}.")
    return samples


def _read_sharegpt(path: Path) -> list[tuple[str, str]]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    try:
        conversations = [entry.get("conversations", entry.get("conversation", [])) for entry in content]
        return [(turns[0]["value"], turns[1]["value"]) for turns in conversations if len(turns) >= 2]
    except (TypeError, AttributeError, KeyError):
        raise ConfigError(f'{path} is no ShareGPT file: a list of {{"conversations": [{{"value": text}}, ...]}} is expected.') from None
