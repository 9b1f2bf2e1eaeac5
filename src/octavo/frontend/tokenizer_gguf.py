"""The vocabulary inside a GGUF file, rebuilt as a ``tokenizers`` backend.

A GGUF file has tokens, scores, types and merges, and names for the rest: ``tokenizer.ggml.model`` (``gpt2``: byte-level BPE,
``llama``: SentencePiece BPE) and ``tokenizer.ggml.pre`` (how text is cut before merging). What the names mean is llama.cpp's to
say (src/llama-vocab.cpp); the patterns are those of the models' own ``tokenizer.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.frontend.gguf_pre_tokenizers import PRE_TOKENIZERS
from octavo.frontend.tokenizer_parts import NAMED_TOKENS, WORD_START, TokenizerParts, derive_merges, frame, plain, special
from octavo.frontend.tokenizer_spm import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, set_space_rules
from octavo.quantization.gguf import open_gguf

_KEY = "tokenizer.ggml."
_ID_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # sic, in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
_PHI3_KEEPS_SPACE_AFTER = ("<unk>", "<s>", "<|endoftext|>")
"""Phi-3's special tokens swallow the white space after them, but for these; a GGUF file does not say so."""


class Vocabulary:
    """A GGUF file's vocabulary, checked.

    Attributes:
        kind: ``tokenizer.ggml.model``. architecture: ``general.architecture``.
        tokens, types: text and type (``NORMAL``, ``CONTROL``, ...) by id.
        scores: by id, empty where the file has none. merges: pairs, best first, None where it has none.
    """

    def __init__(self, metadata: dict[str, Any], source: str) -> None:
        self.source = source
        self._metadata = metadata
        self.architecture = str(metadata.get("general.architecture", ""))
        self.kind = self.get("model")
        if self.kind is None or self.get("tokens") is None:
            raise ModelLoadError(f"{source}: no tokenizer in the file; looked for {_KEY}model and {_KEY}tokens. Name one with --tokenizer.")
        self.tokens: list[str] = [str(token) for token in self.get("tokens")]
        self.types = [int(kind) for kind in self._listed("token_type", NORMAL)]
        self.scores = [float(score) for score in self._listed("scores", None)]
        self.merges = self._pairs()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``tokenizer.ggml.<key>``."""
        return self._metadata.get(_KEY + key, default)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, default))

    @property
    def chat_templates(self) -> dict[str, str]:
        """The default template and, under ``tokenizer.chat_template.<name>``, others."""
        start = "tokenizer.chat_template"
        found = {"default": self._metadata[start]} if isinstance(self._metadata.get(start), str) else {}
        names = self._metadata.get("tokenizer.chat_templates")
        for name in names if isinstance(names, list) else []:
            if isinstance(template := self._metadata.get(f"{start}.{name}"), str):
                found[str(name)] = template
        return found

    def named_tokens(self) -> dict[str, str]:
        """Special tokens by name.

        Raises:
            ModelLoadError: an id is outside the vocabulary.
        """
        named: dict[str, str] = {}
        for name in NAMED_TOKENS:
            token_id = self.get(_ID_KEYS[name])
            if token_id is None:
                continue
            if not 0 <= int(token_id) < len(self.tokens):
                raise ModelLoadError(f"{self.source}: {_KEY}{_ID_KEYS[name]} is {token_id}, the vocabulary has {len(self.tokens)} tokens.")
            named[name] = self.tokens[int(token_id)]
        return named

    def _listed(self, key: str, filler: Any) -> Sequence[Any]:
        values = self.get(key)
        if values is None:
            return [] if filler is None else [filler] * len(self.tokens)
        if len(values) != len(self.tokens):
            raise ModelLoadError(f"{self.source}: {_KEY}{key} has {len(values)} entries, the vocabulary {len(self.tokens)} tokens.")
        return list(values)

    def _pairs(self) -> list[tuple[str, str]] | None:
        lines = self.get("merges")
        if lines is None:
            return None
        pairs = [tuple(str(line).split(" ")) for line in lines]
        if wrong := next((pair for pair in pairs if len(pair) != 2), None):
            raise ModelLoadError(f"{self.source}: {_KEY}merges holds {' '.join(wrong)!r}, which is no pair of tokens.")
        return [(pair[0], pair[1]) for pair in pairs]


def read_gguf(path: Path) -> TokenizerParts:
    """Read the tokenizer inside a GGUF file.

    Raises:
        ModelLoadError: it has none, or a broken one.
        UnsupportedModelError: its kind or pre-tokenizer is not one Octavo knows; the message lists those it does.
    """
    vocabulary = Vocabulary(open_gguf(path).metadata, str(path))
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if vocabulary.kind not in builders:
        raise UnsupportedModelError(f"{path}: {_KEY}model is {vocabulary.kind!r}; those that are read: {', '.join(builders)}.")
    named = vocabulary.named_tokens()
    try:
        backend, adds_bos = builders[vocabulary.kind](vocabulary)
    except (ModelLoadError, UnsupportedModelError):
        raise
    except Exception as error:  # tokenizers raises bare Exception, for a merge of unknown tokens and the like
        raise ModelLoadError(f"{path}: its vocabulary is not sound: {error}") from error
    backend.add_tokens(_added_tokens(vocabulary, set(named.values()) - {named.get("unk_token")}))
    bos = named.get("bos_token") if vocabulary.flag("add_bos_token", adds_bos) else None
    eos = named.get("eos_token") if vocabulary.flag("add_eos_token", False) else None
    frame(backend, bos, eos)
    return TokenizerParts(backend, str(path), named, set(named.values()), vocabulary.chat_templates)


def _added_tokens(vocabulary: Vocabulary, named: set[str]) -> list[AddedToken]:
    """Tokens that are found whole in text: control tokens are special, user-defined ones are not."""
    swallows = vocabulary.architecture == "phi3" and vocabulary.kind == "llama"
    added: list[AddedToken] = []
    for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in (CONTROL, UNKNOWN) or text in named:
            added.append(special(text, rstrip=swallows and text not in _PHI3_KEEPS_SPACE_AFTER))
        elif kind == USER_DEFINED:
            added.append(plain(text))
    return [token for token in added if token.content]


def _byte_level(vocabulary: Vocabulary) -> tuple[Backend, bool]:
    """Byte-level BPE. Also says whether such models put a begin token before text where the file does not say."""
    name = vocabulary.get("pre", "default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedModelError(f"{vocabulary.source}: {_KEY}pre is {name!r}, which is not known; those that are: {known}.")
    if vocabulary.merges is None:
        raise ModelLoadError(f"{vocabulary.source}: a byte-level BPE vocabulary needs {_KEY}merges.")
    rules = PRE_TOKENIZERS[name]
    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    backend = Backend(BPE(vocab, vocabulary.merges, ignore_merges=rules.ignores_merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if rules.composes:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend, rules.adds_bos


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Backend, bool]:
    """SentencePiece's BPE: pieces with scores, bytes for what has no piece."""
    is_gemma = vocabulary.architecture.startswith("gemma")
    # Gemma's runs of spaces are stored as spaces; text reaches the merges with WORD_START in their place.
    tokens = [WORD_START * len(text) if is_gemma and text and not text.strip(" ") else text for text in vocabulary.tokens]
    vocab = {text: index for index, text in enumerate(tokens)}
    merges = vocabulary.merges
    if merges is None:
        # Gemma's scores do not follow the order its pieces were made in; the order of the file does.
        scores: Sequence[float] = [-float(index) for index in range(len(tokens))] if is_gemma else vocabulary.scores
        if not scores:
            raise ModelLoadError(f"{vocabulary.source}: a SentencePiece vocabulary needs {_KEY}scores or {_KEY}merges.")
        entries = zip(tokens, scores, vocabulary.types, strict=True)
        merges = derive_merges(vocab, [(text, score) for text, score, kind in entries if kind not in (CONTROL, UNKNOWN, BYTE)])
    unknown = vocabulary.named_tokens().get("unk_token")
    has_bytes = BYTE in vocabulary.types
    backend = Backend(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes))
    set_space_rules(backend, prefix=vocabulary.flag("add_space_prefix", True), legacy=True, before=[], has_bytes=has_bytes)
    return backend, True
