"""`sophserve load` against a scripted server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from sophserve.bench import load
from sophserve.bench.load_client import Client, LoadError, Prompt, Target
from sophserve.bench.load_metrics import Outcome
from sophserve.errors import ConfigError
from tests.bench.conftest import Fake


async def ask(fake: Fake, prompt: str = "Hello", max_tokens: int = 3, **options: Any) -> Outcome:
    async with Client(Target(fake.url, "scripted", **options)) as client:
        return await client.ask(Prompt(prompt, max_tokens))


async def test_an_answer_is_counted_by_its_parts_and_usage(fake: Fake) -> None:
    answer = await ask(fake, "one two three", 4, ignore_eos=True, extra_body={"top_k": 3}, api_key="secret")
    assert (answer.error, answer.text, answer.finish_reason) == ("", "a a a a ", "length")
    assert (len(answer.times), answer.tokens, answer.prompt_tokens, answer.cached_tokens) == (4, 4, 8, 2)
    assert (answer.accepted_tokens, answer.rejected_tokens) == (1, 3)
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


async def test_no_connection_is_used_again(fake: Fake) -> None:
    peers = []

    async def noted(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return await fake.stream(request, body)

    fake.answer = noted
    assert await fake.load("--num-requests 5 --concurrency 1") == 0
    assert len(set(peers)) == len(peers) >= 5


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

    fake.answer, fake.pause = sometimes, 0.002
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


async def test_images_of_their_own(fake: Fake) -> None:
    """Each request has another one, all are what the options say, and the same seed makes the same ones."""

    def images(bodies: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
        [*messages] = [body["messages"][0] for body in bodies]
        assert all(len(message["content"][1]["text"].split()) == 20 for message in messages)
        urls = [message["content"][0]["image_url"]["url"].partition(";base64,") for message in messages]
        return [(kind, b64decode(data)) for kind, _, data in urls]

    options = "--dataset random-image --image-size 40x30 --input-length 20 --output-length 2 --seed 5"
    for more, kind in (("--num-requests 6", "jpeg"), ("--image-format png --duration 0.2 --rate 20", "png")):
        fake.bodies.clear()
        assert await fake.load(f"{options} {more}") == 0
        sent = [body for body in fake.bodies if isinstance(body["messages"][0]["content"], list)]
        found = images(sent)
        assert len(found) > 2 and len(set(found)) == len(found) and sent[0]["max_tokens"] == 1
        assert {name for name, _ in found} == {f"data:image/{kind}"}
        for _, content in found:
            with Image.open(io.BytesIO(content)) as image:
                assert (image.size, image.format, image.mode) == ((40, 30), kind.upper(), "RGB")
        if kind == "jpeg":
            fake.bodies.clear()
            await fake.load(f"{options} {more}")
            again = images([body for body in fake.bodies if isinstance(body["messages"][0]["content"], list)])
            assert set(again) == set(found) and len(found) == 7


async def test_a_model_that_sees_nothing_is_told_of_at_once(fake: Fake) -> None:
    async def blind(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if isinstance(body["messages"][0]["content"], list):
            return web.json_response({"error": {"message": "this model takes no images"}}, status=400)
        return await fake.stream(request, body)

    fake.answer = blind
    with pytest.raises(LoadError, match="HTTP 400: this model takes no images"):
        await fake.load("--dataset random-image")
