"""``/tokenize`` and ``/detokenize``: the model's tokenizer over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from octavo.errors import InvalidRequestError
from octavo.server import chat_prompt
from octavo.server.openapi import describe_route
from octavo.server.protocol import Body, DetokenizeRequest, TemplateFields, TokenizeRequest
from octavo.server.request_body import parse
from octavo.server.responses import DetokenizeResponse, TokenizeResponse
from octavo.server.service import service_of
from octavo.server.stream import json_response

if TYPE_CHECKING:
    from octavo.frontend.served_model import ServedModel

router = APIRouter(tags=["Octavo"])


@router.post("/tokenize", **describe_route(TokenizeRequest, TokenizeResponse))
async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of a chat as its template makes it."""
    service = service_of(request)
    body = await parse(request, TokenizeRequest, service.options.max_body_bytes)
    model = await service.model(body.model)
    text, adds = await _text(body, model)
    tokens = await asyncio.to_thread(model.tokenizer.encode, text, add_special_tokens=adds)
    strings = [model.tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None
    return json_response(TokenizeResponse(len(tokens), model.max_model_len, tokens, strings))


@router.post("/detokenize", **describe_route(DetokenizeRequest, DetokenizeResponse))
async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    service = service_of(request)
    body = await parse(request, DetokenizeRequest, service.options.max_body_bytes)
    model = await service.model(body.model)
    size = model.tokenizer.vocab_size
    for token in body.tokens:
        if not 0 <= token < size:
            raise InvalidRequestError(f"tokens must be ids in [0, {size - 1}]; got {token}.", "tokens")
    text = await asyncio.to_thread(model.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return json_response(DetokenizeResponse(text))


async def _text(body: TokenizeRequest, model: ServedModel) -> tuple[str, bool]:
    """The text to tokenise, and whether the model's special tokens are added to it."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("Send either prompt or messages.", "prompt")
    if body.messages is not None:
        return await chat_prompt.render(body.messages, body, model), bool(body.add_special_tokens)
    for name in TemplateFields.model_fields.keys() - Body.model_fields.keys():
        if getattr(body, name) is not None:
            raise InvalidRequestError(f"{name} is only for messages.", name)
    return body.prompt or "", body.add_special_tokens is not False
