"""The way from the engine to one reader. Deltas that no one has read yet are merged, so that a slow reader costs no
more memory than its answer."""

from __future__ import annotations

import asyncio

from sophserve.engine.output import OutputDelta

# Measured of CPython: an id in a list, and a TokenLogprob with its numbers.
TOKEN_BYTES, LOGPROB_BYTES = 40, 130


class DeltaStream:
    """A mailbox of at most one delta, for one writer and one reader on the same event loop."""

    def __init__(self) -> None:
        self._delta: OutputDelta | None = None
        self._filled = asyncio.Event()

    @property
    def held(self) -> int:
        """About how many bytes wait to be read."""
        delta = self._delta
        if delta is None:
            return 0
        entries = sum(len(part) * len(part[-1] or ()) for part in (delta.logprobs, delta.prompt_logprobs) if part)
        return len(delta.text) + TOKEN_BYTES * len(delta.token_ids) + LOGPROB_BYTES * entries

    def put(self, delta: OutputDelta) -> None:
        """Add to what waits to be read."""
        if self._delta is None:
            self._delta = delta
        else:
            _add(self._delta, delta)
        self._filled.set()

    async def get(self) -> OutputDelta:
        await self._filled.wait()
        self._filled.clear()
        delta, self._delta = self._delta, None
        assert delta is not None
        return delta


def _add(waiting: OutputDelta, delta: OutputDelta) -> None:
    """In place: a long answer that nobody reads must not be copied for each of its tokens."""
    waiting.text += delta.text
    waiting.token_ids += delta.token_ids
    waiting.reasoning_tokens += delta.reasoning_tokens
    waiting.accepted_tokens += delta.accepted_tokens
    waiting.rejected_tokens += delta.rejected_tokens
    if waiting.logprobs is None:
        waiting.logprobs = delta.logprobs
    elif delta.logprobs is not None:
        waiting.logprobs += delta.logprobs
    waiting.finish_reason, waiting.stop_reason = delta.finish_reason, delta.stop_reason
    waiting.error = delta.error
