"""/v1/batches: files of requests, answered when there is time (https://platform.openai.com/docs/api-reference/batch)."""

from __future__ import annotations

import asyncio
import re
import shutil
import time

from aiohttp import web
from msgspec import UNSET

from sophserve.api.batches.answer_types import Batch, BatchList, BatchQuery, BatchRequest
from sophserve.api.batches.job import endpoints
from sophserve.api.batches.runner import RUNNER
from sophserve.api.batches.shelf import new_id, owner
from sophserve.api.batches.store import BATCH_STORE, BatchStore, KeptBatch
from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.http.body import json_response, read_body, read_query, warn_unknown
from sophserve.api.http.errors import ApiError
from sophserve.errors import RequestError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_WINDOW = 30 * 86_400
_MOST_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512


async def create_batch(request: web.Request) -> web.Response:
    """Have the lines of a file answered."""
    store, served = request.app[BATCH_STORE], request.app[SERVED_MODEL]
    body, unknown = await read_body(request, BatchRequest)
    if body.endpoint not in (known := endpoints(request.app)):
        raise RequestError(f"endpoint must be one of {', '.join(known)}, got {body.endpoint[:64]!r}", "endpoint")
    seconds = _window(body.completion_window)
    _check_metadata(body.metadata or {})
    now, expires = int(time.time()), body.output_expires_after
    batch = Batch(
        id=new_id(store.batches.prefix),
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + seconds,
        model=served.model_names[0],
        metadata=body.metadata,
    )
    kept = KeptBatch(
        owner=owner(),
        batch=batch,
        output_id=new_id(store.files.prefix),
        error_id=new_id(store.files.prefix),
        output_seconds=expires.seconds if expires else None,
    )
    await asyncio.to_thread(_begin, store, kept)
    request.app[RUNNER].wake()
    return json_response(batch, warn_unknown(unknown))


async def list_batches(request: web.Request) -> web.Response:
    """Batches, the newest first."""
    query, store = read_query(request, BatchQuery), request.app[BATCH_STORE]

    def work() -> BatchList:
        page, more = store.batches.page(None if query.after is UNSET else query.after, query.limit, True)
        data = [_shown(store, kept) for kept in page]
        first, last = (data[0].id, data[-1].id) if data else ("", "")
        return BatchList(data=data, first_id=first, last_id=last, has_more=more)

    return json_response(await asyncio.to_thread(work))


async def get_batch(request: web.Request) -> web.Response:
    """A batch and how far it is."""
    store, identity = request.app[BATCH_STORE], request.match_info["id"]
    return json_response(await asyncio.to_thread(lambda: _shown(store, store.batches.get(identity))))


async def cancel_batch(request: web.Request) -> web.Response:
    """Have a batch answer no more lines; what is answered already is kept."""
    store, identity = request.app[BATCH_STORE], request.match_info["id"]
    batch = await asyncio.to_thread(_cancel, store, identity)
    request.app[RUNNER].wake()
    return json_response(batch)


def _begin(store: BatchStore, kept: KeptBatch) -> None:
    """Keep a batch with its input. Raises ApiError where there is no such file."""
    input_id = kept.batch.input_file_id
    file = store.files.get(input_id).file
    if file.purpose != "batch":
        problem = f"the file {input_id} is of purpose {file.purpose}; a batch reads those of purpose batch"
        raise RequestError(problem, "input_file_id")
    try:
        store.link_input(kept.id, input_id)
        store.batches.put(kept)
    except FileNotFoundError:  # deleted meanwhile
        shutil.rmtree(store.work(kept.id), ignore_errors=True)
        raise store.files.missing(input_id) from None
    except BaseException:
        shutil.rmtree(store.work(kept.id), ignore_errors=True)
        raise


def _cancel(store: BatchStore, identity: str) -> Batch:
    kept = store.batches.get(identity)
    if not kept.done and kept.ending is None:
        try:
            store.cancel(identity)
        except FileNotFoundError:  # it has just ended
            kept = store.batches.get(identity)
    if kept.done or kept.ending:
        raise ApiError(409, f"the batch is {kept.batch.status}, so it cannot be cancelled", code="not_cancellable")
    return _shown(store, kept)


def _shown(store: BatchStore, kept: KeptBatch) -> Batch:
    """A batch as clients see it: one that is to be cancelled is so at once, whichever server runs it."""
    batch = kept.batch
    if not kept.done and kept.ending is None and (since := store.cancelled_at(kept.id)) is not None:
        batch.status, batch.cancelling_at = "cancelling", since
    return batch


def _window(text: str) -> int:
    """Seconds of a completion_window. Raises RequestError."""
    match = re.fullmatch(r"([1-9]\d{0,6})([smhd])", text, re.ASCII)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST_WINDOW:
        problem = f"completion_window must be like 24h, 90m or 7d, and at most 30d, got {text[:32]!r}"
        raise RequestError(problem, "completion_window")
    return seconds


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > _MOST_PAIRS:
        raise RequestError(f"metadata has {len(metadata)} pairs; at most {_MOST_PAIRS} are possible", "metadata")
    if any(len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE for key, value in metadata.items()):
        problem = f"metadata has keys of at most {_LONGEST_KEY} characters and values of at most {_LONGEST_VALUE}"
        raise RequestError(problem, "metadata")
