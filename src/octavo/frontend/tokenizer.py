"""The tokenizer: text to token ids and back, from whatever files a model brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Backend

from octavo.errors import ConfigError, InvalidRequestError
from octavo.frontend.piece_bytes import PieceDecoder, read_decoder
from octavo.frontend.tokenizer_files import fetch_tokenizer, read_directory, read_file
from octavo.frontend.tokenizer_gguf import read_gguf
from octavo.frontend.tokenizer_parts import TokenizerParts
from octavo.models.hub import ModelFiles


def load_tokenizer(files: ModelFiles, tokenizer: str | None = None, revision: str | None = None) -> Tokenizer:
    """Load a model's tokenizer, or another one in its place.

    Args:
        files: the model.
        tokenizer: a directory, a file (``tokenizer.json``, ``*.model``, ``*.gguf``) or a repository id; None for the model's own.
        revision: branch, tag or commit of that repository.

    Raises:
        ConfigError: ``tokenizer`` names a file of another kind.
        ModelLoadError: there is no tokenizer (naming the files looked for), or it is broken.
        UnsupportedModelError: it is of a kind Octavo does not read.
    """
    if tokenizer is None:
        return Tokenizer(read_gguf(files.path) if files.kind == "gguf" else read_directory(files.path))
    path = Path(tokenizer).expanduser()
    if path.is_dir():
        return Tokenizer(read_directory(path))
    if not path.is_file():
        return Tokenizer(read_directory(fetch_tokenizer(tokenizer, revision)))
    if path.suffix == ".gguf":
        return Tokenizer(read_gguf(path))
    if path.suffix in (".json", ".model"):
        return Tokenizer(read_file(path))
    raise ConfigError(f"tokenizer={tokenizer!r}: a tokenizer file is tokenizer.json, a *.model or a *.gguf file.")


class _ByteTable(dict[int, bytes]):
    """Bytes by token id, filled as ids are asked for; ids that name no token have none."""

    def __init__(self, decoder: PieceDecoder, backend: Backend, vocab_size: int, hidden: frozenset[int]) -> None:
        super().__init__()
        self._to_bytes = decoder.to_bytes
        self._piece = backend.id_to_token
        self._vocab_size = vocab_size
        self._hidden = hidden

    def __missing__(self, token: int) -> bytes:
        if token in self._hidden or not 0 <= token < self._vocab_size:
            return b""  # not kept: clients choose such ids
        piece = self._piece(token)
        self[token] = found = b"" if piece is None else self._to_bytes(piece)
        return found


class Tokenizer:
    """A model's tokenizer. Nothing in it changes after it is made: threads may share it.

    Attributes:
        backend: the ``tokenizers.Tokenizer`` that does the work.
        vocab_size: the largest token id, plus one.
        special_ids: ids of the special tokens.
        bos_token, eos_token: their text; None where there is none. bos_token_id, eos_token_id: their ids.
        named_tokens: special tokens by name (``bos_token``, ``pad_token``, ...), as chat templates see them.
        chat_templates: the model's chat templates by name.
        strips_space, separator: how pieces become text, see ``PieceDecoder``.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        backend = parts.backend
        backend.no_truncation()
        backend.no_padding()
        decoder = read_decoder(backend)
        added = backend.get_added_tokens_decoder()
        told = (backend.token_to_id(text) for text in (*parts.special_tokens, *parts.named_tokens.values()))
        self.backend = backend
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        marked = (token for token, entry in added.items() if entry.special)
        self.special_ids = frozenset(marked).union(token for token in told if token is not None)
        self.named_tokens = dict(parts.named_tokens)
        self.bos_token = parts.named_tokens.get("bos_token")
        self.eos_token = parts.named_tokens.get("eos_token")
        self.bos_token_id = None if self.bos_token is None else backend.token_to_id(self.bos_token)
        self.eos_token_id = None if self.eos_token is None else backend.token_to_id(self.eos_token)
        self.chat_templates = dict(parts.chat_templates)
        self.strips_space = decoder.strips_space
        self.separator = decoder.separator
        self._added_ids = frozenset(added)
        self._tables = {
            False: _ByteTable(decoder, backend, self.vocab_size, frozenset()),
            True: _ByteTable(decoder, backend, self.vocab_size, self.special_ids),
        }
        self._decoder = decoder
        self._partly: dict[frozenset[int], _ByteTable] = {}

    @property
    def chat_template(self) -> str | None:
        """The source of the default chat template."""
        return self.chat_templates.get("default")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Releases the GIL while it works: give long texts to a thread.

        Args:
            text: special tokens in it are taken for what they are.
            add_special_tokens: add those the model wants around a text (a chat template has put them there already).

        Raises:
            InvalidRequestError: the text holds a lone surrogate, which is no character.
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """``encode`` for several texts at once, on several cores."""
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            for text in texts:
                _check_text(text)
            raise
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True) -> str:
        """The text of token ids: their bytes in a row, as UTF-8.

        The same as ``tokenizers`` gives, but that each ill-formed stretch of bytes (Unicode's maximal subpart) is one U+FFFD in
        every vocabulary; ``tokenizers`` turns the whole run of byte tokens around it to U+FFFD where a vocabulary has those.

        Args:
            token_ids: ids that name no token have no text.
            skip_special_tokens: leave special tokens out.
            spaces_between_special_tokens: False puts nothing between neighbouring added tokens. It matters only for tokenizers
                without a decoder, whose tokens are joined by spaces; no other has anything between tokens.
        """
        data = self.join(token_ids, None, self._tables[skip_special_tokens], spaces_between_special_tokens)[0]
        text = data.decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to a text; they may be part of a character."""
        return self._tables[False][token_id]

    def token_text(self, token_id: int) -> str:
        """One token's text alone, special or not, with U+FFFD where it is part of a character."""
        return self._tables[False][token_id].decode("utf-8", "replace")

    def byte_table(self, skip_special_tokens: bool, shown: Sequence[str] = ()) -> Mapping[int, bytes]:
        """Bytes by token id; for special tokens none, if those are skipped. Takes any id.

        Args:
            shown: texts of special tokens that are not skipped with the others; texts that are none do not matter.
        """
        ids = frozenset(token for text in shown if (token := self.backend.token_to_id(text)) in self.special_ids)
        if not skip_special_tokens or not ids:
            return self._tables[skip_special_tokens]
        if ids not in self._partly:
            self._partly[ids] = _ByteTable(self._decoder, self.backend, self.vocab_size, self.special_ids - ids)
        return self._partly[ids]

    def has_token(self, text: str) -> bool:
        """Whether a text is one token of the vocabulary."""
        return self.backend.token_to_id(text) is not None

    def join(self, token_ids: Sequence[int], before: int | None, table: Mapping[int, bytes], spaces: bool) -> tuple[bytes, int | None]:
        """Bytes of tokens in a row, with separators where the tokenizer has them.

        Args:
            token_ids: the tokens.
            before: the token shown last before them; None at the start of a text.
            table: see ``byte_table``. spaces: as ``decode``'s.

        Returns:
            The bytes, and the token shown last.
        """
        if not self.separator:
            return b"".join([table[token] for token in token_ids]), before
        parts: list[bytes] = []
        for token in token_ids:
            shown = table[token]
            if not shown:
                continue
            if before is not None and (spaces or token not in self._added_ids or before not in self._added_ids):
                parts.append(self.separator)
            parts.append(shown)
            before = token
        return b"".join(parts), before


def _check_text(text: str) -> None:
    """Refuse what has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"The text holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; it must be valid Unicode.",
            "prompt",
        ) from None
