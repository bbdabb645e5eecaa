"""/v1/embeddings: the pooled hidden states of texts."""

from __future__ import annotations

import asyncio
import base64
import math
from array import array

import msgspec
from aiohttp import web

from sophserve.api.body import json_response, read_body, warn_unknown
from sophserve.api.generation import engine_errors
from sophserve.api.prompts import cut, each_in_slices, encode, listed, log_prompts
from sophserve.api.record import current_record, name_request
from sophserve.api.serving import SERVING, Serving
from sophserve.engine.checks import check_input
from sophserve.errors import RequestError


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body: OpenAI's, and what vLLM adds. dimensions: how many numbers of each embedding to keep."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    priority: int | None = None
    request_id: str | None = None
    timeout: float | None = None


async def embeddings(request: web.Request) -> web.Response:
    """One vector of length 1 for each input."""
    serving = request.app[SERVING]
    body, unknown = await read_body(request, EmbeddingRequest)
    model = serving.check_model(body.model)
    as_text = body.encoding_format == "base64"
    if body.encoding_format not in (None, "float", "base64"):
        raise RequestError("encoding_format must be float or base64", "encoding_format")
    if body.dimensions is not None and body.dimensions < 1:
        raise RequestError(f"dimensions must be at least 1, got {body.dimensions}", "dimensions")
    texts = await serving.texts.run(lambda: listed(body.input, "input"))
    async with serving.admitted(len(texts), body.timeout):
        inputs = await each_in_slices(serving, texts, lambda text: _tokens(serving, text, body))
        vectors = await _embed(serving, inputs, body)
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if as_text else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    used = sum(map(len, inputs))
    usage = {"prompt_tokens": used, "total_tokens": used}
    return json_response({"object": "list", "data": data, "model": model, "usage": usage}, warn_unknown(unknown))


def _tokens(serving: Serving, text: str | list[int], body: EmbeddingRequest) -> list[int]:
    if isinstance(text, str):
        special, bounded = body.add_special_tokens is not False, body.truncate_prompt_tokens is None
        text = encode(serving, text, special, bounded)
    context = serving.engine.info.max_model_len
    tokens = cut(text, body.truncate_prompt_tokens, body.truncation_side or "left", context)
    check_input(tokens, serving.engine.info)
    return tokens


async def _embed(serving: Serving, inputs: list[list[int]], body: EmbeddingRequest) -> list[array[float]]:
    """The vectors, made at once in as few steps as they fit in."""
    identity, record, engine = name_request("embd-", body.request_id), current_record.get(), serving.engine
    log_prompts(serving, identity, inputs)
    record.prompt_tokens = sum(map(len, inputs))
    record.spend(record.prompt_tokens)
    priority = (body.priority or 0) + record.priority
    tasks = [
        asyncio.create_task(engine.embed(tokens, serving.pooling, identity, index, priority))
        for index, tokens in enumerate(inputs)
    ]
    try:
        with engine_errors(engine):
            vectors = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [_shortened(vector, body.dimensions) for vector in vectors]


def _shortened(vector: array[float], dimensions: int | None) -> array[float]:
    """The first numbers of a vector, scaled to length 1."""
    if dimensions is not None and dimensions > len(vector):
        raise RequestError(f"dimensions must be at most {len(vector)}, got {dimensions}", "dimensions")
    vector = vector[:dimensions]
    length = math.hypot(*vector)
    return array("f", [value / length for value in vector]) if length else vector


def _base64(vector: array[float]) -> str:
    return base64.b64encode(vector.tobytes()).decode()
