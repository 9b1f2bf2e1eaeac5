"""vLLM's module of this name: what a request gives back."""

from __future__ import annotations

from octavo import CompletionOutput, RequestOutput

__all__ = ["CompletionOutput", "RequestOutput"]
