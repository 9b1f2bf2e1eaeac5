"""The kernels' one interface. A backend implements ``Ops``; the layers call nothing else.

Backends are peers: ``reference`` (plain torch, any device, the oracle), later ``cpu`` (C++) and ``cuda`` (Triton).
Shapes: T tokens in the step, S sequences, H hidden size, Hq query heads, Hk key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class AttentionBatch:
    """The geometry of one step, shared by all layers.

    Tokens of a sequence are adjacent; sequence ``s`` owns rows ``query_starts[s] : query_starts[s + 1]``, whose last row
    is at position ``context_lens[s] - 1``.

    Attributes:
        positions: int64 [T], each token's position in its sequence.
        slots: int64 [T], where each token's key and value go: block id * block size + offset in the block.
        query_starts: int32 [S + 1].
        context_lens: int32 [S], tokens of the sequence after this step (cached ones and this step's).
        block_tables: int32 [S, most blocks], padded with 0.
        query_lens, context_lens_host: the same numbers as lists, for host decisions.
        block_size: token slots in a block.
        plans: what a backend computes once a step and all layers share, under the backend's own keys; starts empty.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    query_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    query_lens: list[int]
    context_lens_host: list[int]
    block_size: int
    plans: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What one layer's attention is: fixed at load.

    Attributes:
        scale: factor on query-key products.
        window: a query at position p sees positions p - window + 1 .. p; None sees all up to p.
        softcap: scores become softcap * tanh(score / softcap); None leaves them.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(slots=True)
class KVLayer:
    """One layer's view of the page pool.

    Attributes:
        keys, values: [blocks, block size, Hk, D]; strided over the blocks of the pool, contiguous within one.
    """

    keys: torch.Tensor
    values: torch.Tensor


class PackedLinear:
    """A weight in a backend's own layout; only that backend's ``linear`` reads it."""

    __slots__ = ("data", "in_features", "out_features")

    def __init__(self, data: object, in_features: int, out_features: int) -> None:
        self.data = data
        self.in_features = in_features
        self.out_features = out_features


class Ops(ABC):
    """The fused operations a decoder needs. Outputs are new tensors unless a docstring says in place."""

    name: str

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype

    # ---- weights -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """Lay out a weight [N, K] and bias [N] for ``linear``. The arguments may be freed afterwards."""

    @abstractmethod
    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """[T, K] times the packed weight [N, K] transposed, plus its bias: [T, N] in x's dtype."""

    @abstractmethod
    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Rows of ``table`` [V, H] at int64 ``token_ids`` [T], times ``scale`` (rounded to the dtype first).

        Returns:
            float32 [T, H], a new tensor: the start of the residual stream.
        """

    @abstractmethod
    def logits(self, x: torch.Tensor, weight: PackedLinear, softcap: float | None = None) -> torch.Tensor:
        """Vocabulary scores of rows [R, H], capped where ``softcap`` is set: float32 [R, V], not rounded to the compute type."""

    # ---- element-wise ------------------------------------------------------------------------------------------------

    @abstractmethod
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False) -> torch.Tensor:
        """RMSNorm over the last dimension of float32 or compute-type rows, computed in float32.

        Args:
            plus_one: multiply by 1 + weight.

        Returns:
            x's shape in the compute type.
        """

    @abstractmethod
    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``residual + x`` and its RMSNorm, as (normed, sum).

        Args:
            x: [T, H] in the compute type.
            residual: float32 [T, H]; may be overwritten with the sum.
        """

    @abstractmethod
    def gated_activation(self, gate_up: torch.Tensor, kind: str) -> torch.Tensor:
        """act(gate) * up for [T, 2 I] holding gate then up; ``kind`` is silu or gelu_tanh: [T, I]."""

    # ---- attention ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def rotary_and_cache(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos_sin: torch.Tensor,
        batch: AttentionBatch,
        kv: KVLayer,
    ) -> torch.Tensor:
        """Rotate queries and keys by their positions, write keys and values to their slots.

        Args:
            q: [T, Hq, D]; k, v: [T, Hk, D]; may be overwritten.
            cos_sin: float32 [positions, rotary dim]: cosines then sines of rotary dim / 2 angles; halves of a head are
                rotated against each other (Hugging Face's convention), dimensions past the rotary dim pass unchanged.

        Returns:
            The rotated queries [T, Hq, D].
        """

    @abstractmethod
    def paged_attention(self, q: torch.Tensor, batch: AttentionBatch, kv: KVLayer, spec: AttentionSpec) -> torch.Tensor:
        """Causal attention of each row over its sequence's cached positions up to its own: [T, Hq, D]."""

    # ---- pool --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def copy_blocks(self, pool: torch.Tensor, copies: list[tuple[int, int]]) -> None:
        """Copy whole blocks of the byte pool [blocks, bytes a block] in place, (source, destination) each, as if at once."""
