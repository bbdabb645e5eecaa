"""Responses that are made whether or not anybody listens, for clients that poll them or come back to their stream."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import replace

from aiohttp import web

from sophserve.api.generation.answer_pump import Begin, Event
from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.http.request_record import current_record
from sophserve.api.openai.event_log import EventLog
from sophserve.api.openai.kept_items import Items
from sophserve.api.openai.response_input import ResponsesRequest
from sophserve.api.openai.response_output import ResponseWriter
from sophserve.api.openai.response_store import STORE, StoredResponse
from sophserve.errors import SophserveError

log = logging.getLogger(__name__)


class BackgroundResponse:
    """One that is being made. log: of its stream, if it has one."""

    def __init__(self, writer: ResponseWriter, task: asyncio.Task[None], streamed: bool) -> None:
        self.writer = writer
        self.log = EventLog() if streamed else None
        self._task = task

    @property
    def given(self) -> Items:
        """The items that it answers."""
        return self.writer.given

    async def take(self, events: Iterable[Event]) -> None:
        """Go through what comes next."""
        if self.log:
            await self.log.add(events)
        else:
            deque(events, maxlen=0)

    async def cancel(self) -> None:
        """End it here, and wait until that is done."""
        if not self._task.cancelling():
            self._task.cancel()
        await asyncio.wait([self._task])


class BackgroundResponses:
    """Those that are being made, by their ids."""

    def __init__(self, app: web.Application, begin: Begin) -> None:
        self._app = app
        self._begin = begin
        self._running: dict[str, BackgroundResponse] = {}

    def get(self, identity: str) -> BackgroundResponse | None:
        """One that is not complete."""
        return self._running.get(identity)

    async def start(self, body: ResponsesRequest) -> BackgroundResponse:
        """Begin one, which goes on by itself. Raises what refuses it."""
        begun: asyncio.Future[BackgroundResponse] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._make(body, begun))
        try:
            return await begun
        except asyncio.CancelledError:
            task.cancel()  # the client went away before it had the id
            raise

    async def _make(self, body: ResponsesRequest, begun: asyncio.Future[BackgroundResponse]) -> None:
        # The request that asked for it ends before.
        current_record.set(record := replace(current_record.get()))
        task, response = asyncio.current_task(), None
        assert task
        try:
            async with self._begin(self._app, body) as reply:
                assert isinstance(reply.writer, ResponseWriter)
                response = BackgroundResponse(reply.writer, task, bool(body.stream))
                self._running[response.writer.id] = response
                if response.log:
                    await response.take(response.writer.opening())  # the client has to know its id to come back
                begun.set_result(response)
                async with aclosing(reply.events(self._app[SERVED_MODEL])) as answer:
                    async for events in answer:
                        await response.take(events)
        except (Exception, asyncio.CancelledError) as error:
            if response is None:
                if not begun.done():
                    begun.set_exception(error)
                return
            record.error = _wording(error)
            await response.take(response.writer.break_off(record.error))
            await reply.finish()
        finally:
            if response:
                self._end(response)
        log.info("response %s in the background is %s%s", response.writer.id, response.writer.status, record)

    def _end(self, response: BackgroundResponse) -> None:
        identity, store = response.writer.id, self._app[STORE]
        del self._running[identity]
        if response.log:
            response.log.end()
            if stored := store.get(identity, StoredResponse):
                store.add(identity, stored._replace(log=response.log))


def _wording(error: BaseException) -> str | None:
    """What the client is told; None where it cancelled the response."""
    if isinstance(error, asyncio.CancelledError):
        return None
    if isinstance(error, SophserveError):
        return str(error)
    log.error("a response in the background failed", exc_info=error)
    return "the server failed on this request; its log says why"


BACKGROUND = web.AppKey("background_responses", BackgroundResponses)
