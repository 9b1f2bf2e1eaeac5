"""A model whose tokens are bytes, as far as the frontend sees models: text and tokens can be read off each other."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from octavo.frontend.served_model import ServedModel
from octavo.frontend.tokenizer import Tokenizer
from octavo.frontend.tokenizer_parts import TokenizerParts
from octavo.frontend.tool_calls.formats import GENERIC
from octavo.models.config import ModelConfig, RotaryConfig

EOS = 256
"""The id of ``</s>``; ids below are the bytes."""

VOCAB_SIZE = 260
"""Rows of the embedding: a few more than there are tokens, as in many real models."""


def byte_tokenizer() -> Tokenizer:
    """Ids 0 .. 255 are the bytes themselves, 256 is the special token ``</s>``."""
    backend = Backend(models.BPE(vocab=_byte_pieces(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(TokenizerParts(backend, "test"))


def _byte_pieces() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for characters from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


def byte_model(max_model_len: int = 64, **changes: Any) -> ServedModel:
    """What the frontend knows of a tiny Llama over bytes."""
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        model_type="llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=8,
        intermediate_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_position_embeddings=max_model_len,
        norm_eps=1e-5,
        rotary=RotaryConfig(4),
        windows=(None,),
        attention_scale=0.5,
        eos_token_ids=(EOS,),
    )
    known: dict[str, Any] = {
        "name": "bytes",
        "config": config,
        "tokenizer": byte_tokenizer(),
        "max_model_len": max_model_len,
        "chat_template": None,
        "tool_format": GENERIC,
        "reasoning": None,
        "sampling_defaults": {},
        "longest_token_chars": 1,
    }
    return ServedModel(**known | changes)
