"""``tokenizer.model``, against SentencePiece itself and transformers' conversion."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from text_samples import CORPUS, SAMPLES

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.frontend.tokenizer import Tokenizer, load_tokenizer
from octavo.frontend.tokenizer_spm import read_sentencepiece
from octavo.models.hub import ModelFiles

PLAIN = [text for text in SAMPLES if "<" not in text and "▁" not in text]
"""Samples without special tokens in them: SentencePiece alone does not know those in text."""


def train(directory: Path, **options: Any) -> sentencepiece.SentencePieceProcessor:
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 500,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.98,
        "hard_vocab_limit": False,
        "user_defined_symbols": ["<|user|>", "<|assistant|>"],
        "control_symbols": ["<|end|>"],
        "minloglevel": 9,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(directory / "tokenizer"), **settings | options
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


def load(directory: Path, **config: Any) -> Tokenizer:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(ModelFiles("test", "hf", directory))


@pytest.mark.parametrize("prefix", [True, False])
def test_bpe_equals_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    theirs = train(tmp_path, add_dummy_prefix=prefix)
    ours = load(tmp_path, legacy=True)
    for text in PLAIN:
        token_ids = theirs.encode(text)
        assert ours.encode(text) == token_ids, text
        assert ours.decode(token_ids) == theirs.decode(token_ids), text


def test_bpe_equals_sentencepiece_where_many_merges_compete(tmp_path: Path) -> None:
    chooser = random.Random(0)
    texts = ["".join(chooser.choices("aaab ", k=40)) for _ in range(300)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60, model_type="bpe", minloglevel=9,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = load(tmp_path, legacy=True)
    assert [ours.encode(text) for text in texts] == theirs.encode(texts)


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity", "nfkc_cf"])
def test_unigram_equals_sentencepiece(tmp_path: Path, rule: str) -> None:
    theirs = train(tmp_path, model_type="unigram", vocab_size=420, normalization_rule_name=rule, remove_extra_whitespaces=True)
    ours = load(tmp_path, legacy=True)
    # The charsmap normalizer of tokenizers drops marks that follow a composed character; transformers shares that fault.
    for text in (text for text in PLAIN if rule == "identity" or "\u0323" not in text):
        token_ids = theirs.encode(text)
        assert ours.encode(text) == token_ids, text
        assert ours.decode(token_ids) == theirs.decode(token_ids), text


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True, "legacy": False},
        {"add_prefix_space": False},
        {
            "added_tokens_decoder": {
                "500": {"content": "<|new|>", "special": True, "normalized": False},
                "501": {"content": "<think>", "special": False, "normalized": False},
            }
        },
    ],
)
def test_bpe_equals_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import LlamaTokenizer

    train(tmp_path)
    ours = load(tmp_path, tokenizer_class="LlamaTokenizer", **config)
    theirs = LlamaTokenizer.from_pretrained(tmp_path)
    for text in [*SAMPLES, "a <|new|> b <think>c</think>"]:
        token_ids = theirs.encode(text)
        assert ours.encode(text) == token_ids, text
        for skip in (True, False):
            assert ours.decode(token_ids, skip) == theirs.decode(token_ids, skip_special_tokens=skip), text
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")


def test_unigram_equals_transformers(tmp_path: Path) -> None:
    from transformers import T5Tokenizer

    train(
        tmp_path, model_type="unigram", vocab_size=400, normalization_rule_name="nmt_nfkc", byte_fallback=False,
        remove_extra_whitespaces=True,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    ours = load(tmp_path, add_eos_token=True, legacy=True)
    theirs = T5Tokenizer.from_pretrained(tmp_path, vocab_file=str(tmp_path / "tokenizer.model"), extra_ids=0)
    for text in (text for text in PLAIN if text.strip()):
        assert ours.encode(text) == theirs.encode(text), text


def test_legacy_puts_the_prefix_after_every_special_token(tmp_path: Path) -> None:
    train(tmp_path)
    text = "<s>the<|end|>the"
    word = load(tmp_path, legacy=True).backend.token_to_id("▁the")
    assert load(tmp_path, legacy=True).encode(text).count(word) == 2
    assert load(tmp_path, legacy=False).encode(text).count(word) == 0
    assert load(tmp_path, legacy=False).encode("the<s>the").count(word) == 1


def test_control_pieces_are_special_and_user_defined_ones_are_not(tmp_path: Path) -> None:
    train(tmp_path)
    tokenizer = load(tmp_path)
    control, user = tokenizer.backend.token_to_id("<|end|>"), tokenizer.backend.token_to_id("<|user|>")
    assert control in tokenizer.special_ids
    assert user not in tokenizer.special_ids
    assert {control, user} <= set(tokenizer.encode("a<|end|>b<|user|>c"))
    assert tokenizer.decode([user, control]) == "<|user|>"


def test_special_ids_are_those_of_the_trainer(tmp_path: Path) -> None:
    train(tmp_path, bos_id=-1, eos_id=2, unk_id=0, pad_id=1, eos_piece="<eos>", pad_piece="<pad>")
    tokenizer = load(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id) == (None, "<eos>", 2)
    assert tokenizer.named_tokens["pad_token"] == "<pad>"


@pytest.mark.parametrize("kind", ["word", "char"])
def test_other_model_types_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    train(tmp_path, model_type=kind, vocab_size=70, byte_fallback=False, user_defined_symbols=[])
    with pytest.raises(UnsupportedModelError, match=kind):
        load(tmp_path)


def test_spaces_as_suffixes_are_refused(tmp_path: Path) -> None:
    train(tmp_path, treat_whitespace_as_suffix=True)
    with pytest.raises(UnsupportedModelError, match="end of words"):
        load(tmp_path)


def test_cut_short_or_foreign_files_are_refused(tmp_path: Path) -> None:
    train(tmp_path)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    broken = tmp_path / "broken.model"
    chooser = random.Random(0)
    for content in [
        b"",
        b"\x00" * 64,
        b"IQ== 0\nIg== 1\n",
        b"\xff" * 32,
        *(whole[: chooser.randrange(1, len(whole) - 1)] for _ in range(40)),
    ]:
        broken.write_bytes(content)
        try:
            model = read_sentencepiece(broken)
        except ModelLoadError as error:
            assert "broken.model" in str(error)
        else:  # cut between two fields: a smaller sound file
            assert 0 < len(model.pieces) <= 500
