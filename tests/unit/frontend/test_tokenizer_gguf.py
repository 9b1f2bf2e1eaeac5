"""Vocabularies inside GGUF files, against the tokenizers they were made from and against transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from text_samples import CORPUS, SAMPLES
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.frontend.tokenizer import Tokenizer, load_tokenizer
from octavo.models.hub import ModelFiles

CONTROL, USER_DEFINED, BYTE = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.BYTE
SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
PLAIN = [text for text in SAMPLES if "<" not in text and "▁" not in text]

# How the models' own tokenizer.json cut text; the names are those of GGUF files.
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


ORIGINALS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
    "tekken": split(TEKKEN),
}


def byte_level(pre: str) -> Backend:
    """A tiny tokenizer trained with the pre-tokenizer of a family."""
    backend = Backend(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    backend.pre_tokenizer = ORIGINALS[pre]
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def write_gguf(path: Path, *, architecture: str = "llama", **fields: Any) -> Path:
    """A GGUF file with ``tokenizer.ggml.*`` fields (a type that is a list is written as an array) and no tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        name = "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level_fields(backend: Backend, pre: str, **changes: Any) -> dict[str, Any]:
    content = json.loads(backend.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    types = [int(CONTROL) if token in SPECIALS else 1 for token in tokens]
    merges = [" ".join(pair) for pair in content["merges"]]
    fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges, "bos_token_id": 1, "eos_token_id": 2}
    return {name: value for name, value in (fields | changes).items() if value is not None}


def spm_fields(directory: Path, **changes: Any) -> tuple[dict[str, Any], sentencepiece.SentencePieceProcessor]:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(directory / "spm"), vocab_size=500, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, hard_vocab_limit=False,
        character_coverage=0.98, user_defined_symbols=["<|user|>"], control_symbols=["<|end|>"], minloglevel=9,
        add_dummy_prefix=changes.get("add_space_prefix", True),
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "spm.model"))
    size = range(model.get_piece_size())
    kinds = {model.unk_id(): 2, model.piece_to_id("<|user|>"): 4} | {token: 3 for token in size if model.is_control(token)}
    fields = {
        "model": "llama",
        "tokens": [model.id_to_piece(token) for token in size],
        "scores": [float(model.get_score(token)) for token in size],
        "token_type": [6 if model.is_byte(token) else kinds.get(token, 1) for token in size],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}, model


def load(path: Path) -> Tokenizer:
    return load_tokenizer(ModelFiles("test", "gguf", path))


def from_transformers(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)


# ---- byte-level BPE --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_equals_the_tokenizer_it_was_made_from(tmp_path: Path, pre: str) -> None:
    original = byte_level(pre)
    ours = load(write_gguf(tmp_path / "t.gguf", **byte_level_fields(original, pre)))
    for text in SAMPLES:
        token_ids = original.encode(text).ids
        assert ours.encode(text, add_special_tokens=False) == token_ids, text
        assert ours.decode(token_ids, False) == original.decode(token_ids, skip_special_tokens=False)
        assert ours.decode(token_ids) == original.decode(token_ids)


@pytest.mark.parametrize("pre", ["gpt-2", "tekken", "llama-bpe", "deepseek-r1-qwen", "gpt-4o", "dbrx", "qwen35"])
def test_byte_level_equals_transformers(tmp_path: Path, pre: str) -> None:
    path = write_gguf(tmp_path / "t.gguf", **byte_level_fields(byte_level("gpt-2"), pre, add_bos_token=False))
    ours, theirs = load(path), from_transformers(path)
    for text in SAMPLES:
        if pre == "qwen35" and "\u0301" in text:
            continue  # this family composes text first, which transformers leaves out for GGUF files
        token_ids = theirs.encode(text)
        assert ours.encode(text) == token_ids, text
        assert ours.decode(token_ids) == theirs.decode(token_ids, skip_special_tokens=True), text


@pytest.mark.parametrize("pre", ["default", "falcon", "starcoder", "refact", "command-r", "mpt", "phi-2", "stablelm2", "llama4"])
def test_every_name_keeps_all_text(tmp_path: Path, pre: str) -> None:
    ours = load(write_gguf(tmp_path / "t.gguf", **byte_level_fields(byte_level("gpt-2"), pre)))
    for text in SAMPLES:
        assert ours.decode(ours.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


def test_numbers_are_cut_as_the_name_says(tmp_path: Path) -> None:
    def cut(pre: str) -> list[str]:
        ours = load(write_gguf(tmp_path / f"{pre}.gguf", **byte_level_fields(byte_level("gpt-2"), pre)))
        assert ours.backend.pre_tokenizer is not None
        return [piece for piece, _ in ours.backend.pre_tokenizer.pre_tokenize_str("12345 x")]

    assert cut("smollm") == ["1", "2", "3", "4", "5", "Ġx"]
    assert cut("gpt-2") == ["12345", "Ġx"]
    assert cut("llama-bpe") == ["123", "45", "Ġx"]


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("gpt-2", False)])
def test_a_word_that_is_a_token_stays_whole_without_merges_where_the_family_says_so(tmp_path: Path, pre: str, whole: bool) -> None:
    fields = byte_level_fields(byte_level("gpt-2"), pre)
    fields["tokens"].append("Ġzyzzyva")
    fields["token_type"].append(1)
    ours = load(write_gguf(tmp_path / "t.gguf", **fields))
    assert (len(fields["tokens"]) - 1 in ours.encode("a zyzzyva b")) is whole


def test_an_unknown_pre_tokenizer_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", **byte_level_fields(byte_level("gpt-2"), "from-the-future"))
    with pytest.raises(UnsupportedModelError, match=r"'from-the-future'.*llama-bpe.*qwen2"):
        load(path)


@pytest.mark.parametrize(
    ("pre", "told", "wanted"),
    [("llama-bpe", None, True), ("tekken", None, True), ("gpt-2", None, False), ("llama-bpe", False, False), ("gpt-2", True, True)],
)
def test_the_begin_token_is_put_first_as_the_file_or_else_the_family_says(
    tmp_path: Path, pre: str, told: bool | None, wanted: bool
) -> None:
    ours = load(write_gguf(tmp_path / "t.gguf", **byte_level_fields(byte_level("gpt-2"), pre, add_bos_token=told)))
    assert (ours.encode("Hello")[0] == ours.bos_token_id) is wanted
    assert ours.bos_token_id not in ours.encode("Hello", add_special_tokens=False)


def test_the_end_token_is_put_last_where_the_file_says_so(tmp_path: Path) -> None:
    ours = load(write_gguf(tmp_path / "t.gguf", **byte_level_fields(byte_level("gpt-2"), "gpt-2", add_eos_token=True)))
    assert ours.encode("Hello")[-1] == ours.eos_token_id == 2


def test_named_tokens_are_special_whatever_their_type(tmp_path: Path) -> None:
    fields = byte_level_fields(byte_level("gpt-2"), "gpt-2")
    ours = load(write_gguf(tmp_path / "t.gguf", **fields | {"token_type": [1] * len(fields["tokens"])}))
    assert ours.encode("a</s>b", add_special_tokens=False).count(2) == 1
    assert ours.decode([2]) == ""
    assert (ours.bos_token, ours.eos_token) == ("<s>", "</s>")


def test_user_defined_tokens_stay_whole_and_are_text(tmp_path: Path) -> None:
    fields = byte_level_fields(byte_level("gpt-2"), "gpt-2")
    fields["tokens"] += ["<think>", "｜fullwidth▁｜"]
    fields["token_type"] += [int(USER_DEFINED), int(CONTROL)]
    ours = load(write_gguf(tmp_path / "t.gguf", **fields))
    think, wide = len(fields["tokens"]) - 2, len(fields["tokens"]) - 1
    token_ids = ours.encode("a<think>b｜fullwidth▁｜c", add_special_tokens=False)
    assert {think, wide} <= set(token_ids)
    assert ours.decode(token_ids) == "a<think>bc"
    assert ours.decode(token_ids, skip_special_tokens=False) == "a<think>b｜fullwidth▁｜c"
    assert ours.vocab_size == len(fields["tokens"])


# ---- SentencePiece ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_equals_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    fields, theirs = spm_fields(tmp_path, add_space_prefix=prefix)
    ours = load(write_gguf(tmp_path / "t.gguf", **fields))
    for text in PLAIN:
        token_ids = theirs.encode(text)
        assert ours.encode(text) == [1, *token_ids], text
        assert ours.decode(token_ids) == theirs.decode(token_ids), text


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_sentencepiece_equals_transformers(tmp_path: Path, architecture: str) -> None:
    fields, _ = spm_fields(tmp_path, add_bos_token=False, add_space_prefix=architecture == "llama")
    path = write_gguf(tmp_path / "t.gguf", architecture=architecture, **fields)
    ours, theirs = load(path), from_transformers(path)
    # transformers puts no second space before text that starts with one, and none after special tokens; llama.cpp does both.
    for text in PLAIN if architecture == "llama" else SAMPLES:
        if architecture == "llama" and text.startswith(" "):
            continue
        token_ids = theirs.encode(text)
        assert ours.encode(text) == token_ids, text
        assert ours.decode(token_ids) == theirs.decode(token_ids, skip_special_tokens=True), text


def test_gemmas_runs_of_spaces_are_tokens(tmp_path: Path) -> None:
    fields, _ = spm_fields(tmp_path, add_space_prefix=False)
    fields["tokens"] += ["  ", "    "]
    fields["scores"] += [-900.0, -901.0]
    fields["token_type"] += [int(USER_DEFINED)] * 2
    ours = load(write_gguf(tmp_path / "t.gguf", architecture="gemma", **fields))
    token_ids = ours.encode("a    b", add_special_tokens=False)
    assert len(fields["tokens"]) - 1 in token_ids
    assert ours.decode(token_ids) == "a    b"


def test_phi3s_special_tokens_swallow_the_space_after_them(tmp_path: Path) -> None:
    fields, _ = spm_fields(tmp_path)
    plain = load(write_gguf(tmp_path / "llama.gguf", **fields))
    phi = load(write_gguf(tmp_path / "phi.gguf", architecture="phi3", **fields))
    assert phi.encode("<|end|>\n the") == plain.encode("<|end|>the") != plain.encode("<|end|>\n the")
    assert phi.encode("<s>\n the") == plain.encode("<s>\n the")


def test_the_prefix_comes_after_every_special_token_and_is_dropped_once(tmp_path: Path) -> None:
    fields, _ = spm_fields(tmp_path)
    ours = load(write_gguf(tmp_path / "t.gguf", **fields))
    word = fields["tokens"].index("▁the")
    assert ours.encode("the</s>the") == [1, word, 2, word]
    assert ours.decode([1, word, 2, word]) == "the the"


def test_merges_of_the_file_come_before_scores(tmp_path: Path) -> None:
    fields, _ = spm_fields(tmp_path)
    del fields["scores"]
    ours = load(write_gguf(tmp_path / "t.gguf", **fields, merges=["▁ t"]))
    assert [ours.token_text(token) for token in ours.encode("the", add_special_tokens=False)] == [" t", "h", "e"]


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_the_chat_template_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", **byte_level_fields(byte_level("gpt-2"), "gpt-2"), chat_template="{{ messages }}")
    assert load(path).chat_template == "{{ messages }}"


def test_the_override_may_be_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", **byte_level_fields(byte_level("gpt-2"), "gpt-2"))
    assert load_tokenizer(ModelFiles("model", "hf", tmp_path / "nowhere"), str(path)).eos_token == "</s>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, r"looked for tokenizer\.ggml\.model"),
        ({"tokens": None}, r"looked for tokenizer\.ggml\.model"),
        ({"model": "rwkv"}, "'rwkv'; those that are read: gpt2, llama"),
        ({"merges": None}, r"needs tokenizer\.ggml\.merges"),
        ({"merges": ["a b c"]}, "no pair of tokens"),
        ({"merges": ["zz zzz"]}, "not sound"),
        ({"token_type": [1, 1]}, "has 2 entries"),
        ({"eos_token_id": 100_000}, "eos_token_id is 100000"),
        ({"model": "llama"}, "scores"),
    ],
)
def test_an_unsound_vocabulary_is_refused_with_the_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    fields = byte_level_fields(byte_level("gpt-2"), "gpt-2", **changes)
    if changes.get("model") == "llama":
        del fields["merges"]
    with pytest.raises(ModelLoadError, match=message):
        load(write_gguf(tmp_path / "t.gguf", **fields))


def test_reading_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "t.gguf", **byte_level_fields(byte_level("gpt-2"), "gpt-2"))
    script = (
        "import sys; from pathlib import Path; from octavo.models.hub import ModelFiles; "
        "from octavo.frontend.tokenizer import load_tokenizer; "
        "load_tokenizer(ModelFiles('x', 'gguf', Path(sys.argv[1]))); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
