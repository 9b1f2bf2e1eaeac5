"""A worker's place among the ranks that share a model: what it holds, and how it reaches the others."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.models.sharding import Shard
from octavo.ops.base import Group


@dataclass(frozen=True, slots=True)
class Place:
    """Attributes:
    shard: the rank's part of the model.
    group: the ranks that share its layers; None where it has them alone.
    """

    shard: Shard
    group: Group | None

    @property
    def samples(self) -> bool:
        """Whether the rank samples: of those that score the vocabulary, the one that all scores are gathered on."""
        return self.shard.is_last and self.shard.rank == 0
