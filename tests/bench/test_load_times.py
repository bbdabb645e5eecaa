"""The figures of `sophserve load` against a server whose times are known: a clock that the server sets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from sophserve.bench import load_client
from sophserve.bench.load_client import Client, Prompt, Target
from sophserve.bench.load_metrics import Outcome, summarize
from sophserve.bench.load_report import render
from tests.bench.conftest import Fake

OPENING = {"delta": {"role": "assistant", "content": ""}}
TEXT = {"delta": {"content": "a "}}
SILENT = {"delta": {"content": ""}}
END = {"delta": {}, "finish_reason": "length"}


class Clock:
    """Stands for the module `time`: says what the server says, and wakes it when the client has looked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.read = asyncio.Event()

    def perf_counter(self) -> float:
        self.read.set()
        return self.now


async def measure(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tokens: int | None, *script: tuple[float, list[dict[str, Any]]]
) -> Outcome:
    """The outcome of an answer whose choices come at these times, those of one entry in one piece."""
    clock = Clock()
    monkeypatch.setattr(load_client, "time", clock)

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for now, choices in script:
            clock.now = now
            clock.read.clear()
            events = [json.dumps({"choices": [choice]}) for choice in choices]
            await response.write(b"".join(b"data: %b\n\n" % event.encode() for event in events))
            await asyncio.wait_for(clock.read.wait(), 10)
        clock.now += 100.0  # whatever comes after the end is not to count
        if tokens is not None:
            usage = {"prompt_tokens": 1, "completion_tokens": tokens}
            await response.write(b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    fake.answer = answer
    async with Client(Target(fake.url, "scripted")) as client:
        outcome = await client.ask(Prompt("Hello", 32))
    assert not outcome.error
    return outcome


def means(outcome: Outcome) -> tuple[float | None, float]:
    return outcome.tpot, sum(outcome.gaps) / len(outcome.gaps)


async def test_every_chunk_is_a_token(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [(1.0, [OPENING, TEXT]), (1.125, [TEXT]), (1.5, [TEXT]), (1.75, [TEXT, END])]
    for tokens in (4, None):
        outcome = await measure(fake, monkeypatch, tokens, *script)
        assert (outcome.ttft, outcome.gaps) == (1.0, [0.125, 0.375, 0.25])
        assert means(outcome) == (0.25, 0.25)
        assert "ITL, ms" in render(summarize([outcome], {}))


async def test_chunks_that_come_together_share_the_time_before_them(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [(1.0, [TEXT]), (1.5, [TEXT, TEXT]), (2.5, [TEXT, TEXT, END])]
    outcome = await measure(fake, monkeypatch, 5, *script)
    assert outcome.gaps == [0.25, 0.25, 0.5, 0.5] and means(outcome) == (0.375, 0.375)
    # A first piece with several tokens has nothing to share.
    outcome = await measure(fake, monkeypatch, 5, (1.0, [TEXT, TEXT]), (1.5, [TEXT]), (2.0, [TEXT, TEXT, END]))
    assert outcome.gaps == [0.0, 0.5, 0.25, 0.25] and means(outcome) == (0.25, 0.25)
    # And an answer in one piece says nothing about its tokens.
    outcome = await measure(fake, monkeypatch, 3, (1.0, [TEXT, TEXT, TEXT, END]))
    assert (outcome.ttft, outcome.tpot, outcome.gaps) == (1.0, None, [])


async def test_eight_chunks_for_thirty_two_tokens(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    # A token each eighth of a second, of which every fourth one has a text; the last three only bring the end.
    script = [(1.0 + 0.5 * place, [TEXT]) for place in range(8)]
    outcome = await measure(fake, monkeypatch, 32, *script, (1.0 + 31 * 0.125, [END]))
    assert (outcome.ttft, outcome.tpot) == (1.0, 0.125)
    assert outcome.gaps == [0.5] * 7 + [0.375]
    report = summarize([outcome], {})
    assert (report.chunks, report.output_tokens) == (9, 32)
    assert "between chunks, ms" in render(report) and "ITL" not in render(report)


async def test_chunks_without_text_are_tokens(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [(1.0, [OPENING, SILENT]), (1.25, [TEXT]), (1.5, [SILENT]), (1.75, [SILENT]), (2.0, [TEXT, END])]
    outcome = await measure(fake, monkeypatch, 5, *script)
    assert (outcome.ttft, outcome.gaps) == (1.0, [0.25] * 4) and means(outcome) == (0.25, 0.25)
    assert "ITL, ms" in render(summarize([outcome], {}))
    # Without usage nobody knows what they stand for, and with fewer tokens one of them is no token.
    for tokens in (None, 3):
        outcome = await measure(fake, monkeypatch, tokens, (0.5, [SILENT]), *script)
        assert outcome.ttft == 1.25


async def test_the_end_token_has_no_text(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [(1.0, [TEXT]), (1.5, [TEXT]), (2.0, [TEXT])]
    for end in ([(2.25, [END])], [(2.25, [TEXT, END])]):
        outcome = await measure(fake, monkeypatch, 4, *script, *end)
        assert outcome.gaps == [0.5, 0.5, 0.25] and outcome.tpot == pytest.approx(1.25 / 3)
    # An end that is a chunk of its own, but no token.
    outcome = await measure(fake, monkeypatch, 3, *script, (2.25, [END]))
    assert (outcome.tpot, outcome.gaps) == (0.5, [0.5, 0.5])
