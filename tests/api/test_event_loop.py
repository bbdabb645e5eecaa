"""The event loop stands still for nobody: bodies that are hard to work on, at every endpoint."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sophserve.checkpoint import read_config
from sophserve.media.limits import MediaLimits
from sophserve.media.loader import image_loader
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer
from tests.api.images import let_see
from tests.loop_probe import MOST_SECONDS, LoopProbe

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HELLO = [{"role": "user", "content": "hi"}]


TOKENIZE, TEMPLATE, EMBED = "/tokenize", "/apply-template", "/v1/embeddings"
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "[" + "[]," * 140_000 + "[]]"}}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def different(count: int, length: int) -> list[str]:
    return [f"{number:04}".ljust(length, "a") for number in range(count)]


def turns(count: int, content: Any = "") -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[number % 2], "content": content} for number in range(count)]


def tools(count: int, properties: int) -> list[dict[str, Any]]:
    schema = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(properties)}}
    return [
        {"type": "function", "function": {"name": f"f{number}", "parameters": schema, "strict": True}}
        for number in range(count)
    ]


# Path, body, and the field that a refusal names; None for those that must be served.
HOSTILE: dict[str, tuple[str, bytes, str | None]] = {
    "a long stop": (TEXT, body(prompt="hi", n=128, max_tokens=1, stop="a" * 20_000), "stop"),
    "long stops": (CHAT, body(messages=HELLO, n=128, max_tokens=1, stop=different(4, 20_000)), "stop"),
    "long stops of a response": (RESPONSES, body(input="hi", stop=different(64, 100_000)), "stop"),
    "long stop sequences": (
        MESSAGES,
        body(messages=HELLO, max_tokens=1, stop_sequences=different(64, 100_000)),
        "stop_sequences",
    ),
    "many stops": (TEXT, body(prompt="hi", n=128, max_tokens=100, stop=different(60, 100)), None),
    "long bad words": (TEXT, body(prompt="hi", n=128, max_tokens=1, bad_words=different(100, 2000)), "bad_words"),
    "many bad words": (TEXT, body(prompt="hi", n=128, max_tokens=1, bad_words=different(100, 60)), None),
    "many prompts": (TEXT, body(prompt=["the fox " * 1200] * 100, max_tokens=1, truncate_prompt_tokens=9), None),
    "many inputs": (EMBED, body(input=["the fox " * 1200] * 100, truncate_prompt_tokens=9), None),
    "many small inputs": (EMBED, body(input=["the fox"] * 1200), None),
    "many ids": (TEXT, body(prompt=[7] * 1_000_000), "values"),
    "many ids beyond the context": (TEXT, body(prompt=[7] * 500_000), "prompt"),
    "ids of inputs": (EMBED, body(input=[[7] * 400] * 1200, truncate_prompt_tokens=9), None),
    "ids of a text": ("/detokenize", body(tokens=[77] * 400_000), None),
    "allowed ids": (TEXT, body(prompt="hi", n=128, max_tokens=1, allowed_token_ids=[7] * 90_000), None),
    "many messages": (CHAT, body(messages=turns(20_000), max_tokens=1, truncate_prompt_tokens=9), None),
    "too many messages": (CHAT, body(messages=turns(50_000), max_tokens=1, truncate_prompt_tokens=9), "texts, arrays"),
    "many parts": (CHAT, body(messages=turns(1, [{"type": "text", "text": ""}] * 20_000)), "prompt"),
    "many messages to count": (f"{MESSAGES}/count_tokens", body(messages=turns(20_000)), None),
    "many messages to tokenize": (TOKENIZE, body(messages=turns(20_000)), None),
    "many messages to render": (TEMPLATE, body(messages=turns(20_000)), None),
    "many items": (RESPONSES, body(input=turns(20_000, "a"), max_output_tokens=1), "prompt"),
    "many items to count": (f"{RESPONSES}/input_tokens", body(input=turns(20_000, "a")), None),
    "many blocks": (
        MESSAGES,
        body(messages=[*HELLO, turns(2, [{"type": "thinking", "thinking": "a" * 99}] * 20_000)[1]], max_tokens=1),
        None,
    ),
    "many calls": (
        f"{MESSAGES}/count_tokens",
        body(messages=[*HELLO, turns(2, [{"type": "tool_use", "id": "a", "name": "f", "input": {}}] * 9_000)[1]]),
        None,
    ),
    "many tools": (CHAT, body(messages=HELLO, max_tokens=1, tools=tools(300, 50), tool_choice="none"), None),
    "many tools to call": (CHAT, body(messages=HELLO, max_tokens=1, tools=tools(300, 50)), "characters"),
    "too many tools": (CHAT, body(messages=HELLO, max_tokens=1, tools=tools(2000, 50)), ""),
    "an unknown tree": (TEXT, body(prompt="hi", max_tokens=1, other=[[]] * 500_000), "arrays"),
    "unknown fields": (TEXT, body(prompt="hi", max_tokens=1, **{f"f{n}": 1 for n in range(99_999)}), "fields"),
    "a large schema": (CHAT, body(messages=HELLO, response_format={"enum": [[]] * 400_000}), ""),
    "template arguments": (
        TEMPLATE,
        body(messages=HELLO, chat_template_kwargs={"a": [[]] * 99_999}),
        "kw",
    ),
    "large metadata": (
        RESPONSES,
        body(input="hi", metadata={f"a{number}": "" for number in range(9_000)}),
        "metadata",
    ),
    "large arguments of a call": (CHAT, body(messages=[{"role": "assistant", "tool_calls": [CALL]}]), None),
    "a large choice of tool": (CHAT, body(messages=HELLO, tool_choice={"a": [[]] * 99_999}), "tool_choice"),
    "many escapes": (TOKENIZE, body(prompt="\n" * 3_000_000), "escapes"),
    "long numbers": (TEXT, b'{"prompt": [' + b",".join([b"9" * 4000] * 2000) + b"]}", "digits"),
    "a long text": (TOKENIZE, body(prompt="the cat sat on a mat. " * 40_000), None),
    "too long a text": (TOKENIZE, body(prompt="the cat sat on a mat. " * 400_000), "characters"),
    "a long document": (CHAT, body(messages=HELLO, max_tokens=1, documents=[{"a": [{}] * 100_000}]), None),
}


async def test_the_probe_sees_work_on_the_loop_and_calls_that_hold_the_lock() -> None:
    async with LoopProbe() as probe:
        sum(range(10**7))
    assert probe.longest > 0.02
    numbers = json.dumps(list(range(2 * 10**6)))
    async with LoopProbe() as probe:
        await asyncio.to_thread(json.loads, numbers)
    assert probe.longest > 0.02


async def test_the_probe_does_not_see_waiting() -> None:
    async with LoopProbe() as probe:
        await asyncio.to_thread(time.sleep, 0.1)
        time.sleep(0.1)  # as another process would hold it up
    assert probe.longest < 0.02


@pytest.mark.parametrize("name", HOSTILE)
async def test_the_loop_goes_on(start_app: Any, name: str) -> None:
    path, data, wrong = HOSTILE[name]
    app = await start_app(tool_call_parser="hermes")
    async with LoopProbe() as probe, app.http.post(path, data=data) as response:
        answer = await response.read()
    assert probe.longest < MOST_SECONDS
    if wrong is None:
        assert response.status == 200, answer
    else:
        error = json.loads(answer)["error"]
        assert response.status == 400 and wrong in error["message"]


# Path and body. The context is long enough for them.
LONG_ANSWERS: dict[str, tuple[str, bytes]] = {
    "logprobs of many answers": (
        CHAT,
        body(messages=turns(1, "the fox " * 30), n=128, max_tokens=90, logprobs=True, top_logprobs=20),
    ),
    "logprobs of many completions": (TEXT, body(prompt=[7] * 60, n=128, max_tokens=90, logprobs=20)),
    "an echo with logprobs": (TEXT, body(prompt=[7] * 9000, max_tokens=1, logprobs=20, echo=True)),
    "a streamed echo": (TEXT, body(prompt=[7] * 9000, max_tokens=1, logprobs=20, echo=True, stream=True)),
    "logprobs of a prompt": (TEXT, body(prompt=[7] * 9000, max_tokens=1, prompt_logprobs=20)),
    "logprobs of a response": (RESPONSES, body(input="the fox " * 700, max_output_tokens=3000, top_logprobs=20)),
    "logprobs of a response in the background": (
        RESPONSES,
        body(input="the fox " * 700, max_output_tokens=3000, top_logprobs=20, stream=True, background=True),
    ),
    "logprobs of a streamed response": (
        RESPONSES,
        body(input="the fox " * 700, max_output_tokens=3000, top_logprobs=20, stream=True),
    ),
    "wide embeddings": (EMBED, body(input=["the fox"] * 500)),
    "wide embeddings in base64": (EMBED, body(input=["the fox"] * 500, encoding_format="base64", dimensions=4000)),
}


def lengthen(app: Any, context: int) -> None:
    app.engine.context = app.engine.info.max_model_len = context


# Which are worded by what words others of them.
WORDED_LIKE_OTHERS = (
    "logprobs of many completions",
    "an echo with logprobs",
    "logprobs of a response in the background",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in WORDED_LIKE_OTHERS else name for name in LONG_ANSWERS],
)
async def test_the_loop_goes_on_while_long_answers_are_worded(
    app: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = array("f", range(1, 4097))

    async def embed(*_: Any) -> array[float]:
        return vector

    monkeypatch.setattr(app.engine, "embed", embed)
    lengthen(app, 10_000)
    path, data = LONG_ANSWERS[name]
    async with LoopProbe() as probe, app.http.post(path, data=data) as response:
        answer = b"".join([part async for part in response.content.iter_any()])
    assert response.status == 200 and len(answer) > 1_000_000
    assert probe.longest < MOST_SECONDS
    if b"stream" not in data:
        assert json.loads(answer)["usage"]


def data_url(image: str) -> str:
    return f"data:image/bmp;base64,{image}"


def chat_about(image: str) -> list[dict[str, Any]]:
    return turns(1, [{"type": "image_url", "image_url": {"url": data_url(image)}}])


def items_about(image: str) -> list[dict[str, Any]]:
    return [{"type": "message", **turns(1, [{"type": "input_image", "image_url": data_url(image)}])[0]}]


def blocks_about(image: str) -> list[dict[str, Any]]:
    source = {"type": "base64", "media_type": "image/bmp", "data": image}
    return turns(1, [{"type": "image", "source": source}])


# By path, the body about an image in base64.
ABOUT_IMAGES: dict[str, Callable[[str], bytes]] = {
    CHAT: lambda image: body(messages=chat_about(image), max_tokens=1),
    RESPONSES: lambda image: body(input=items_about(image), max_output_tokens=1),
    MESSAGES: lambda image: body(messages=blocks_about(image), max_tokens=1),
    TOKENIZE: lambda image: body(messages=chat_about(image)),
    "/v1/conversations": lambda image: body(items=items_about(image)),
}


async def test_the_loop_goes_on_with_large_images(
    start_app: Any, make_seeing_checkpoint: Callable[[str], Path]
) -> None:
    """Of 18 MB, in bodies of 24 MB; each is another one."""
    app, directory = await start_app(), make_seeing_checkpoint("qwen2_5_vl")
    let_see(app)
    app.serving.tokenizer = app.engine._tokenizer = Tokenizer.from_directory(directory)
    app.serving.images = image_loader(directory, read_config(directory), MediaLimits())
    placeholder = app.serving.images.processor.placeholder
    app.serving.chat_template = ChatTemplate.from_directory(directory, app.serving.tokenizer, placeholder=placeholder)
    for number, (path, about) in enumerate(ABOUT_IMAGES.items()):
        file = io.BytesIO()
        Image.new("RGB", (2450, 2450), (number, 0, 0)).save(file, "BMP")
        data = about(base64.b64encode(file.getbuffer()).decode())
        assert len(data) > 24_000_000
        async with LoopProbe() as probe, app.http.post(path, data=data) as response:
            answer = await response.read()
        assert response.status == 200, answer[:1000]
        assert probe.longest < MOST_SECONDS, path


async def test_short_texts_do_not_wait_for_long_ones(app: Any) -> None:
    lengthen(app, 100_000)
    data = {"prompt": "the cat sat on a mat. " * 20_000}
    long = [asyncio.create_task(app.post(TOKENIZE, data)) for _ in range(4)]
    await asyncio.sleep(0.05)
    status, _ = await app.post(CHAT, {"messages": turns(1, "the fox " * 1300), "max_tokens": 1})
    assert status == 200 and not all(task.done() for task in long)
    assert [status for status, _ in await asyncio.gather(*long)] == [200] * 4


async def test_work_on_texts_takes_a_place(start_app: Any) -> None:
    app = await start_app(max_queued_requests=0, engine={"max_num_seqs": 1})
    app.engine.gate.clear()
    running = asyncio.create_task(app.post(TEXT, {"prompt": "hi"}))
    await app.until_running(1)
    for path, fields in (
        (TOKENIZE, {"prompt": "a"}),
        ("/detokenize", {"tokens": [70]}),
        (TEMPLATE, {"messages": HELLO}),
        (f"{MESSAGES}/count_tokens", {"messages": HELLO}),
        (f"{RESPONSES}/input_tokens", {"input": "hi"}),
    ):
        status, answer = await app.post(path, fields)
        assert status == 429, answer
    app.engine.gate.set()
    await running
