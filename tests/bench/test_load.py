"""`sophserve load`: numbers from given times, a scripted server, and every kind of load on a tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sophserve.bench import load, load_scenarios
from sophserve.bench.load_client import Client, LoadError, Prompt, Target
from sophserve.bench.load_metrics import Outcome, Summary, parse_slo, summarize
from sophserve.bench.load_run import arrivals
from sophserve.cli import main
from sophserve.errors import ConfigError


def outcome(*times: float, tokens: int | None = None, **more: Any) -> Outcome:
    """Sent at 0, and over when its last part came."""
    return Outcome(0.0, list(times), times[-1] if times else 1.0, output_tokens=tokens, **more)


# --- numbers ---


def test_summary_interpolates_between_values() -> None:
    assert Summary.of([4.0]) == Summary(4, 4, 4, 4, 4)
    summary = Summary.of([40.0, 10.0, 30.0, 20.0, 50.0])
    assert (summary.mean, summary.p50, summary.max) == (30, 30, 50)
    assert (summary.p90, summary.p99) == (pytest.approx(46), pytest.approx(49.6))


def test_latencies_of_one_answer() -> None:
    # Two tokens came in one of the four parts.
    answer = outcome(0.5, 0.75, 1.0, 1.5, tokens=5)
    assert (answer.ttft, answer.tpot, answer.e2el, answer.gaps) == (0.5, 0.25, 1.5, [0.25, 0.25, 0.5])
    assert outcome(0.5, 0.75, 1.0).tpot == 0.25  # no usage: parts are counted
    assert outcome(0.5, tokens=1).tpot is outcome().ttft is None
    assert outcome(0.5, tokens=1).values("tpot") == outcome(0.5, tokens=1).values("itl") == []


def test_report_counts_only_what_was_answered() -> None:
    outcomes = [
        outcome(0.25, 0.5, tokens=2, prompt_tokens=10, cached_tokens=8),
        outcome(0.75, 1.75, tokens=3, prompt_tokens=20),
        outcome(error="HTTP 429", message="first"),
        outcome(error="HTTP 429", message="second"),
        outcome(0.5, tokens=7, error="timeout", message="late"),
    ]
    outcomes[1].sent, outcomes[1].finished = 0.25, 2.0
    report = summarize(outcomes, parse_slo(["ttft:500", "tpot:400"]))
    assert (report.duration, report.completed, report.failed) == (2.0, 2, 3)
    assert (report.prompt_tokens, report.cached_tokens, report.output_tokens) == (30, 8, 5)
    assert report.errors == {"HTTP 429": 2, "timeout": 1} and report.messages["HTTP 429"] == "first"
    assert (report.rate(report.output_tokens), report.good) == (2.5, 1)  # the second took 500 ms a token
    assert (report.metrics["ttft"].p50, report.metrics["tpot"].max) == (375, 500)
    assert summarize(outcomes, parse_slo(["ttft:499", "e2el:1000"])).good == 1
    assert summarize(outcomes, parse_slo(["ttft:501"])).good == 2
    empty = summarize([], {})
    assert (empty.duration, empty.rate(empty.completed), empty.metrics) == (0, 0, {})


def test_arrivals_follow_rate_and_burstiness() -> None:
    def gaps(burstiness: float) -> list[float]:
        times = list(islice(arrivals(4.0, burstiness, random.Random(1)), 4001))
        assert times[0] == 0
        return [later - earlier for earlier, later in pairwise(times)]

    def spread(values: list[float]) -> float:
        mean = sum(values) / len(values)
        assert mean == pytest.approx(0.25, rel=0.1)
        return sum((value - mean) ** 2 for value in values) / len(values) / mean**2

    # Of a gamma distribution this is one over its shape.
    for burstiness in (0.5, 1.0, 100.0):
        assert spread(gaps(burstiness)) == pytest.approx(1 / burstiness, rel=0.15)
    assert list(islice(arrivals(None, 1.0, random.Random(1)), 3)) == [0, 0, 0]


def test_verdicts() -> None:
    apart = [outcome(1.0, 2.0), outcome(1.5, 3.0), outcome(2.5, 4.0), outcome(2.75, 5.0)]
    assert load_scenarios.judge_users(apart)[1].startswith("at most 3 of 4 users")
    assert load_scenarios.judge_users([outcome(1.0, 9.0), *apart[2:]])[0]
    assert load_scenarios.judge_users([outcome(1.0), outcome(1.0, 2.0)])[0]

    def asked(*cached: int | None) -> tuple[bool, str]:
        return load_scenarios.judge_caching([outcome(1.0, prompt_tokens=100, cached_tokens=each) for each in cached])

    assert asked(0, 96, 80) == (
        True,
        "later questions found 88.0% of their prompts in the cache: first token after 1000 ms, "
        "1000 ms for the first question",
    )
    assert asked(0, 96, 50) == (
        False,
        "later questions found only 73.0% of their prompts in the cache: use --enable-prefix-caching",
    )
    assert "reports no cached tokens" in asked(0, None, 80)[1]

    first = outcome(1.0, 1.5, 2.0, 2.5, 3.0, 9.0)
    others = [outcome(2.0, 2.25, prompt_tokens=300), outcome(3.0, 3.25, prompt_tokens=500, cached_tokens=100)]
    good, why = load_scenarios.judge_chunking([*others, first])
    assert good and why.startswith("the first answer got 4 more tokens while 700 prompt tokens of the others")
    assert why.endswith("longest gap between tokens 6000 ms, median 500 ms")
    good, why = load_scenarios.judge_chunking([outcome(1.0, 2.0, 2.5, 9.0), *others, outcome(3.0, prompt_tokens=400)])
    assert not good and "start the server with --max-num-batched-tokens 100" in why
    assert "reports no prompt tokens" in load_scenarios.judge_chunking([first, outcome(2.0)])[1]


# --- a scripted server ---


class Fake:
    """Answers with `max_tokens` parts "a " of one token each, unless `answer` says otherwise. A prompt has a token for
    each word, and five of a template."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answer: Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]] = self.stream
        self.models: list[str] = ["scripted"]
        self.has_tokenizer = False
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        for path in ("/v1/chat/completions", "/v1/completions"):
            app.router.add_post(path, self._generate)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self.site = web.TCPSite(runner, "127.0.0.1", 0)
        await self.site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.models]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.has_tokenizer:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response({"tokens": [7 for word in (await request.json())["prompt"].split() for _ in "ab"]})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        return await self.answer(request, body)

    def usage(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        size = len(prompt) if isinstance(prompt, list) else 5 + len(prompt.split())
        return {
            "prompt_tokens": size,
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 2},
        }

    async def stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body["stream"]:
            choice = {"message": {"content": "a " * body["max_tokens"]}, "finish_reason": "length"}
            return web.json_response({"choices": [choice], "usage": self.usage(body)})
        parts = [{"content": ""}, *[{"content": "a "}] * body["max_tokens"]]
        events = [{"choices": [{"delta": part, "finish_reason": None}], "usage": None} for part in parts]
        events.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
        if body.get("stream_options", {}).get("include_usage"):
            events.append({"choices": [], "usage": self.usage(body)})
        return await self.send(request, *[b"data: " + json.dumps(event).encode() for event in events], b"data: [DONE]")

    @staticmethod
    async def send(request: web.Request, *events: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event + b"\n\n")
        return response

    async def load(self, arguments: str) -> int:
        return await load.run(load.parse(["--url", self.url, *arguments.split()]))


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    server = Fake()
    runner = await server.start()
    yield server
    await runner.cleanup()


async def ask(fake: Fake, prompt: str = "Hello", max_tokens: int = 3, **options: Any) -> Outcome:
    async with Client(Target(fake.url, "scripted", **options)) as client:
        return await client.ask(Prompt(prompt, max_tokens))


async def test_an_answer_is_counted_by_its_parts_and_usage(fake: Fake) -> None:
    answer = await ask(fake, "one two three", 4, ignore_eos=True, extra={"top_k": 3}, api_key="secret")
    assert (answer.error, answer.text, answer.finish_reason) == ("", "a a a a ", "length")
    assert (len(answer.times), answer.tokens, answer.prompt_tokens, answer.cached_tokens) == (4, 4, 8, 2)
    assert 0 < answer.sent <= answer.times[0] <= answer.times[-1] <= answer.finished
    assert fake.keys == ["Bearer secret"]
    assert fake.bodies == [
        {
            "model": "scripted",
            "messages": [{"role": "user", "content": "one two three"}],
            "max_tokens": 4,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "top_k": 3,
        }
    ]
    whole = await ask(fake, stream=False)
    assert (whole.text, whole.times, whole.tokens, whole.ttft) == ("a a a ", [], 3, None)
    assert "stream_options" not in fake.bodies[1] and "ignore_eos" not in fake.bodies[1]


@pytest.mark.parametrize(
    ("events", "error", "text", "parts"),
    [
        ([b": ping", b'data:{"choices":[{"text":"x"}]}\r\n\r\ndata: [DONE]\r'], "", "x", 1),
        ([b'data: {"choices":[{"delta":{"reasoning":"r","reasoning_content":"r"}}]}', b"data: [DONE]"], "", "r", 1),
        ([b'data: {"choices":[{"delta":{"tool_calls":[{}]}}]}', b"data: [DONE]"], "", "", 1),
        ([b'data: {"choices":[{"delta":{"role":"assistant"},"finish_reason":"stop"}]}'], "", "", 1),
        ([b'data: {"choices":[{"text":"x"}]}'], "cut off", "x", 1),
        ([b'data: {"choices":[{"text":"x"}]}', b'data: {"error":{"message":"broken"}}'], "error in the answer", "x", 1),
        ([b'data: {"choices":[{"text"'], "not OpenAI's format", "", 0),
        ([b'data: {"choices":[{"text":3}]}'], "not OpenAI's format", "", 0),
        ([], "cut off", "", 0),
    ],
)
async def test_streams_of_all_kinds(fake: Fake, events: list[bytes], error: str, text: str, parts: int) -> None:
    fake.answer = lambda request, body: fake.send(request, *events)
    answer = await ask(fake)
    assert (answer.error, answer.text, len(answer.times)) == (error, text, parts)
    assert answer.message or not error


async def test_failures_have_their_kind(fake: Fake) -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "slow down"}}, status=429)

    async def plain(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(status=502, text="<h1>Bad gateway</h1>")

    async def drop(request: web.Request, body: dict[str, Any]) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def hang(request: web.Request, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(600)
        return web.Response()

    for behaviour, kind, message in (
        (refuse, "HTTP 429", "slow down"),
        (plain, "HTTP 502", "<h1>Bad gateway</h1>"),
        (drop, "connection lost", "Server disconnected"),
        (hang, "timeout", "no complete answer within 0.2 s"),
    ):
        fake.answer = behaviour
        answer = await ask(fake, timeout=0.2 if behaviour is hang else 60)
        assert (answer.error, answer.message) == (kind, message)
        assert answer.finished > answer.sent


async def test_the_server_that_cannot_be_measured(fake: Fake) -> None:
    async def no_key(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "who are you?"}}, status=401)

    fake.answer = no_key
    with pytest.raises(LoadError, match=r"wants a key: give --api-key \(who are you\?\)"):
        await fake.load("")
    fake.models = []
    with pytest.raises(LoadError, match="names no model: give --model"):
        await fake.load("")
    with pytest.raises(LoadError, match=r"cannot reach http://127\.0\.0\.1:1: connection refused; start the server"):
        await load.run(load.parse(["--url", "http://127.0.0.1:1"]))


@pytest.mark.parametrize("refused", [["ignore_eos"], ["stream_options"], ["ignore_eos", "stream_options"]])
async def test_fields_that_a_server_refuses_are_left_out(
    fake: Fake, refused: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    async def strict(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if found := [name for name in refused if name in body]:
            return web.json_response({"error": {"message": f"unknown field {found[0]}"}}, status=400)
        return await fake.stream(request, body)

    fake.answer = strict
    assert await fake.load("--num-requests 3 --output-length 4") == 0
    output, notes = capsys.readouterr()
    assert [name for name in ("ignore_eos", "stream_options") if name not in fake.bodies[-1]] == refused
    assert all(f"the server refuses {name}" in notes for name in refused)
    assert "output tokens  12," in output
    assert ("reports no usage" in output) == ("stream_options" in refused)


async def test_lengths_are_those_that_the_server_counts(fake: Fake) -> None:
    def sizes() -> list[int]:
        found = [fake.usage(body)["prompt_tokens"] for body in fake.bodies if body["max_tokens"] == 9]
        fake.bodies.clear()
        return found

    options = "--output-length 9 --num-requests 3"
    assert await fake.load(f"{options} --input-length 40") == 0
    assert sizes() == [45] * 3  # a word is a token, and the template comes on top
    fake.has_tokenizer = True
    assert await fake.load(f"{options} --input-length 40") == 0
    assert sizes() == [25] * 3  # two tokens a word
    assert await fake.load(f"{options} --input-length 40 --endpoint completions") == 0
    assert sizes() == [40] * 3  # ids
    assert await fake.load(f"{options} --dataset shared-prefix --prefix-length 30 --input-length 20") == 0
    prompts = [body["messages"][0]["content"].split() for body in fake.bodies if body["max_tokens"] == 9]
    assert len({tuple(prompt[:15]) for prompt in prompts}) == 1 and len({tuple(prompt) for prompt in prompts}) == 3
    assert sizes() == [30] * 3


async def test_a_seed_gives_the_same_prompts(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for seed in (1, 1, 2):
        await fake.load(f"--seed {seed} --num-requests 4 --concurrency 1")
        seen.append([body["messages"] for body in fake.bodies[-4:]])
    assert seen[0] == seen[1] != seen[2]
    # Without one prompts are new, and so in no server's cache; the seed is shown.
    capsys.readouterr()
    await fake.load("--num-requests 4 --concurrency 1")
    shown = re.search(r"seed (\d+)", capsys.readouterr().out)
    assert shown and [body["messages"] for body in fake.bodies[-4:]] not in seen
    drawn = [body["messages"] for body in fake.bodies[-4:]]
    await fake.load(f"--seed {shown[1]} --num-requests 4 --concurrency 1")
    assert [body["messages"] for body in fake.bodies[-4:]] == drawn


async def test_concurrency_and_rate(fake: Fake) -> None:
    running, most, gate = 0, 0, asyncio.Event()

    async def counted(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal running, most
        if body["max_tokens"] == 2:
            running += 1
            most = max(most, running)
            if len([each for each in fake.bodies if each["max_tokens"] == 2]) == full:
                gate.set()
            await gate.wait()
            running -= 1
        return await fake.stream(request, body)

    fake.answer = counted
    # Each run ends only if as many requests as that come together.
    for arguments, full in (("--concurrency 3", 3), ("", 8), ("--rate 1000", 20), ("--rate 1000 --concurrency 2", 2)):
        gate.clear()
        fake.bodies.clear()
        most = 0
        assert await fake.load(f"--num-requests 20 --output-length 2 {arguments}") == 0
        assert most == full


async def test_duration_ends_the_sending(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert await fake.load("--duration 0.2 --concurrency 2 --output-length 2") == 0
    sent = len([body for body in fake.bodies if body["max_tokens"] == 2])
    assert sent > 2 and f"completed      {sent} in" in capsys.readouterr().out


async def test_prompts_of_a_file(fake: Fake, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    lines: list[dict[str, Any]] = [{"prompt": "Hello"}, {"messages": chat, "max_tokens": 7}]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    options = f"--dataset file --dataset-path {file} --concurrency 1 --output-length 5"
    assert await fake.load(options) == 0
    hello = [{"role": "user", "content": "Hello"}]
    sent = [(body["messages"], body["max_tokens"]) for body in fake.bodies[1:]]
    assert sent == [(hello, 5), (chat, 7)] and "ignore_eos" not in fake.bodies[1]
    assert await fake.load(f"{options} --num-requests 3 --ignore-eos") == 0
    assert [body["max_tokens"] for body in fake.bodies[-3:]] == [5, 7, 5] and fake.bodies[-1]["ignore_eos"]
    for text, words in (
        ("", "holds no prompts"),
        ("{", "line 1: "),
        ('{"prompt": "x"}\n{"prompt": 3}', "line 2: Expected"),
        ('{"text": "x"}', "line 1: give one of prompt and messages"),
        ('{"prompt": [1, 2]}', "line 1 has token ids: use --endpoint completions"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            await fake.load(options)
    file.write_text('{"messages": []}')
    with pytest.raises(ConfigError, match="line 1 has messages: use --endpoint chat"):
        await fake.load(f"{options} --endpoint completions")
    with pytest.raises(ConfigError, match="No such file"):
        await fake.load(f"--dataset file --dataset-path {tmp_path}/absent")


async def test_results_are_saved(fake: Fake, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    refusals = iter([False] * 3 + [True, False])

    async def sometimes(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["max_tokens"] == 6 and next(refusals, False):
            return web.json_response({"error": {"message": "full"}}, status=503)
        return await fake.stream(request, body)

    fake.answer = sometimes
    files = f"--save-json {tmp_path}/a.json --save-png {tmp_path}/a.png"
    assert await fake.load(f"--num-requests 10 --output-length 6 --api-key secret --slo e2el:60000 {files}") == 1
    text = (tmp_path / "a.json").read_text()
    saved = json.loads(text)
    assert (saved["completed"], saved["failed"], saved["good"], saved["output_tokens"]) == (9, 1, 9, 54)
    assert saved["errors"] == {"HTTP 503": 1} and saved["messages"] == {"HTTP 503": "full"}
    assert saved["output_throughput"] == pytest.approx(54 / saved["duration"])
    assert saved["settings"]["model"] == "scripted" and "secret" not in text
    assert [len(each["times"]) for each in saved["requests"] if not each["error"]] == [6] * 9
    assert saved["metrics"].keys() == {"ttft", "tpot", "itl", "e2el"}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


async def test_without_streams_there_is_only_the_whole_latency(fake: Fake, tmp_path: Path) -> None:
    assert await fake.load(f"--num-requests 3 --no-stream --save-json {tmp_path}/a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text())["metrics"].keys() == {"e2el"}


async def test_a_server_that_dies_leaves_the_results_until_then(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = 0

    async def mortal(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal served
        if body["max_tokens"] != 6:
            return await fake.stream(request, body)
        served += 1
        if served <= 12:
            return await fake.stream(request, body)
        await fake.site.stop()
        response = await fake.send(request, b'data: {"choices":[{"delta":{"content":"half an ans"}}]}')
        assert request.transport is not None
        request.transport.abort()
        return response

    fake.answer = mortal
    code = await fake.load(f"--num-requests 500 --concurrency 1 --output-length 6 --save-json {tmp_path}/a.json")
    output, errors = capsys.readouterr()
    assert code == 1
    assert "completed      12 in" in output and "1 x connection lost" in output and "5 x no connection" in output
    assert errors.rstrip().endswith("error: the server has gone: connection refused; the results are those until then")
    saved = json.loads((tmp_path / "a.json").read_text())
    assert (saved["completed"], saved["failed"], saved["requests"][12]["text"]) == (12, 6, "half an ans")


async def test_ctrl_c_keeps_the_results(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    async def interrupting(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(fake.bodies) > 10:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(600)
        return await fake.stream(request, body)

    fake.answer = interrupting
    code = await fake.load("--num-requests 100 --concurrency 2 --model scripted")
    output, errors = capsys.readouterr()
    assert code == 130 and "x interrupted: the run was ended" in output and "error: interrupted; the results" in errors
    assert "completed      " in output and len(fake.bodies) <= 12


async def test_a_scenario_with_failures_fails(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    async def refuse(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["max_tokens"] == 1 or len(fake.bodies) % 2:
            return await fake.stream(request, body)
        return web.json_response({"error": {"message": "too long"}}, status=400)

    fake.answer = refuse
    assert await fake.load("--scenario prefix-caching") == 1
    assert capsys.readouterr().out.rstrip().endswith("FAIL: not every question was answered")
    assert "failed: HTTP 400: too long" in (tmp_path / "run_prefix-caching_1.log").read_text()
    fake.answer = fake.stream
    # The scripted server always claims two tokens of the cache.
    assert await fake.load("--scenario prefix-caching") == 1
    assert "FAIL: later questions found only" in capsys.readouterr().out


# --- the command line ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--url localhost:8000", "--url must begin with http:// or https://"),
        ("--dataset file", "--dataset file needs --dataset-path FILE"),
        ("--dataset-path x", "--dataset-path has no meaning with --dataset random"),
        ("--dataset file --dataset-path x --input-length 3", "--input-length has no meaning with --dataset file"),
        ("--prefix-length 3", "--prefix-length has no meaning with --dataset random"),
        ("--scenario four-users --rate 3", "--rate has no meaning with --scenario"),
        ("--burstiness 2", "--burstiness needs --rate"),
        ("--slo ttft", "cannot read --slo ttft: give ttft, tpot, e2el as NAME:MILLISECONDS"),
        ("--slo tpot:5 itl:3", "cannot read --slo itl:3"),
        ("--slo ttft:-1", "cannot read --slo ttft:-1"),
        ("--no-stream --slo ttft:9", "without --stream only --slo e2el"),
        ("--no-stream --scenario four-users", "and no --scenario"),
        ("--save-json /nowhere/a.json", "cannot write /nowhere/a.json: there is no such directory"),
    ],
)
def test_options_that_do_not_go_together(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", *arguments.split()]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("sophserve: error: ") and words in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--concurency 3", "unknown option --concurency; did you mean --concurrency?"),
        ("--concurrency 0", "argument --concurrency: expected a whole number, above 0"),
        ("--num-requests 1.5", "expected a whole number, above 0"),
        ("--rate inf", "expected a number, above 0"),
        ("--temperature -1", "expected a number, 0 or more"),
        ("--extra-body [1]", "expected a JSON object"),
        ("--scenario five-users", "invalid choice: 'five-users'"),
        ("--stream maybe", "expected true or false, got 'maybe'"),
    ],
)
def test_values_that_cannot_work(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["load", *arguments.split()])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.startswith("sophserve load: error: ") and words in errors


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophserve.bench.load_report.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--save-png needs matplotlib: pip install 'sophserve\[plot\]'"):
        load.parse(["--save-png", "a.png"])


# --- a tiny model ---


def test_every_load_of_a_tiny_model(
    make_checkpoint: Callable[..., Path],
    start_server: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = make_checkpoint("qwen2", max_position_embeddings=8192)
    server = start_server(checkpoint, "--max-num-batched-tokens", "100", "--api-key", "secret")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOPHSERVE_API_KEY", "secret")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "The sea", "max_tokens": 3}\n')

    def run(arguments: str) -> tuple[str, dict[str, Any]]:
        code = main(["load", "--url", server.url, "--save-json", "a.json", *arguments.split()])
        output = capsys.readouterr()
        assert code == 0, output
        return output.out, json.loads((tmp_path / "a.json").read_text())

    _, saved = run("--num-requests 12 --input-length 50 --output-length 10 --concurrency 4 --endpoint completions")
    assert (saved["completed"], saved["prompt_tokens"], saved["output_tokens"]) == (12, 600, 120)
    assert saved["usage_reported"] and saved["cached_tokens"] == 0
    _, saved = run("--num-requests 6 --output-length 5 --no-stream --rate 100")
    assert (saved["completed"], saved["output_tokens"]) == (6, 30) and 600 < saved["prompt_tokens"] < 1100
    options = "--dataset shared-prefix --prefix-length 64 --input-length 20 --num-requests 8 --output-length 4"
    _, saved = run(f"{options} --endpoint completions --concurrency 1")
    assert (saved["prompt_tokens"], saved["cached_tokens"]) == (8 * 84, 7 * 64)
    _, saved = run("--dataset file --dataset-path prompts.jsonl --ignore-eos --output-length 8 --seed 3")
    assert [request["output_tokens"] for request in saved["requests"]] == [8, 3]
    output, _ = run("--scenario four-users --ignore-eos")
    assert "PASS: all 4 users were being answered at the same time" in output
    output, saved = run("--scenario prefix-caching --output-length 4")
    assert "PASS: later questions found 9" in output
    cached = [request["cached_tokens"] for request in saved["requests"]]
    assert cached[0] == 0 and min(cached[1:]) > 0.9 * saved["requests"][1]["prompt_tokens"]
    output, _ = run("--scenario prefill-chunking")
    assert "PASS: the first answer got" in output
    logs = sorted(file.name for file in tmp_path.glob("run_*.log"))
    assert len(logs) == 13 and logs[0] == "run_four-users_1.log"
    log = (tmp_path / "run_four-users_1.log").read_text()
    assert log.startswith("Explain in at least a hundred words why the sky is blue")
    assert "=== answer ===" in log and "failed" not in log
    monkeypatch.delenv("SOPHSERVE_API_KEY")
    assert main(["load", "--url", server.url]) == 1
    assert "wants a key: give --api-key" in capsys.readouterr().err
