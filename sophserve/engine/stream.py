"""The way from the engine to one reader. Deltas that no one has read yet are merged, so that a slow reader costs no
more memory than its answer."""

from __future__ import annotations

import asyncio

from sophserve.engine.output import OutputDelta, TokenLogprob


class DeltaStream:
    """A mailbox of at most one delta, for one writer and one reader on the same event loop."""

    def __init__(self) -> None:
        self._delta: OutputDelta | None = None
        self._filled = asyncio.Event()

    def put(self, delta: OutputDelta) -> None:
        """Add to what waits to be read."""
        self._delta = delta if self._delta is None else _merge(self._delta, delta)
        self._filled.set()

    async def get(self) -> OutputDelta:
        """Wait for something to read."""
        await self._filled.wait()
        self._filled.clear()
        delta, self._delta = self._delta, None
        assert delta is not None
        return delta


def _merge(first: OutputDelta, second: OutputDelta) -> OutputDelta:
    return OutputDelta(
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=_joined(first.logprobs, second.logprobs),
        prompt_logprobs=first.prompt_logprobs,
        finish_reason=second.finish_reason,
        stop_reason=second.stop_reason,
        cached_tokens=first.cached_tokens,
        queue_time=first.queue_time,
        error=second.error,
    )


def _joined(
    first: list[list[TokenLogprob]] | None, second: list[list[TokenLogprob]] | None
) -> list[list[TokenLogprob]] | None:
    if first is None or second is None:
        return first or second
    return first + second
