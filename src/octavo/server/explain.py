"""Where a request's time went, for clients that ask with ``explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from octavo.server.protocol import SamplingFields
from octavo.server.responses import Explain

if TYPE_CHECKING:
    from octavo.server.generation import Generation


def explain_of(body: SamplingFields, generation: Generation) -> Explain | UnsetType:
    """The figures of a generation that has ended, where they were asked for. Of several prompts the longest spans, and the sums."""
    if not body.explain:
        return UNSET
    followers = generation.followers
    spans = [follower.spans for follower in followers if follower.spans is not None]
    return Explain(
        queue_ms=_longest([span.queue for span in spans]),
        prefill_ms=_longest([span.prefill for span in spans]),
        decode_ms=_longest([span.decode for span in spans]),
        ttft_ms=_longest([span.first_token for span in spans]),
        cached_tokens=sum(follower.cached for follower in followers),
        preemptions=sum(follower.preemptions for follower in followers),
    )


def _longest(seconds: list[float]) -> float | None:
    return round(max(seconds) * 1000, 3) if seconds else None
