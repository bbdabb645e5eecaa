"""/v1/files: what batches read and write (https://platform.openai.com/docs/api-reference/files)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web
from msgspec import UNSET

from sophserve.api.batches.answer_types import MOST_SECONDS, DeletedFile, FileList, FileQuery, UploadForm
from sophserve.api.batches.shelf import owner
from sophserve.api.batches.store import BATCH_STORE, Arrival, too_large
from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.http.body import checked, json_response, read_query, warn_unknown
from sophserve.api.http.form import FormPart, received_form
from sophserve.errors import RequestError

# Characters of a name, and bytes of a form beside its file.
_LONGEST_NAME = 255
_REST_OF_FORM = 1 << 16
# No separators, so that it is a name for every system, and nothing that a terminal would follow.
_PLAIN = re.compile(r"[^/\\\x00-\x1f\x7f\ud800-\udfff]+")
_FIELDS = {field.encode_name for field in msgspec.structs.fields(UploadForm)} - {"file"}


async def upload_file(request: web.Request) -> web.Response:
    """Keep a file with the lines of a batch, for 30 days unless the form says otherwise."""
    store, config = request.app[BATCH_STORE], request.app[SERVED_MODEL].config
    if (request.content_length or 0) > config.file_bytes + _REST_OF_FORM:
        raise too_large(config)
    async with store.arrival() as arrival:
        async with received_form(request) as parts:
            fields, unknown = await _take(parts, arrival)
        form = checked(fields, UploadForm, strict=False)
        seconds = MOST_SECONDS if form.seconds is UNSET else form.seconds
        file = await arrival.keep(form.file, owner(), seconds)
    return json_response(file, warn_unknown(unknown))


async def list_files(request: web.Request) -> web.Response:
    """Files, the newest first."""
    query = read_query(request, FileQuery)
    page, more = await asyncio.to_thread(
        request.app[BATCH_STORE].files.page,
        None if query.after is UNSET else query.after,
        query.limit,
        query.order == "desc",
        lambda kept: query.purpose in (UNSET, kept.file.purpose),
    )
    first, last = (page[0].id, page[-1].id) if page else ("", "")
    files = [kept.file for kept in page]
    return json_response(FileList(data=files, first_id=first, last_id=last, has_more=more))


async def get_file(request: web.Request) -> web.Response:
    """What is told of a file."""
    kept = await asyncio.to_thread(request.app[BATCH_STORE].files.get, request.match_info["id"])
    return json_response(kept.file)


async def get_content(request: web.Request) -> web.StreamResponse:
    """The contents of a file, or a range of them."""
    store, identity = request.app[BATCH_STORE], request.match_info["id"]
    kept = await asyncio.to_thread(store.files.get, identity)
    return web.FileResponse(store.content(kept.id), headers={"Content-Type": "application/octet-stream"})


async def delete_file(request: web.Request) -> web.Response:
    """Delete a file. Batches that have begun do not need theirs any more."""
    store, identity = request.app[BATCH_STORE], request.match_info["id"]
    await asyncio.to_thread(store.files.get, identity)
    await asyncio.to_thread(store.delete, identity)
    return json_response(DeletedFile(id=identity))


async def _take(parts: AsyncIterator[FormPart], arrival: Arrival) -> tuple[dict[str, str], list[str]]:
    """The fields of a form, where the file stands for its name, and the names of those that mean nothing."""
    fields: dict[str, str] = {}
    unknown: list[str] = []
    async for part in parts:
        if part.name == "file":
            if "file" in fields:
                raise RequestError("the form has two files; send one at a time", "file")
            fields["file"] = _plain_name(part.filename)
            async for data in part.chunks():
                await arrival.write(data)
        elif part.name in _FIELDS:
            fields[part.name] = await part.text()
        else:
            unknown.append(part.name)
    return fields, unknown


def _plain_name(name: str | None) -> str:
    if name is None:
        return "upload"
    if name in ("", ".", "..") or len(name) > _LONGEST_NAME or not _PLAIN.fullmatch(name):
        raise RequestError(
            f"the file's name must be a name alone, without a path, of at most {_LONGEST_NAME} characters", "file"
        )
    return name
