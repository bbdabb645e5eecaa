"""/v1/rerank (as Jina, Cohere and vLLM have it) and /v1/score (vLLM's): how well documents answer a query, by a model
that says yes or no to that, such as Qwen3-Reranker (https://huggingface.co/Qwen/Qwen3-Reranker-0.6B)."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.generation.pooled import pooled
from sophserve.api.generation.prompts import each_in_slices, encode
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.body import json_response, read_body, warn_unknown
from sophserve.api.http.request_record import current_record, name_request
from sophserve.engine.request_checks import check_input
from sophserve.errors import RequestError

_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class _Options(msgspec.Struct, kw_only=True):
    """instruction: what documents are wanted for, instead of web search. truncate_prompt_tokens: how many tokens a
    query with a document may have, whose end is cut off; -1 is what fits into the context."""

    model: str | None = None
    instruction: str | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    request_id: str | None = None
    timeout: float | None = None


class Document(msgspec.Struct):
    """A document as Jina's API has it."""

    text: str


class RerankRequest(_Options, kw_only=True):
    """top_n: how many documents to name, the best ones; None or 0 is all."""

    query: str
    documents: list[str | Document]
    top_n: int | None = None
    return_documents: bool | None = None


class ScoreRequest(_Options, kw_only=True):
    """Each of text_1 with that of text_2 in the same place, or a single one with all; or so queries and documents."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None


async def rerank(request: web.Request) -> web.Response:
    """Documents by how well they answer a query, the best one first."""
    body, unknown = await read_body(request, RerankRequest)
    if body.top_n is not None and body.top_n < 0:
        raise RequestError(f"top_n must be at least 1, got {body.top_n}", "top_n")
    texts = [document if isinstance(document, str) else document.text for document in body.documents]
    scores, used, identity = await _scores(request, body, [(body.query, text) for text in texts], "rerank-")
    best = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n or None]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in best]
    if body.return_documents is not False:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    model = request.app[SERVED_MODEL].check_model(body.model)
    usage = {"prompt_tokens": used, "total_tokens": used}
    return json_response({"id": identity, "model": model, "usage": usage, "results": results}, warn_unknown(unknown))


async def score(request: web.Request) -> web.Response:
    """How well each document answers its query, from 0 to 1."""
    body, unknown = await read_body(request, ScoreRequest)
    scores, used, identity = await _scores(request, body, _pairs(body), "score-")
    answer = {
        "id": identity,
        "object": "list",
        "created": int(time.time()),
        "model": request.app[SERVED_MODEL].check_model(body.model),
        "data": [{"index": index, "object": "score", "score": each} for index, each in enumerate(scores)],
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }
    return json_response(answer, warn_unknown(unknown))


def _pairs(body: ScoreRequest) -> list[tuple[str, str]]:
    """Queries with their documents. Raises RequestError."""
    sides = []
    for name, other in (("text_1", "queries"), ("text_2", "documents")):
        first, second = getattr(body, name), getattr(body, other)
        if (first is None) == (second is None):
            raise RequestError(f"send either {name} or {other}", name)
        given = second if first is None else first
        sides.append([given] if isinstance(given, str) else given)
    queries, documents = sides
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise RequestError(f"{len(queries)} queries for {len(documents)} documents; send one query, or as many")
    return list(zip(queries, documents, strict=True))


async def _scores(
    request: web.Request, body: _Options, pairs: list[tuple[str, str]], prefix: str
) -> tuple[list[float], int, str]:
    """The probability of yes against that of no for each pair; how many tokens they have; the request's id. Raises
    RequestError."""
    served = request.app[SERVED_MODEL]
    served.check_model(body.model)
    if not pairs:
        raise RequestError("documents is empty; send at least one", "documents")
    identity = name_request(prefix, body.request_id)
    verdicts = await served.texts.run(partial(_verdicts, served))
    async with served.admitted(len(pairs), body.timeout):
        task = body.instruction or _INSTRUCTION
        texts = [f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
        prompts = await each_in_slices(served, list(texts), lambda text: _prompt(served, str(text), body))
        logits = await pooled(served, identity, prompts, verdicts, body.priority or 0)
    return [0.5 + 0.5 * math.tanh((yes - no) / 2) for yes, no in logits], current_record.get().prompt_tokens, identity


def _verdicts(served: ServedModel) -> tuple[int, int]:
    """The tokens of yes and no. Raises RequestError where the model cannot say them."""
    found = [served.tokenizer.encode(word, add_special_tokens=False) for word in ("yes", "no")]
    if not served.engine.info.generates or any(len(ids) != 1 for ids in found):
        raise RequestError(
            "this model has no head, or no tokens for yes and no; serve one such as Qwen3-Reranker", "model"
        )
    return found[0][0], found[1][0]


def _prompt(served: ServedModel, text: str, body: _Options) -> list[int]:
    before, behind = (served.tokenizer.encode(part, add_special_tokens=False) for part in (_BEFORE, _BEHIND))
    context, most = served.engine.info.max_model_len, body.truncate_prompt_tokens
    if most is not None and (most < -1 or most == 0):
        raise RequestError(
            f"truncate_prompt_tokens must be at least 1, or -1 for what fits, got {most}", "truncate_prompt_tokens"
        )
    tokens = encode(served, text, False, bounded=most is None)
    if most is not None:
        room = (context if most == -1 else min(most, context)) - len(before) - len(behind)
        if room < 1:
            least = len(before) + len(behind) + 1
            raise RequestError(f"truncate_prompt_tokens must be at least {least}, got {most}", "truncate_prompt_tokens")
        tokens = tokens[:room]
    prompt = before + tokens + behind
    check_input(prompt, served.engine.info)
    return prompt
