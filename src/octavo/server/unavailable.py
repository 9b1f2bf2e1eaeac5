"""Routes that clients know and this version does not serve: they say so, and what they would be for."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from octavo.server.errors import NotAvailableError
from octavo.server.openapi import describe_refusal

EMBEDDINGS = "embedding models"
SCORING = "scoring and reranking models"
ADAPTERS = "LoRA adapters"

UNAVAILABLE = {
    "/v1/embeddings": EMBEDDINGS,
    "/pooling": EMBEDDINGS,
    "/score": SCORING,
    "/rerank": SCORING,
    "/v1/rerank": SCORING,
    "/v1/load_lora_adapter": ADAPTERS,
    "/v1/unload_lora_adapter": ADAPTERS,
}
"""Paths, and what this version would need to answer them."""

router = APIRouter(tags=["Not available"])


async def refuse(request: Request) -> Response:
    """501: not in this version."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    raise NotAvailableError(f"{path} is not available: {UNAVAILABLE[path]} are not in this version of Octavo.")


for _path in UNAVAILABLE:
    router.add_api_route(_path, refuse, methods=["POST"], **describe_refusal(501, "Not in this version"))
