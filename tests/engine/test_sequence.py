"""A result's tokens, one or several, as the reader of a sequence gets them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sophserve.engine.output import OutputDelta
from sophserve.engine.request import Request
from sophserve.engine.sequence import Sequence
from sophserve.link.messages import SampledTokens, TokenLogprob
from sophserve.sampling import SamplingParams, Thought
from sophserve.text.tokenizer import Tokenizer

END, STOP = 2, 77


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint: Callable[..., Path]) -> Tokenizer:
    return Tokenizer.from_directory(make_checkpoint("qwen2"))


class Steps:
    """What comes of one sequence when its tokens come in these portions."""

    def __init__(self, tokenizer: Tokenizer, **options: Any) -> None:
        params = SamplingParams(stop_token_ids=[STOP], **options)
        self.request = Request(0, [5, 6], params, 0, params.max_tokens or 50, [STOP, END])
        self.sequence = Sequence(self.request, tokenizer)
        self.counts: list[int] = []

    async def give(self, *portions: list[int]) -> OutputDelta:
        for tokens in portions:
            if not self.sequence.finished:
                self.request.output += tokens
                logprobs = [[TokenLogprob(token, -1.0, 1)] for token in tokens]
                self.counts.append(self.sequence.add_tokens(SampledTokens(0, tokens, logprobs)))
        return await self.sequence.stream.get()


async def test_a_token_that_ends_the_answer_ends_a_portion(tokenizer: Tokenizer) -> None:
    a, b, c = tokenizer.encode("a", False) + tokenizer.encode("b", False) + tokenizer.encode("c", False)
    for ending, reason in ((END, None), (STOP, STOP)):
        steps = Steps(tokenizer)
        delta = await steps.give([a, b, ending, c])
        assert (delta.text, delta.token_ids, delta.finish_reason) == ("ab", [a, b, ending], "stop")
        assert delta.stop_reason == reason and steps.counts == [3]
        assert delta.logprobs is not None and len(delta.logprobs) == 3
        assert steps.request.output == [a, b, ending]
    delta = await Steps(tokenizer, max_tokens=3).give([a], [b, c, a, a])
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("abc", [a, b, c], "length")


async def test_a_stop_text_within_a_portion_and_across_two(tokenizer: Tokenizer) -> None:
    a, b, c = tokenizer.encode("a", False) + tokenizer.encode("b", False) + tokenizer.encode("c", False)
    for portions in ([[a, b, c, a]], [[a, b], [c, a]], [[a], [b, c], [a]]):
        steps = Steps(tokenizer, stop=["bc"])
        delta = await steps.give(*portions)
        assert (delta.text, delta.finish_reason, delta.stop_reason) == ("a", "stop", "bc")
        assert delta.token_ids == steps.request.output == [a, b, c]


async def test_stop_texts_and_counts_with_a_thought(tokenizer: Tokenizer) -> None:
    """vLLM#52393, vLLM#53066: what ends an answer is looked for behind its thought."""
    thought = Thought("<hm>", "</hm>")
    for text, most, shown, count in (
        ("<hm>a bc</hm>\n\na bc", 50, "<hm>a bc</hm>\n\na ", "<hm>a bc</hm>"),
        ("<hm>a bc", 50, "<hm>a bc", "<hm>a bc"),
        ("a bc", 50, "a ", ""),
        ("<h bc", 50, "<h ", ""),
        ("<h", 50, "<h", ""),
        ("<h", len(tokenizer.encode("<h", False)), "<h", ""),
    ):
        tokens = tokenizer.encode(text, False) + ([END] if most == 50 else [])
        steps = Steps(tokenizer, stop=["bc", "\n\n"], thought=thought, max_tokens=most)
        delta = await steps.give(*([token] for token in tokens))
        assert delta.text == shown and delta.finish_reason == ("stop" if most == 50 else "length")
        ended = 1 if count == text else 0  # by a token within the thought
        assert delta.reasoning_tokens == len(tokenizer.encode(count, False)) + ended


@pytest.mark.parametrize("seed", range(40))
async def test_portions_make_no_difference(tokenizer: Tokenizer, seed: int) -> None:
    generator = random.Random(seed)
    tokens = [generator.choice((generator.randrange(3, 500), STOP, END, 300, 301)) for _ in range(40)]
    options: dict[str, Any] = {
        "max_tokens": generator.choice((10, 30, 50)),
        "min_tokens": generator.choice((0, 0, 5)),
        "stop": generator.choice(([], [tokenizer.decode([300])], [tokenizer.decode([301, 300])])),
        "include_stop_str_in_output": generator.random() < 0.5,
    }
    if generator.random() < 0.5:
        marks = tokenizer.decode([300]), tokenizer.decode([301])
        options["thought"] = Thought(*marks, inside=generator.random() < 0.5)
    portions, start = [], 0
    while start < len(tokens):
        count = generator.randint(1, 5)
        portions.append(tokens[start : start + count])
        start += count
    together, alone = Steps(tokenizer, **options), Steps(tokenizer, **options)
    assert await together.give(*portions) == await alone.give(*([token] for token in tokens))
    assert together.request.output == alone.request.output and sum(together.counts) == sum(alone.counts)
    assert together.sequence.finish_reason == alone.sequence.finish_reason


async def test_guesses_are_counted_as_far_as_the_answer_goes(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a", False) + tokenizer.encode("b", False)
    for tokens, drafted, end, counts in (
        ([a, a, b], 2, {}, (2, 0)),
        ([a, a, b], 5, {}, (2, 3)),
        ([a], 4, {}, (0, 4)),
        ([a, a, b, a], 4, {"max_tokens": 2}, (2, 2)),
        ([a, b, a, a], 3, {"stop": ["b"]}, (2, 1)),
    ):
        steps = Steps(tokenizer, **end)
        steps.request.output += tokens
        steps.sequence.add_tokens(SampledTokens(0, tokens.copy(), drafted=drafted))
        delta = await steps.sequence.stream.get()
        assert (delta.accepted_tokens, delta.rejected_tokens) == counts
        assert (steps.sequence.accepted, steps.sequence.rejected) == counts
