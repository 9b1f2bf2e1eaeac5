"""Weights in a GGUF file, under Hugging Face's names and in its layout."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.config import ModelConfig
from octavo.models.families import BY_ARCHITECTURE, Family
from octavo.models.stored_rows import StoredRows
from octavo.quantization.base import StoredTensor, WeightSource
from octavo.quantization.gguf import GGUFFile

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_MERGED_LAYER = {"ffn_up": "mlp.gate_up_proj"}
_NOT_WEIGHTS = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd\.weight")
"""Rotary tables; ``gguf_config`` reads the first three."""
_NAME = re.compile(r"(?:blk\.(\d{1,5})\.)?([a-z_]+)\.(weight|bias)")


class GGUFSource(WeightSource):
    """The tensors of a GGUF file.

    Llama files store each head's query and key rows with the two rotary halves interleaved; they are read back in Hugging Face's
    order. Gemma files store norm weights plus one; the one is taken off again.

    Raises:
        UnsupportedModelError: the file holds a tensor that the model would ignore.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._file = file
        self._config = config
        family = BY_ARCHITECTURE[config.architecture]
        layer_names = _LAYER | (_GEMMA_LAYER if family.gemma else {}) | (_MERGED_LAYER if family.merged else {})
        self._shifted = family.gemma
        self._interleaved = _interleaved(family)
        self._stored_names: dict[str, str] = {}
        for stored_name in file.tensors:
            if not _NOT_WEIGHTS.fullmatch(stored_name):
                self._stored_names[self._translate(stored_name, layer_names)] = stored_name

    def __contains__(self, name: str) -> bool:
        return name in self._stored_names

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._stored_names:
            raise ModelLoadError(f"{self._file.path}: the checkpoint has no tensor {name!r}.")
        tensor = self._file.tensors[self._stored_names[name]]
        return StoredRows(
            name,
            tensor.shape,
            tensor.format,
            self._file.data(tensor.name),
            row_order=self._row_order(name, tensor.shape[0]),
            shift=-1.0 if self._shifted and name.endswith("norm.weight") else 0.0,
            let_go=self._file.let_go,
        )

    def names(self) -> list[str]:
        return list(self._stored_names)

    def let_go(self) -> None:
        self._file.let_go()

    def _translate(self, stored_name: str, layer_names: dict[str, str]) -> str:
        if match := _NAME.fullmatch(stored_name):
            layer, part, kind = match.groups()
            if layer is None and part in _TOP:
                return f"{_TOP[part]}.{kind}"
            if layer is not None and part in layer_names:
                return f"model.layers.{int(layer)}.{layer_names[part]}.{kind}"
        raise UnsupportedModelError(f"{self._file.path}: {self._config.architecture} has no use for tensor {stored_name!r}.")

    def _row_order(self, name: str, rows: int) -> npt.NDArray[np.int64] | None:
        """Where each row of a query or key projection lies in a file that interleaves rotary halves."""
        if not self._interleaved or not name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
            return None
        head_dim = self._config.head_dim
        if rows % head_dim or head_dim % 2:
            raise ModelLoadError(f"{self._file.path}: tensor {name!r} has {rows} rows, which are no heads of {head_dim}.")
        stored = np.arange(rows, dtype=np.int64).reshape(-1, head_dim // 2, 2)
        return stored.swapaxes(1, 2).reshape(-1)


def _interleaved(family: Family) -> bool:
    return family.gguf == "llama"
