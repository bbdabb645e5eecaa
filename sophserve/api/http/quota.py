"""What the owner of an API key is using, and how long it has to wait when that is too much."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sophserve.api.http.errors import ApiError
from sophserve.keys import ApiKey

_MINUTE = 60.0


class Account:
    """One key's. Tokens are a bucket that is full with those of a minute and refills evenly: a request is let in while
    some are left, and what it takes beyond them is owed by the next ones."""

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self._running = 0
        self._left = float(key.max_tokens_per_minute or 0)
        self._refilled = time.monotonic()

    def spend(self, tokens: int) -> None:
        """Count tokens of a prompt or an answer."""
        if self.key.max_tokens_per_minute is not None:
            self._refill(self.key.max_tokens_per_minute)
            self._left -= tokens

    @contextmanager
    def request(self) -> Iterator[None]:
        """Hold the place of a request. Raises ApiError when there is none."""
        self._check()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    def _check(self) -> None:
        key = self.key
        if key.max_concurrent_requests is not None and self._running >= key.max_concurrent_requests:
            most = key.max_concurrent_requests
            raise _refused(f"the API key {key.name} has {most} requests running, as many as it may; wait for one", 1)
        if key.max_tokens_per_minute is not None:
            self._refill(key.max_tokens_per_minute)
            if self._left < 1:
                seconds = math.ceil((1 - self._left) * _MINUTE / key.max_tokens_per_minute)
                used = f"the API key {key.name} has used its {key.max_tokens_per_minute} tokens per minute"
                raise _refused(f"{used}; try again in {seconds} s", seconds)

    def _refill(self, most: int) -> None:
        now = time.monotonic()
        self._left = min(most, self._left + (now - self._refilled) * most / _MINUTE)
        self._refilled = now


def _refused(message: str, seconds: int) -> ApiError:
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})
