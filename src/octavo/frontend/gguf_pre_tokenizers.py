"""How byte-level BPE vocabularies cut text before merging, by the names GGUF files use (``tokenizer.ggml.pre``).

The patterns are those of the models' own ``tokenizer.json``; which name means which, whether a whole word that is a token is
taken before any merge, and whether a begin token is put first, is llama.cpp's to say (src/llama-vocab.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Rules of one name.

    Attributes:
        patterns: applied one after the other; each cuts what the ones before left into matches and the stretches between.
        ignores_merges: a word that is a token stays whole, whether or not merges lead to it.
        adds_bos: a begin token comes before text where the file does not say.
        composes: text is brought to Unicode's composed form (NFC) first, as the model's own tokenizer does.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False
    composes: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_QWEN35 = (
    rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_TAIL}"
_GPT4O = rf"{_CASED[0]}{_SUFFIXES}?|{_CASED[1]}{_SUFFIXES}?|\p{{N}}{{1,3}}|{_CASED_TAIL}"


def _named(names: str, rules: PreTokenizer) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), rules)


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **_named("default", PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    **_named("gpt-2 phi-2 mpt olmo jais exaone4 trillion", PreTokenizer((_GPT2,))),
    **_named("smollm starcoder refact command-r codeshell exaone minerva-7b", PreTokenizer((r"\p{N}", _GPT2))),
    **_named("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    **_named("llama-bpe llama3 llama-v3 falcon3 pixtral", PreTokenizer((_LLAMA3,), ignores_merges=True, adds_bos=True)),
    **_named("dbrx smaug-bpe", PreTokenizer((_LLAMA3,))),
    **_named("qwen2", PreTokenizer((_QWEN2,), composes=True)),
    **_named("deepseek-r1-qwen megrez stablelm2", PreTokenizer((_QWEN2,))),
    **_named("qwen35", PreTokenizer((_QWEN35,), composes=True)),
    **_named("tekken", PreTokenizer((_TEKKEN,), ignores_merges=True, adds_bos=True)),
    **_named("gpt-4o llama4", PreTokenizer((_GPT4O,))),
}
