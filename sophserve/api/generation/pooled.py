"""What becomes of the hidden states of prompts, in place of answers to them."""

from __future__ import annotations

import asyncio
from array import array

from sophserve.api.generation.prompts import log_prompts
from sophserve.api.generation.run import engine_errors
from sophserve.api.generation.served_model import ServedModel
from sophserve.api.http.request_record import current_record
from sophserve.link.messages import Pooling


async def pooled(
    served: ServedModel, identity: str, prompts: list[list[int]], pooling: Pooling, priority: int
) -> list[array[float]]:
    """One vector for each prompt, made at once in as few steps as they fit in. Raises RequestError, ApiError."""
    record, engine = current_record.get(), served.engine
    log_prompts(served, identity, prompts)
    record.prompt_tokens = sum(map(len, prompts))
    record.spend(record.prompt_tokens)
    priority += record.priority
    tasks = [
        asyncio.create_task(engine.embed(prompt, pooling, identity, index, priority, record.background))
        for index, prompt in enumerate(prompts)
    ]
    try:
        with engine_errors(engine):
            return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
