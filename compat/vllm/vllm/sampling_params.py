"""vLLM's module of this name: how a request samples."""

from __future__ import annotations

from octavo import SamplingParams

__all__ = ["SamplingParams"]
