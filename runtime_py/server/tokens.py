"""`/tokenize`, `/detokenize` and `/apply-template`, as llama.cpp has them."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from runtime_py.server.chat import rendered
from runtime_py.server.models import ServedModel
from runtime_py.server.responses import Json, ignored_header
from runtime_py.server.schemas import DetokenizeRequest, TemplateRequest, TokenizeRequest, parse
from runtime_py.server.service import service_of


async def tokenize(request: Request) -> Response:
    """Encode a text.

    Args:
        request: A `TokenizeRequest`.

    Returns:
        The token ids; with `with_pieces`, also the text of each, or its bytes.
    """
    fields = parse(TokenizeRequest, await request.body())
    model = service_of(request).models.find(fields.model)
    encode = model.package.tokenizer.encode
    ids = await asyncio.to_thread(encode, fields.content, bool(fields.add_special))
    tokens: list[Any] = [_with_piece(model, token) for token in ids] if fields.with_pieces else ids
    return Json({"tokens": tokens}, headers=ignored_header(fields))


async def detokenize(request: Request) -> Response:
    """Decode token ids.

    Args:
        request: A `DetokenizeRequest`.

    Returns:
        The text.
    """
    fields = parse(DetokenizeRequest, await request.body())
    model = service_of(request).models.find(fields.model)
    content = await asyncio.to_thread(model.package.tokenizer.decode, fields.tokens)
    return Json({"content": content}, headers=ignored_header(fields))


async def apply_template(request: Request) -> Response:
    """Render a conversation.

    Args:
        request: A `TemplateRequest`.

    Returns:
        The prompt.
    """
    fields = parse(TemplateRequest, await request.body())
    model = service_of(request).models.find(fields.model)
    prompt = await asyncio.to_thread(rendered, model, fields, fields.tools or ())
    return Json({"prompt": prompt}, headers=ignored_header(fields))


async def count_tokens(request: Request) -> Response:
    """Count the tokens of a conversation.

    Args:
        request: A `TemplateRequest`.

    Returns:
        The number of tokens of its prompt.
    """
    fields = parse(TemplateRequest, await request.body())
    model = service_of(request).models.find(fields.model)
    prompt = await asyncio.to_thread(rendered, model, fields, fields.tools or ())
    ids = await asyncio.to_thread(model.package.tokenizer.encode, prompt, False)
    return Json({"object": "response.input_tokens", "input_tokens": len(ids)}, headers=ignored_header(fields))


def _with_piece(model: ServedModel, token: int) -> dict[str, Any]:
    content = model.token_bytes(token)
    try:
        return {"id": token, "piece": content.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(content)}
