"""Several answers as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from sophserve.engine.output import OutputDelta


async def interleave(
    answers: list[AsyncGenerator[OutputDelta, None]],
) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    """The deltas of all answers, each with its answer's index, as they come.

    Closing the iterator closes the answers. What one of them raises ends it.
    """
    if len(answers) == 1:
        async with aclosing(answers[0]) as deltas:
            async for delta in deltas:
                yield 0, delta
        return
    # Each reader holds one delta back; the engine merges the further ones while a client reads slowly.
    queue: asyncio.Queue[tuple[int, OutputDelta] | Exception | None] = asyncio.Queue(len(answers))

    async def read(index: int) -> None:
        try:
            async with aclosing(answers[index]) as deltas:
                async for delta in deltas:
                    await queue.put((index, delta))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    readers = [asyncio.create_task(read(index)) for index in range(len(answers))]
    try:
        running = len(answers)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
