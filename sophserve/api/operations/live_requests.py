"""/requests: what the engine is doing for whom, and how to stop it."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.http.body import json_response
from sophserve.api.http.connections import Connection
from sophserve.api.http.errors import ApiError
from sophserve.api.http.request_record import Record
from sophserve.engine.sequence import Sequence
from sophserve.errors import RequestAborted


async def list_requests(request: web.Request) -> web.Response:
    """Every answer that waits or is being generated, then those that are complete but not read, oldest first."""
    served = request.app[SERVED_MODEL]
    unsent = {c.record.id: c.unsent for c in served.connections.open if c.record is not None}
    sequences = served.engine.sequences
    states = [_state(sequence, unsent.get(sequence.request_id, 0)) for sequence in sequences]
    generated = {sequence.request_id for sequence in sequences}
    sending = [record for c in _sending(served) if (record := c.record) is not None and record.id not in generated]
    states += [_sent(record, unsent[record.id]) for record in sorted(sending, key=lambda record: record.started)]
    return json_response({"requests": states})


async def cancel_request(request: web.Request) -> web.Response:
    """End every answer of one request; its client gets an error of status 499, or no more of an answer that it does
    not read."""
    served, identity = request.app[SERVED_MODEL], request.match_info["id"]
    found = [sequence for sequence in served.engine.sequences if sequence.request_id == identity]
    for sequence in found:
        served.engine.abort(sequence, RequestAborted("the request was cancelled by the server's operator", "cancelled"))
    unread = [c for c in _sending(served) if c.record is not None and c.record.id == identity and c.blocked]
    for connection in unread:
        connection.cut("cancelled")
    if not found and not unread:
        raise ApiError(404, f"no request {identity!r} is running or waiting; GET /requests lists those that are")
    return json_response({"id": identity, "cancelled": max(len(found), len(unread))})


def _sending(served: ServedModel) -> list[Connection]:
    """Those whose request the engine had, or has."""
    return [c for c in served.connections.open if c.record and (c.record.first_output is not None or c.blocked)]


def _sent(record: Record, unsent: int) -> dict[str, Any]:
    tokens = record.answers.generated_tokens if record.answers else record.output_tokens
    return {
        "id": record.id,
        "index": 0,
        "state": "sending",
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "computed_tokens": record.prompt_tokens + tokens,
        "generated_tokens": tokens,
        "accepted_tokens": record.accepted_tokens,
        "rejected_tokens": record.rejected_tokens,
        "max_tokens": tokens,
        "unsent_bytes": unsent,
        "age": round(time.monotonic() - record.started, 3),
    }


def _state(sequence: Sequence, unsent: int) -> dict[str, Any]:
    request, timeline = sequence.request, sequence.timeline
    return {
        "id": sequence.request_id,
        "index": sequence.index,
        "state": "running" if request.blocks else "waiting",
        "prompt_tokens": len(request.prompt),
        "cached_tokens": request.cached_tokens,
        "computed_tokens": request.computed,
        "generated_tokens": len(request.output),
        "accepted_tokens": sequence.accepted,
        "rejected_tokens": sequence.rejected,
        "max_tokens": request.max_tokens,
        "unsent_bytes": unsent,
        "age": round(time.monotonic() - timeline.arrived, 3),
    }
