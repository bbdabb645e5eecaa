"""Several answers to one prompt as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from sophserve.engine.engine import Engine
from sophserve.engine.output import OutputDelta
from sophserve.errors import SophserveError
from sophserve.sampling import SamplingParams


async def answers(
    engine: Engine, prompt: list[int], params: SamplingParams, request_id: str
) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    """The deltas of all `params.n` answers, each with its index, as they come. Closing the iterator aborts them all."""
    # A full queue makes the readers wait, and deltas are merged behind a reader that waits.
    queue: asyncio.Queue[tuple[int, OutputDelta] | SophserveError | None] = asyncio.Queue(maxsize=params.n)

    async def read(index: int) -> None:
        try:
            async for delta in engine.generate(prompt, params, request_id, index):
                await queue.put((index, delta))
            await queue.put(None)
        except SophserveError as error:
            await queue.put(error)

    tasks = [asyncio.create_task(read(index)) for index in range(params.n)]
    try:
        unfinished = params.n
        while unfinished:
            item = await queue.get()
            if item is None:
                unfinished -= 1
            elif isinstance(item, SophserveError):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
