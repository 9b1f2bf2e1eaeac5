"""Data sets: the same for the same seed, of the lengths asked for."""

import json
import random

import pytest

from octavo.bench.datasets import Text, TokenIds, prefix_repetition_samples, random_samples, sharegpt_samples
from octavo.errors import ConfigError

IDS, WORDS = TokenIds(tuple(range(100, 300))), Text(tokens_per_word=1.25)


@pytest.mark.parametrize("tongue", [IDS, WORDS])
def test_random_prompts_are_the_seeds(tongue):
    one, same, other = (random_samples(tongue, 5, 40, 8, 0.5, seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert len({str(sample.prompt) for sample in one}) == 5


def test_token_prompts_have_the_exact_length():
    samples = random_samples(IDS, 20, 40, 8, 0.0, 0)
    assert {(len(sample.prompt), sample.prompt_len, sample.output_len) for sample in samples} == {(40, 40, 8)}
    assert all(token in IDS.pool for sample in samples for token in sample.prompt)


def test_text_prompts_have_about_the_length():
    prompt = random_samples(WORDS, 1, 100, 8, 0.0, 0)[0].prompt
    assert isinstance(prompt, str) and len(prompt.split()) == 80


def test_a_range_of_lengths_is_kept_to():
    samples = random_samples(IDS, 200, 40, 8, 0.25, 0)
    assert {sample.prompt_len for sample in samples} == set(range(30, 51))
    assert {sample.output_len for sample in samples} == set(range(6, 11))


@pytest.mark.parametrize("tongue", [IDS, WORDS])
def test_prefixes_are_shared_evenly_and_the_rest_is_not(tongue):
    samples = prefix_repetition_samples(tongue, 12, 32, 16, 3, 5, seed=4)
    assert samples == prefix_repetition_samples(tongue, 12, 32, 16, 3, 5, seed=4)
    parts = [sample.prompt.split() if isinstance(sample.prompt, str) else sample.prompt for sample in samples]
    size = len(tongue.write(random.Random(0), 32).split()) if tongue is WORDS else 32
    prefixes = [tuple(part[:size]) for part in parts]
    assert sorted(prefixes.count(prefix) for prefix in set(prefixes)) == [4, 4, 4]
    assert len({tuple(part[size:]) for part in parts}) == 12
    assert {(sample.prompt_len, sample.output_len) for sample in samples} == {(48, 5)}


async def count_words(text: str) -> int:
    return len(text.split())


def conversations(tmp_path, *turns):
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps([{"conversations": [{"value": "w " * length} for length in lengths]} for lengths in turns]))
    return path


async def test_sharegpt_takes_first_turns_of_usable_length(tmp_path):
    path = conversations(tmp_path, (10, 20, 30), (3, 20), (20, 3), (1025, 20), (1000, 1049), (30, 40), (5,))
    samples = await sharegpt_samples(path, 2, None, 0, count_words)
    assert sorted((sample.prompt_len, sample.output_len) for sample in samples) == [(10, 20), (30, 40)]
    assert await sharegpt_samples(path, 2, None, 0, count_words) == samples
    fixed = await sharegpt_samples(path, 2, 9, 0, count_words)
    assert {sample.output_len for sample in fixed} == {9}


async def test_too_few_conversations_are_told(tmp_path):
    with pytest.raises(ConfigError, match="has 1 conversations of usable length; --num-prompts asks for 2"):
        await sharegpt_samples(conversations(tmp_path, (10, 20)), 2, None, 0, count_words)


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"conversations": [{}, {}]}]'])
async def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.json"):
        await sharegpt_samples(path, 1, None, 0, count_words)
