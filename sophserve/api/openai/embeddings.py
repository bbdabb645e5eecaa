"""/v1/embeddings: the pooled hidden states of texts."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.generation.pooled import pooled
from sophserve.api.generation.prompts import cut, each_in_slices, encode, listed
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.body import read_body, warn_unknown
from sophserve.api.http.json_pieces import Rows, respond_json
from sophserve.api.http.request_record import name_request
from sophserve.engine.request_checks import check_input
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


async def embeddings(request: web.Request) -> web.StreamResponse:
    """One vector of length 1 for each input."""
    body, unknown = await read_body(request, EmbeddingRequest)
    return await respond_json(request, await embedding_answer(request.app, body), warn_unknown(unknown))


async def embedding_answer(app: web.Application, body: EmbeddingRequest) -> dict[str, Any]:
    """The vectors of a body, as Rows."""
    served = app[SERVED_MODEL]
    model = served.check_model(body.model)
    as_text = body.encoding_format == "base64"
    if body.encoding_format not in (None, "float", "base64"):
        raise RequestError("encoding_format must be float or base64", "encoding_format")
    if body.dimensions is not None and body.dimensions < 1:
        raise RequestError(f"dimensions must be at least 1, got {body.dimensions}", "dimensions")
    texts = await served.texts.run(lambda: listed(body.input, "input"))
    async with served.admitted(len(texts), body.timeout):
        inputs = await each_in_slices(served, texts, lambda text: _tokens(served, text, body))
        vectors = await pooled(
            served, name_request("embd-", body.request_id), inputs, served.pooling, body.priority or 0
        )
        if vectors and body.dimensions is not None and body.dimensions > len(vectors[0]):
            raise RequestError(f"dimensions must be at most {len(vectors[0])}, got {body.dimensions}", "dimensions")

    def word(numbered: list[tuple[int, array[float]]]) -> list[dict[str, Any]]:
        return [
            {"object": "embedding", "index": index, "embedding": shown(_shortened(vector, body.dimensions))}
            for index, vector in numbered
        ]

    shown: Callable[[array[float]], Any] = _base64 if as_text else list
    data = Rows(word, list(enumerate(vectors)), size=4)
    used = sum(map(len, inputs))
    usage = {"prompt_tokens": used, "total_tokens": used}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _tokens(served: ServedModel, text: str | list[int], body: EmbeddingRequest) -> list[int]:
    if isinstance(text, str):
        special, bounded = body.add_special_tokens is not False, body.truncate_prompt_tokens is None
        text = encode(served, text, special, bounded)
    context = served.engine.info.max_model_len
    tokens = cut(text, body.truncate_prompt_tokens, body.truncation_side or "left", context)
    check_input(tokens, served.engine.info)
    return tokens


def _shortened(vector: array[float], dimensions: int | None) -> array[float]:
    """The first numbers of a vector, scaled to length 1."""
    vector = vector[:dimensions]
    length = math.hypot(*vector)
    return array("f", [value / length for value in vector]) if length else vector


def _base64(vector: array[float]) -> str:
    return base64.b64encode(vector.tobytes()).decode()
