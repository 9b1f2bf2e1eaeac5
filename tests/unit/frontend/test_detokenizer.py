"""Incremental text equals the text of all tokens, however they are cut into pushes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_samples import CORPUS, SAMPLES
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from octavo.frontend.detokenizer import Detokenizer
from octavo.frontend.tokenizer import Tokenizer
from octavo.frontend.tokenizer_parts import TokenizerParts
from octavo.sampling_params import SamplingParams

SPECIALS = ["<s>", "</s>", "<|end|>"]


def byte_level() -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return Tokenizer(TokenizerParts(backend, "test"))


def sentencepiece() -> Tokenizer:
    pieces = [
        "<unk>",
        *SPECIALS,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁Hello",
        "▁world",
        "Hello",
        "wor",
        "ld",
        "!",
        "é",
        "▁▁",
    ]
    backend = Backend(models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ["<unk>", *SPECIALS]])
    return Tokenizer(TokenizerParts(backend, "test"))


def words() -> Tokenizer:
    """Without a decoder: tokens are joined by spaces."""
    backend = Backend(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2, "é": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    return Tokenizer(TokenizerParts(backend, "test"))


TOKENIZERS = {"byte_level": byte_level(), "sentencepiece": sentencepiece(), "words": words()}
kinds = st.sampled_from(sorted(TOKENIZERS))


def streamed(tokenizer: Tokenizer, prompt: list[int], pushes: list[list[int]], **params: Any) -> str:
    detokenizer = Detokenizer(tokenizer, SamplingParams(**params), prompt)
    return "".join([detokenizer.push(push) for push in pushes]) + detokenizer.flush()


def well_formed(tokenizer: Tokenizer, token_ids: list[int]) -> bool:
    """Whether tokens are whole characters."""
    data = b"".join(map(tokenizer.token_bytes, token_ids))
    return data.decode("utf-8", "ignore").encode() == data


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Tokenizer, list[int], list[list[int]]]:
    """A tokenizer, a prompt, and output tokens in random portions; ids beyond the vocabulary among them."""
    tokenizer = TOKENIZERS[draw(kinds)]
    texts = st.sampled_from([*SAMPLES, "Hello world!", " Hello", "é😀好"])
    random_ids = st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=12)
    encoded = texts.map(lambda text: tokenizer.encode(text, add_special_tokens=False)[:40])
    prompt, output = draw(random_ids | encoded), draw(random_ids | encoded)
    cuts = sorted(draw(st.lists(st.integers(0, len(output)), max_size=6)))
    pushes = [output[start:end] for start, end in zip([0, *cuts], [*cuts, len(output)], strict=True)]
    return tokenizer, prompt, pushes


@given(case=outputs(), skip=st.booleans(), spaces=st.booleans())
def test_any_cut_gives_the_text_of_all_tokens(case: tuple[Tokenizer, list[int], list[list[int]]], skip: bool, spaces: bool) -> None:
    tokenizer, prompt, pushes = case
    output = [token for push in pushes for token in push]
    options = {"skip_special_tokens": skip, "spaces_between_special_tokens": spaces}
    assert streamed(tokenizer, [], pushes, **options) == tokenizer.decode(output, skip, spaces)
    text = streamed(tokenizer, prompt, pushes, **options)
    assert text == streamed(tokenizer, prompt, [[token] for token in output], **options)
    before, whole = tokenizer.decode(prompt, skip, spaces), tokenizer.decode(prompt + output, skip, spaces)
    if well_formed(tokenizer, [token for token in prompt if not skip or token not in tokenizer.special_ids]):
        assert before + text == whole
    else:  # the prompt's last character may be completed by the output, and is its then
        assert whole.endswith(text)
        assert before.startswith(whole[: len(whole) - len(text)])


@given(case=outputs())
def test_what_is_given_out_is_never_part_of_a_character(case: tuple[Tokenizer, list[int], list[list[int]]]) -> None:
    tokenizer, _, pushes = case
    output = [token for push in pushes for token in push]
    detokenizer, given_out = Detokenizer(tokenizer, SamplingParams(), []), ""
    for token in output:
        given_out += detokenizer.push([token])
        assert tokenizer.decode(output).startswith(given_out)


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token_ids = tokenizer.encode("😺")
    assert len(token_ids) == 4
    detokenizer = Detokenizer(tokenizer, SamplingParams(), [])
    assert [detokenizer.push([token]) for token in token_ids] == ["", "", "", "😺"]


def test_incomplete_bytes_at_the_end_become_one_replacement_character() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token_ids = tokenizer.encode("a😺")[:-1]
    assert streamed(tokenizer, [], [token_ids]) == "a\ufffd" == tokenizer.decode(token_ids)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_character_begun_by_the_prompt_belongs_to_the_output_that_completes_it(kept: int) -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token_ids = tokenizer.encode("😺")
    assert streamed(tokenizer, token_ids[:kept], [token_ids[kept:]]) == "😺"


def test_a_character_that_the_prompt_breaks_off_is_not_the_outputs() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    begun, text = tokenizer.encode("😺")[:2], tokenizer.encode("ok")
    assert streamed(tokenizer, begun, [text]) == "ok"
    assert streamed(tokenizer, begun, []) == ""
    assert streamed(tokenizer, begun, [begun]) == "\ufffd"


def ids(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    found = [tokenizer.backend.token_to_id(piece) for piece in pieces]
    assert None not in found
    return found


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ((), "Hello world"),
        (("<s>",), "Hello world"),  # a prompt of hidden tokens has no text: the output's first space is the dummy prefix
        (("▁Hello",), " Hello world"),
        (("▁Hello", "<s>"), " Hello world"),
        (("▁",), " Hello world"),
    ],
)
def test_the_dummy_prefix_is_dropped_only_where_the_whole_text_starts(prompt: tuple[str, ...], text: str) -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    assert streamed(tokenizer, ids(tokenizer, *prompt), [ids(tokenizer, "▁Hello", "▁world")]) == text


def test_shown_special_tokens_count_as_text_before() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    pushes = [ids(tokenizer, "▁Hello", "</s>")]
    assert streamed(tokenizer, ids(tokenizer, "<s>"), pushes, skip_special_tokens=False) == " Hello</s>"
    assert streamed(tokenizer, ids(tokenizer, "<s>"), pushes) == "Hello"


def test_neighbouring_special_tokens_are_joined_as_asked() -> None:
    tokenizer = TOKENIZERS["words"]
    pushes = [ids(tokenizer, "hello", "<s>"), ids(tokenizer, "</s>", "world")]
    assert streamed(tokenizer, [], pushes, skip_special_tokens=False) == "hello <s> </s> world"
    assert streamed(tokenizer, [], pushes, skip_special_tokens=False, spaces_between_special_tokens=False) == "hello <s></s> world"
    assert streamed(tokenizer, ids(tokenizer, "hello"), pushes) == " hello world"


def test_a_long_prompt_is_not_walked_through() -> None:
    class Counting(list[int]):
        looked_at = 0

        def __reversed__(self) -> Any:
            for token in super().__reversed__():
                self.looked_at += 1
                yield token

    prompt = Counting(TOKENIZERS["byte_level"].encode("word " * 10_000))
    Detokenizer(TOKENIZERS["byte_level"], SamplingParams(), prompt)
    assert 0 < prompt.looked_at <= 3
