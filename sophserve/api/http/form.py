"""Forms with files (RFC 7578), a piece at a time: nothing of a file stays in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from sophserve.api.http.connections import CONNECTIONS
from sophserve.api.http.request_record import current_record
from sophserve.api.http.upload import Pace, ask_for_body, uploading
from sophserve.errors import RequestError

_CHUNK = 1 << 16
_LONGEST_TEXT = 1 << 12
_MOST_PARTS = 64


class FormPart:
    """A field: a text, or a file with a name."""

    def __init__(self, part: BodyPartReader, name: str, pace: Pace) -> None:
        self.name = name
        self.filename = part.filename
        self._part = part
        self._pace = pace

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its contents. Raises RequestError."""
        while chunk := await self._next():
            yield chunk

    async def text(self) -> str:
        """Its contents, if they are a short text. Raises RequestError."""
        data = b""
        while chunk := await self._next():
            data += chunk
            if len(data) > _LONGEST_TEXT:
                raise RequestError(f"{self.name} has more than {_LONGEST_TEXT} bytes; shorten it", self.name)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise RequestError(f"{self.name} is not UTF-8", self.name) from None

    async def skip(self) -> None:
        """Go on to the end of it. Raises RequestError."""
        while await self._next():
            pass

    async def _next(self) -> bytes:
        with _form_errors():
            chunk = await self._part.read_chunk(_CHUNK)
        self._pace.count(len(chunk))
        return chunk


@asynccontextmanager
async def received_form(request: web.Request) -> AsyncIterator[AsyncIterator[FormPart]]:
    """The fields of a form in their order; what is not taken of one is gone when the next one comes. Raises ApiError
    for one that stands still, RequestError for what is no form."""
    if request.content_type != "multipart/form-data":
        raise RequestError("send a form (Content-Type: multipart/form-data) with the fields purpose and file")
    await ask_for_body(request)
    pace = Pace(request.app[CONNECTIONS], request.protocol)
    with _form_errors():
        reader = await request.multipart()
    with uploading(current_record.get()):
        async with pace.limited():
            yield _fields(reader, pace)


async def _fields(reader: MultipartReader, pace: Pace) -> AsyncIterator[FormPart]:
    for _ in range(_MOST_PARTS):
        with _form_errors():
            part = await reader.next()
        if part is None:
            return
        if not isinstance(part, BodyPartReader) or not part.name:
            raise RequestError("each part of the form must be a field with a name")
        field = FormPart(part, part.name, pace)
        yield field
        await field.skip()
    raise RequestError(f"the form has more than {_MOST_PARTS} fields; leave some out")


@contextmanager
def _form_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, AssertionError, RuntimeError, LookupError, HttpProcessingError) as error:
        # Whatever aiohttp's reader says of a malformed form.
        reason = str(error).partition("\n")[0][:200]
        raise RequestError(f"the form is malformed: {reason or type(error).__name__}") from None
