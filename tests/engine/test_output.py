"""What an answer consists of."""

from __future__ import annotations

import gc

from sophserve.link.messages import TokenLogprob


def test_the_garbage_collector_does_not_walk_through_logprobs() -> None:
    # A hundred answers with 20 logprobs a token are a million of them; each full collection would stop the loop.
    assert not gc.is_tracked(TokenLogprob(1, -0.5, 1))
