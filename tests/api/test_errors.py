"""What is wrong with a request is said in one envelope, and never with a 5xx."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from typing import Any

import pytest
from openai import APIError, BadRequestError, NotFoundError

from sophserve.api.anthropic.messages import CountRequest, MessagesRequest
from sophserve.api.generation.request_bodies import ChatRequest, CompletionRequest
from sophserve.api.openai.embeddings import EmbeddingRequest
from sophserve.api.openai.response_input import InputTokensRequest, ResponsesRequest
from sophserve.api.operations.tokenize import ConversationRequest, DetokenizeRequest, TokenizeRequest
from sophserve.errors import EngineDeadError, ServerBusy
from sophserve.text.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "Hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

WRONG_FIELDS = [
    # path, fields, param, words of the message
    (CHAT, {"messages": None}, "messages", "array"),
    (CHAT, {"messages": "Hi"}, "messages", "array"),
    (CHAT, {"messages": []}, "messages", "empty"),
    (CHAT, {"messages": ["Hi"]}, "messages[0]", "object"),
    (CHAT, {"messages": [{"content": "Hi"}]}, "messages[0].role", "missing"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    (CHAT, {"messages": [{"role": 1, "content": "Hi"}]}, "messages[0].role", "str"),
    (CHAT, {"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content", "str"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].image_url.url",
        "sees no images",
    ),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages[0].tool_calls[0]", "object"),
    (CHAT, {"temperature": "hot"}, "temperature", "float"),
    (CHAT, {"temperature": -1}, "temperature", "between 0 and"),
    (CHAT, {"temperature": True}, "temperature", "float"),
    (CHAT, {"top_p": -0.5}, "top_p", "at least 0"),
    (CHAT, {"top_p": 1.5}, "top_p", "at most 1"),
    (CHAT, {"top_k": -2}, "top_k", "0 or positive"),
    (CHAT, {"top_k": 2.5}, "top_k", "int"),
    (CHAT, {"min_p": 2}, "min_p", "between 0 and 1"),
    (CHAT, {"n": 0}, "n", "between 1"),
    (CHAT, {"n": 10**9}, "n", "between 1"),
    (CHAT, {"max_tokens": -5}, "max_tokens", "at least 0"),
    (CHAT, {"max_tokens": 10**30}, "max_tokens", "256"),
    (CHAT, {"max_tokens": "5"}, "max_tokens", "int"),
    (CHAT, {"max_tokens": 257}, "max_tokens", "256"),
    (CHAT, {"min_tokens": 5, "max_tokens": 4}, "min_tokens", "at most max_tokens"),
    (CHAT, {"min_tokens": 10**30}, "min_tokens", "256"),
    (CHAT, {"seed": 2**63}, "seed", "64-bit"),
    (CHAT, {"seed": 10**40}, "seed", "64-bit"),
    (CHAT, {"seed": 1.5}, "seed", "int"),
    (CHAT, {"stop": ""}, "stop", "at least one character"),
    (CHAT, {"stop": ["a", ""]}, "stop", "at least one character"),
    (CHAT, {"stop": [1]}, "stop[0]", "str"),
    (CHAT, {"stop": ["x"] * 65}, "stop", "65"),
    (CHAT, {"stop_token_ids": ["a"]}, "stop_token_ids[0]", "int"),
    (CHAT, {"stop_token_ids": [512]}, "stop_token_ids", "511"),
    (CHAT, {"stop_token_ids": [-1]}, "stop_token_ids", "511"),
    (CHAT, {"stop_token_ids": [10**40]}, "stop_token_ids", "511"),
    (CHAT, {"presence_penalty": 3}, "presence_penalty", "between -2 and 2"),
    (CHAT, {"frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
    (CHAT, {"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias", "int"),
    (CHAT, {"logit_bias": {"1": "x"}}, "logit_bias", "float"),
    (CHAT, {"logit_bias": {"1": 101}}, "logit_bias", "between -100 and 100"),
    (CHAT, {"logit_bias": {"512": 1}}, "logit_bias", "511"),
    (CHAT, {"logit_bias": {str(token): 101 for token in range(1000)}}, "logit_bias", "between -100 and 100"),
    (CHAT, {"logprobs": 1}, "logprobs", "bool"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "logprobs", "20"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
    (CHAT, {"prompt_logprobs": -1}, "prompt_logprobs", "between 0 and 20"),
    (CHAT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream"),
    (CHAT, {"stream": "yes"}, "stream", "bool"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    (CHAT, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "bool"),
    (CHAT, {"response_format": {"type": "xml"}}, "response_format", "give text, json_object or json_schema"),
    (CHAT, {"response_format": {"type": "structural_tag"}}, "response_format", "'structural_tag' is not supported"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs"),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format.json_schema.schema",
        "missing",
    ),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
        "response_format",
        "no value fits it",
    ),
    (CHAT, {"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "exclude each other"),
    (TEXT, {"guided_json": {}, "guided_choice": ["a"]}, "guided_choice", "exclude each other"),
    (TEXT, {"guided_json": {"type": "shoe"}}, "guided_json", "Invalid type: shoe"),
    (TEXT, {"guided_json": '{"type": '}, "guided_json", "cannot be read"),
    (TEXT, {"guided_json": 5}, "guided_json", "object"),
    (TEXT, {"guided_regex": "(a"}, "guided_regex", "unclosed"),
    (TEXT, {"guided_choice": []}, "guided_choice", "at least one text"),
    (TEXT, {"guided_choice": [1]}, "guided_choice[0]", "str"),
    (TEXT, {"guided_grammar": "start: x"}, "guided_grammar", "x"),
    (TEXT, {"guided_decoding": {"regex": "(a"}}, "guided_decoding.regex", "unclosed"),
    (TEXT, {"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.regex", "exclude each other"),
    (TEXT, {"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs", "structural_tag is not supported"),
    (TEXT, {"structured_outputs": "json"}, "structured_outputs", "object"),
    (CHAT, {"grammar": "start: x"}, "grammar", "not supported"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "--tool-call-parser"),
    (CHAT, {"tools": [{"type": "magic", "function": {"name": "f"}}]}, "tools[0].type", "'magic' are not supported"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "regex"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools[1].function.name", "already"),
    (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
        "tools[0].function.parameters",
        "object",
    ),
    (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
        "tools[0].function.parameters",
        "of type object",
    ),
    (CHAT, {"tool_choice": "required"}, "tool_choice", "needs tools"),
    (CHAT, {"tool_choice": "sometimes"}, "tool_choice", "must be none, auto, required or"),
    (CHAT, {"parallel_tool_calls": 1}, "parallel_tool_calls", "bool"),
    (CHAT, {"tools": {}}, "tools", "array"),
    (CHAT, {"functions": [{"name": "f"}]}, "functions", "not supported"),
    (CHAT, {"chat_template": "{{ 1 }}"}, "chat_template", "--trust-request-chat-template"),
    (CHAT, {"best_of": 2}, "best_of", "not supported"),
    (CHAT, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
    (CHAT, {"truncate_prompt_tokens": 3, "truncation_side": "top"}, "truncation_side", "left or right"),
    (CHAT, {"timeout": 0}, "timeout", "above 0"),
    (CHAT, {"timeout": 1e300}, "timeout", "at most 86400"),
    (CHAT, {"allowed_token_ids": []}, "allowed_token_ids", "at least one"),
    (CHAT, {"allowed_token_ids": [512]}, "allowed_token_ids", "511"),
    (CHAT, {"bad_words": [" "]}, "bad_words", "not blank"),
    (CHAT, {"chat_template_kwargs": {"tools": []}}, "tools", "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": 5}, "chat_template_kwargs", "object"),
    (CHAT, {"messages": [{"role": "user", "content": "fox " * 3000}]}, "prompt", "256"),
    (TEXT, {"prompt": None}, "prompt", "str"),
    (TEXT, {"prompt": ""}, "prompt", "empty"),
    (TEXT, {"prompt": []}, "prompt", "empty"),
    (TEXT, {"prompt": [[]]}, "prompt", "empty"),
    (TEXT, {"prompt": [""]}, "prompt", "empty"),
    (TEXT, {"prompt": ["a", 1]}, "prompt", "mixes"),
    (TEXT, {"prompt": [[1], "a", [2]]}, None, None),
    (TEXT, {"prompt": {"a": 1}}, "prompt", "array"),
    (TEXT, {"prompt": [1.5]}, "prompt[0]", "int"),
    (TEXT, {"prompt": [[1, "a"]]}, "prompt[0][1]", "int"),
    (TEXT, {"prompt": [512]}, "prompt", "511"),
    (TEXT, {"prompt": [-1]}, "prompt", "511"),
    (TEXT, {"prompt": [2**70]}, "prompt", "511"),
    (TEXT, {"prompt": [512], "echo": True}, "prompt", "511"),
    (TEXT, {"prompt": [5] * 256}, "prompt", "256"),
    (TEXT, {"logprobs": True}, "logprobs", "int"),
    (TEXT, {"logprobs": 21}, "logprobs", "20"),
    (TEXT, {"suffix": "end"}, "suffix", "not supported"),
    (TEXT, {"chat_template": "{{ 1 }}"}, "chat_template", "not supported"),
    (TEXT, {"best_of": 1, "n": 2}, "best_of", "between n (2) and 128"),
    (TEXT, {"best_of": 129}, "best_of", "128"),
    (TEXT, {"best_of": 2, "stream": True}, "best_of", "leave out stream"),
    (TEXT, {"prompt": ["a"] * 3000}, None, "1280"),
]


@pytest.mark.parametrize(("path", "fields", "param", "words"), WRONG_FIELDS)
async def test_wrong_fields(app: Any, path: str, fields: dict[str, Any], param: str | None, words: str | None) -> None:
    good: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "Hi"}
    status, answer = await app.post(path, good | fields)
    if words is None:
        assert status == 200
        return
    assert status == 400, answer
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]
    assert len(json.dumps(answer)) < 1000


NOT_JSON = [
    (b"", "byte 0"),
    (b"{", "byte 1"),
    (b"hello", "byte 0"),
    (b'{"prompt": "a",}', "byte 15"),
    (b'{"prompt": "a"} x', "trailing"),
    (b'{"prompt": NaN}', "byte"),
    (b'{"prompt": "\xff"}', "byte 12"),
    (b'{"prompt": "\\ud800"}', "byte"),
    (b'\xef\xbb\xbf{"prompt": "a"}', "byte 0"),
    (b'{"prompt": "a", "x": ' + b"[" * 9000, "the body is n"),  # nested too deeply, or not JSON: by Python's version
    (b'{"prompt": "a", "x": ' + b"[" * 100_000, "deeply"),
    (b'{"prompt": "a", "temperature": 1e999}', "range"),
    (b"[1]", "object"),
    (b"null", "object"),
    (b'{"prompt": "a", "seed": ' + b"1" * 6000 + b"}", "range"),
]


@pytest.mark.parametrize(("body", "words"), NOT_JSON)
async def test_bodies_that_are_not_json(app: Any, body: bytes, words: str) -> None:
    for path in (TEXT, CHAT):
        status, answer = await app.post(path, body)
        assert status == 400, answer
        assert words in answer["error"]["message"]


async def test_deep_json_inside_a_tool_call(app: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
    status, _ = await app.post(CHAT, {"messages": [*HELLO, {"role": "assistant", "tool_calls": [call]}]})
    assert status == 200  # a model may have written it


async def test_what_the_template_cannot_render(start_app: Any) -> None:
    app = await start_app()
    app.serving.chat_template = ChatTemplate(
        {"default": "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ 1 // zero }}"}, {}
    )
    _, answer = await app.post(CHAT, {"messages": HELLO * 2})
    assert "one only" in answer["error"]["message"]
    status, answer = await app.post(CHAT, {"messages": HELLO, "chat_template_kwargs": {"zero": 0}})
    assert status == 400 and "ZeroDivisionError" in answer["error"]["message"]
    app.serving.chat_template = ChatTemplate({}, {})
    _, answer = await app.post(CHAT, {"messages": HELLO})
    assert "--chat-template" in answer["error"]["message"]


JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63) - 1, 10**25, 0.5, -0.0, 1e-320, 1e300, "", "a", "\x00"),
    *("\U0010ffff", "<|im_end|>", "{{ 1 }}", [], [""], ["a", "b"], [1], [-1], [2**40], [[1], [2]], [[]], [None]),
    *({}, {"a": 1}, {"1": 1}, {"1": -100}, {"type": "text"}, {"include_usage": True}, {"function": {"arguments": "{"}}),
    *([{"role": "user", "content": "Hi"}], [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]),
    *([{"role": "", "content": ""}], [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]),
]


ENDPOINTS: list[tuple[str, Any, dict[str, Any]]] = [
    (CHAT, ChatRequest, {"messages": HELLO}),
    (TEXT, CompletionRequest, {"prompt": "Hi"}),
    ("/v1/embeddings", EmbeddingRequest, {"input": "Hi"}),
    ("/v1/messages", MessagesRequest, {"messages": HELLO, "max_tokens": 5}),
    ("/v1/messages/count_tokens", CountRequest, {"messages": HELLO}),
    ("/v1/responses", ResponsesRequest, {"input": "Hi"}),
    ("/v1/responses/input_tokens", InputTokensRequest, {"input": "Hi"}),
    ("/tokenize", TokenizeRequest, {"prompt": "Hi"}),
    ("/detokenize", DetokenizeRequest, {"tokens": [70]}),
    ("/apply-template", ConversationRequest, {"messages": HELLO}),
]


@pytest.mark.parametrize("seed", range(4))
async def test_no_junk_is_a_5xx(start_app: Any, seed: int) -> None:
    app = await start_app(trust_request_chat_template=seed == 0)
    rng = random.Random(seed)
    statuses = set()
    for _ in range(400):
        path, kind, good = rng.choice([*ENDPOINTS[:2] * 3, *ENDPOINTS[2:]])
        body = dict(good)
        for name in rng.sample(kind.__struct_fields__, min(rng.randint(1, 4), len(kind.__struct_fields__))):
            body[name] = rng.choice(JUNK)
        async with app.http.post(path, json=body) as response:
            answer = await response.text()
        statuses.add(response.status)
        assert response.status in (200, 400, 404, 408), (body, answer)
        if response.status == 200 and body.get("stream") and path in (CHAT, TEXT):
            assert answer.endswith("data: [DONE]\n\n"), (body, answer)
    assert {200, 400} <= statuses


async def test_content_type_does_not_matter(app: Any) -> None:
    body = json.dumps({"prompt": "Hi", "max_tokens": 1}).encode()
    for kind in ("text/plain", "application/json; charset=latin-1", ""):
        async with app.http.post(TEXT, data=body, headers={"Content-Type": kind}) as response:
            assert response.status == 200


async def test_compressed_bodies(app: Any) -> None:
    body = gzip.compress(json.dumps({"prompt": "Hi", "max_tokens": 1}).encode())
    async with app.http.post(TEXT, data=body, headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 400
        assert "Content-Encoding" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_bytes_that_are_not_http(app: Any, request_bytes: bytes, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(request_bytes)
    assert b" 400 " in await reader.readline()
    writer.close()
    assert "Traceback" not in caplog.text


async def test_large_bodies(app: Any) -> None:
    status, answer = await app.post(TEXT, b" " * (32 * 1024**2 + 1))
    assert status == 413 and "32 MiB" in answer["error"]["message"]
    assert (await app.post(TEXT, {"prompt": "Hi", "max_tokens": 1, "user": "x" * 1024**2}))[0] == 200


async def test_unknown_fields_are_ignored_and_named(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    body = {"prompt": "Hi", "max_tokens": 1, "user": "me", "temprature": 1, "bad\r\nX-Evil: 1": 2, "suffix": None}
    async with app.http.post(TEXT, json=body) as response:
        assert response.status == 200
        warning = response.headers["X-Sophserve-Warnings"]
        assert "temprature" in warning and "user" not in warning
        assert "X-Evil" not in response.headers
    assert "ignored 2 unknown fields" in caplog.text and "temprature" not in caplog.text
    body |= {f"field{number}": 1 for number in range(5000)}
    async with app.http.post(TEXT, json=body | {"stream": True}) as response:
        assert response.status == 200
        assert 0 < len(response.headers["X-Sophserve-Warnings"]) < 2000


async def test_unknown_fields_can_be_refused(start_app: Any) -> None:
    app = await start_app(reject_unknown_fields=True)
    body = {"prompt": "Hi", "max_tokens": 1, "user": "me", "suffix": None}
    assert (await app.post(TEXT, body))[0] == 200
    status, answer = await app.post(TEXT, body | {"temprature": 1, "x" * 5000: 2})
    assert status == 400 and answer["error"]["param"] == "temprature"
    assert "'temprature', 'xxx" in answer["error"]["message"] and len(str(answer)) < 800


async def test_models(app: Any) -> None:
    models = [model.id async for model in app.openai.models.list()]
    assert models == ["tiny", "org/tiny"]
    for name in models:
        model = await app.openai.models.retrieve(name)
        assert (model.id, model.object, model.max_model_len) == (name, "model", 256)
        answer = await app.openai.completions.create(model=name, prompt="Hi", max_tokens=1)
        assert answer.model == name
    with pytest.raises(NotFoundError) as caught:
        await app.openai.models.retrieve("other")
    assert caught.value.code == "model_not_found"
    with pytest.raises(NotFoundError, match="'other' does not exist; this server has tiny, org/tiny"):
        await app.openai.chat.completions.create(model="other", messages=HELLO)
    assert (await app.post(TEXT, {"prompt": "Hi", "max_tokens": 1}))[1]["model"] == "tiny"


async def test_routes_and_methods(app: Any) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("POST", "/", 405),
        ("GET", "/v1/%0Aforged", 404),
        ("GET", TEXT, 405),
        ("PUT", CHAT, 405),
        ("POST", "/health", 405),
        ("OPTIONS", TEXT, 405),
    ):
        async with app.http.request(method, path) as response:
            assert response.status == status
            error = (await response.json())["error"]
            assert error["type"] == "invalid_request_error"
            if status == 405:
                assert response.headers["Allow"] in error["message"]
    async with app.http.head("/health") as response:
        assert response.status == 200
    async with app.http.head("/nowhere") as response:
        assert response.status == 404
    async with app.http.get("/version") as response:
        assert (await response.json())["version"][0].isdigit()


async def test_a_failure_before_the_first_token_has_its_own_status(app: Any) -> None:
    app.engine.failure = EngineDeadError("the worker is gone")
    for stream in (False, True):
        status, answer = await app.post(TEXT, {"prompt": "Hi", "stream": stream})
        assert status == 500
        assert answer["error"] == {
            "message": "the worker is gone",
            "type": "server_error",
            "param": None,
            "code": "generation_failed",
        }
    app.engine.gate.clear()
    task = asyncio.create_task(app.post(TEXT, {"prompt": "Hi", "stream": True}))
    await app.until_running(1)
    app.engine.died.set()
    app.engine.gate.set()
    status, answer = await task
    assert status == 503 and answer["error"]["code"] == "engine_dead"
    app.engine.died.clear()
    with pytest.raises(BadRequestError):
        await app.openai.completions.create(model="tiny", prompt="fox " * 1000, stream=True)


async def test_a_failure_after_the_first_token_is_an_event(app: Any) -> None:
    stream = await app.openai.completions.create(model="tiny", prompt=[70] * 50, n=2, stream=True, max_tokens=90)
    with pytest.raises(APIError, match="the worker is gone"):
        async for _ in stream:
            app.engine.failure = EngineDeadError("the worker is gone")
    await app.until_running(0)


async def test_a_mistake_of_ours_is_logged_and_not_shown(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    app.engine.failure = ZeroDivisionError("internal detail")
    status, answer = await app.post(TEXT, {"prompt": "Hi"})
    assert status == 500 and answer["error"]["code"] == "internal_error"
    assert "internal detail" not in json.dumps(answer) and "ZeroDivisionError" in caplog.text


async def test_log_line(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    answer = await app.openai.completions.create(model="tiny", prompt="secret words", max_tokens=3)
    [line] = [record.getMessage() for record in caplog.records if record.name == "sophserve.api.http.error_middleware"]
    assert line.startswith("POST /v1/completions 200 ") and answer.id in line
    assert f"prompt={answer.usage.prompt_tokens} cached=0 output=3" in line and "finish=length" in line
    assert "secret" not in caplog.text


@pytest.mark.parametrize(("mine", "status", "code"), [(True, 429, "rate_limit_exceeded"), (False, 503, "busy")])
async def test_a_grammar_that_cannot_be_tried_now(
    app: Any, monkeypatch: pytest.MonkeyPatch, mine: bool, status: int, code: str
) -> None:
    asked = []

    async def busy(_: Any, owner: str) -> None:
        asked.append(owner)
        raise ServerBusy("try again later", mine)

    monkeypatch.setattr(app.engine, "compile", busy)
    body = {"messages": HELLO, "response_format": {"type": "json_object"}}
    async with app.http.post(CHAT, json=body) as response:
        assert response.status == status and response.headers["Retry-After"] == "1"
        assert (await response.json())["error"]["code"] == code
    assert asked == ["127.0.0.1"]
