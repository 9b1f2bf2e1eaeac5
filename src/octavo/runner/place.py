"""A worker's place among the ranks that share a model: what it holds, and how it reaches the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.models.sharding import Shard
from octavo.ops.base import Group

if TYPE_CHECKING:
    from octavo.distributed.stage_link import StageLink


@dataclass(frozen=True, slots=True)
class Place:
    """Attributes:
    shard: the rank's part of the model.
    group: the ranks that share its layers; None where it has them alone.
    link: to the stages before and after its own; None where there is one stage.
    """

    shard: Shard
    group: Group | None
    link: StageLink | None = None
