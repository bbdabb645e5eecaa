"""One input's way through the model: lines are read, answered a few at a time, and their answers written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import msgspec
from aiohttp import web

from sophserve.api.batches.lines import Line, LineError, LineReader
from sophserve.api.batches.outputs import Outputs, Place
from sophserve.api.http.body import parse_body, warn_unknown
from sophserve.api.http.error_middleware import as_api_error
from sophserve.api.http.json_pieces import joined, pieces
from sophserve.api.http.quota import Account
from sophserve.api.http.request_record import Record, current_record
from sophserve.api.route import ROUTES, Route
from sophserve.errors import ConfigError, RequestError

log = logging.getLogger(__name__)

# Bytes of a line for which it takes one place. A longer one takes several, so that memory is bounded.
_BYTES = 1 << 21
# What a request hears that may be sent again.
_NOT_NOW = frozenset({429, 503})


class Slots:
    """Places of lines that are being answered, of all batches together: whoever asks first gets the next ones."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = asyncio.Semaphore(count)
        self._turn = asyncio.Lock()

    async def take(self, size: int) -> int:
        """Wait until a line of so many bytes may be answered; returns how many places it has."""
        wanted, taken = min(self._count, 1 + size // _BYTES), 0
        async with self._turn:
            try:
                while taken < wanted:
                    await self._free.acquire()
                    taken += 1
            except BaseException:
                self.give_back(taken)
                raise
        return taken

    def give_back(self, count: int) -> None:
        """So many places are free again."""
        for _ in range(count):
            self._free.release()


def endpoints(app: web.Application) -> dict[str, Route]:
    """The routes that lines may ask, by path."""
    return {route.path: route for route in app[ROUTES].routes if route.line is not None}


@dataclass
class Job:
    """Answers the lines of an input that have no answer yet. tag: what the ids of answers begin with; urls: which
    endpoints lines may name; account: who pays; on_answer: is called after each line."""

    app: web.Application
    source: Path
    outputs: Outputs
    tag: str
    urls: Collection[str]
    slots: Slots
    account: Account | None = None
    on_answer: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._routes = endpoints(self.app)
        self._running: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[tuple[bool, bytes]]] = set()
        self._failure: BaseException | None = None
        self.stopped: LineError | None = None

    def stop(self, reason: LineError) -> None:
        """Answer no more: all lines that have no answer fail for this reason."""
        if self.stopped is None:
            self.stopped = reason
            for task in self._asking:
                task.cancel()

    async def run(self) -> None:
        """Until every line has its answer. Raises OSError where files cannot be read or written, ConfigError where the
        answers that are there already are those of another input. Cancelling it loses the lines on their way alone."""
        with self.source.open("rb") as file:
            reader = LineReader(file, self.urls)
            try:
                while (line := await asyncio.to_thread(reader.next)) is not None:
                    await self._begin(line)
                while self._running:
                    await asyncio.wait(self._running)
                self._raise_failure()
            finally:
                for task in self._running:
                    task.cancel()
                await asyncio.gather(*self._running, return_exceptions=True)

    async def _begin(self, line: Line) -> None:
        self._raise_failure()
        if line.number in self.outputs.done:
            if self.outputs.done[line.number] != hash(line.custom_id):
                raise ConfigError(
                    f"line {line.number} of {self.source} is not the one that was answered; choose another output"
                )
            return
        taken = 0
        if not line.wrong and not self.stopped:
            taken = await self.slots.take(len(line.body))
        task = asyncio.create_task(self._answer(line))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: self.slots.give_back(taken))
        if not taken:  # nothing bounds those but their being written one by one
            await asyncio.wait([task])

    async def _answer(self, line: Line) -> None:
        try:
            error = line.wrong or self.stopped
            answered, rest = _failed(line, error) if error else await self._asked(line)
            place = Place(f"{self.tag}_{line.number}", line.number, line.custom_id)
            await asyncio.to_thread(self.outputs.add, place, answered, rest)
            self.on_answer()
        except Exception as failure:
            self._failure = self._failure or failure

    async def _asked(self, line: Line) -> tuple[bool, bytes]:
        """As _ask, until `stop` is called."""
        asking = asyncio.create_task(self._ask(line))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        try:
            return await asking
        except asyncio.CancelledError:
            if self.stopped is None:
                raise
            return _failed(line, self.stopped)

    async def _ask(self, line: Line) -> tuple[bool, bytes]:
        """Whether a line succeeded, and what its answer says. Asks again while there is no room for it."""
        route = self._routes[line.url]
        assert route.line is not None and route.body is not None
        while True:
            record = Record(time.monotonic(), line.url, client="batches", account=self.account, background=True)
            current_record.set(record)
            try:
                body, unknown = await parse_body(self.app, bytearray(line.body), route.body)
                for name in ("stream", "background"):
                    if getattr(body, name, None):
                        raise RequestError(f"{name} means nothing in a batch; leave it out", name)
                answer = await route.line(self.app, body)
                warn_unknown(unknown)
                status, parts = 200, []
                for part in joined(pieces(answer)):
                    parts.append(part)
                    await asyncio.sleep(0)
            except Exception as exception:
                error = as_api_error(exception, route.envelope, f"{self.tag}, line {line.number}")
                exception.__traceback__ = None
                if error.status in _NOT_NOW:
                    await asyncio.sleep(float((error.headers or {}).get("Retry-After", 1)))
                    continue
                status, parts = error.status, [msgspec.json.encode(route.envelope.body(error))]
            log.debug("%s, line %d: %d%s", self.tag, line.number, status, record)
            return status == 200, _response(status, record, b"".join(parts))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _failed(line: Line, error: LineError) -> tuple[bool, bytes]:
    told = {"code": error.code, "message": f"line {line.number}: {error.message}"}
    return False, b'"response":null,"error":' + msgspec.json.encode(told)


def _response(status: int, record: Record, body: bytes) -> bytes:
    told = {"status_code": status, "request_id": record.id or f"req-{uuid4().hex}"}
    if record.warnings:
        told["warnings"] = record.warnings
    return b'"response":%b,"body":%b},"error":null' % (msgspec.json.encode(told)[:-1], body)
