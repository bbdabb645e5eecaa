"""Everything that OpenAI's routes answer fits OpenAI's own schema, and what the schema allows is taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sophserve.errors import EngineDeadError
from sophserve.text.chat_template import ChatTemplate
from tests.api.images import PLACEHOLDER, let_see
from tests.api.openai_schema import Judge

CHAT, TEXT, RESPONSES, EMBEDDINGS = (
    f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "embeddings")
)
COUNT = f"{RESPONSES}/input_tokens"
# Of each route the schemas of requests, of whole answers and of what a stream consists of.
SCHEMAS = {
    CHAT: ("CreateChatCompletionRequest", "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"),
    TEXT: ("CreateCompletionRequest", "CreateCompletionResponse", "CreateCompletionResponse"),
    RESPONSES: ("CreateResponse", "Response", "ResponseStreamEvent"),
    EMBEDDINGS: ("CreateEmbeddingRequest", "CreateEmbeddingResponse", ""),
    COUNT: ("TokenCountsBody", "TokenCountsResource", ""),
}
ERROR = "ErrorResponse"
# Where an answer differs on purpose, because OpenAI's own do, too: by schema and path, the reason.
LEFT_OUT = {
    ("CreateCompletionResponse", "choices.*.finish_reason"): "null in all chunks but the last; one schema has both",
    ("CreateCompletionResponse", "usage"): "null before the last chunk, as the text of include_usage says",
    ("CreateCompletionResponse", "choices.*.logprobs.token_logprobs.*"): "null for the first token of an echo",
    ("CreateCompletionResponse", "choices.*.logprobs.top_logprobs.*"): "null for the first token of an echo",
    ("CreateEmbeddingResponse", "data.*.embedding"): "a text where encoding_format asks for base64",
    ("Response", "usage"): "null while the response is in progress, as in the schema's examples",
    ("ResponseStreamEvent", "response.usage"): "null while the response is in progress, as in the schema's examples",
}
TEMPLATE = """\
{%- for message in messages %}
{{- message.role + ':' + (message.reasoning_content or '') + message.content }}
{%- for call in message.tool_calls %}{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>' + ('<think>' if enable_thinking else '') }}{%- endif %}"""
THOUGHT = "<think>\nHm.\nOK.\n</think>\n\n"
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": [1, "é"]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
)
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FUNCTIONS: list[Any] = [{"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}, {"name": "g"}]
CHAT_TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
ONE_CHAT_TOOL = {"type": "function", "function": {"name": "f"}}
TOOLS = [{"type": "function", "strict": False, "parameters": None, **function} for function in FUNCTIONS]
ONE_TOOL = {"type": "function", "name": "f"}
SHORT_TOOLS = [{"type": "function", **FUNCTIONS[0]}, {"type": "web_search"}]
FORM = {"type": "json_schema", "name": "A", "schema": OBJECT}
CALL = {"id": "c", "type": "function", "function": {"name": "g", "arguments": "{}"}}
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": "Yes?", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "1"},
]
ITEMS = [
    {"role": "developer", "content": "Think."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {"type": "function_call", "call_id": "c", "name": "g", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "1"},
]
# What the model says (None: the prompt again and again), and what a request adds to the least that its route needs.
SAID: list[tuple[str, str | None, dict[str, Any]]] = [
    (CHAT, None, {}),
    (CHAT, "", {}),
    (CHAT, None, {"max_tokens": 2, "n": 2, "logprobs": True}),
    (CHAT, "One. STOP", {"n": 3, "logprobs": True, "top_logprobs": 2, "stop": "STOP"}),
    (CHAT, CALLS, {"tools": CHAT_TOOLS, "logprobs": True, "stream_options": {"include_usage": True}}),
    (CHAT, CALLS, {"tools": CHAT_TOOLS, "parallel_tool_calls": False, "n": 2}),
    (CHAT, CALLS, {"tools": CHAT_TOOLS, "tool_choice": "required"}),
    (CHAT, CALLS, {"tools": CHAT_TOOLS, "tool_choice": ONE_CHAT_TOOL, "messages": TURNS}),
    (CHAT, THOUGHT + CALLS, {"tools": CHAT_TOOLS, "logprobs": True, "top_logprobs": 0}),
    (CHAT, THOUGHT + "Yes.", {"logprobs": True, "top_logprobs": 20, "stream_options": {"include_usage": True}}),
    (CHAT, THOUGHT, {"metadata": {"a": "b"}, "service_tier": "auto", "store": True}),
    (CHAT, '{"a": 1}', {"response_format": {"type": "json_schema", "json_schema": {"name": "A", "schema": OBJECT}}}),
    (TEXT, None, {}),
    (TEXT, "", {"logprobs": 1}),
    (TEXT, None, {"prompt": ["Hi", "Ho"], "n": 2, "max_tokens": 3, "stream_options": {"include_usage": True}}),
    (TEXT, "One. STOP", {"prompt": [[70, 71], [72]], "logprobs": 5, "stop": ["STOP"]}),
    (TEXT, None, {"prompt": [70, 71], "echo": True, "logprobs": 2}),
    (TEXT, None, {"n": 2, "best_of": 3}),
    (RESPONSES, None, {}),
    (RESPONSES, "", {}),
    (RESPONSES, None, {"instructions": "Be brief.", "max_output_tokens": 16, "metadata": {"a": "b"}, "store": False}),
    (RESPONSES, "One.", {"include": ["message.output_text.logprobs"], "temperature": 0.5, "top_p": 0.25}),
    (RESPONSES, THOUGHT + "Yes.", {"top_logprobs": 3, "reasoning": {"effort": "low"}, "truncation": "auto"}),
    (RESPONSES, THOUGHT, {"reasoning": {"effort": "high", "summary": "auto"}}),
    (RESPONSES, THOUGHT + CALLS, {"tools": TOOLS, "top_logprobs": 0, "input": ITEMS}),
    (RESPONSES, CALLS, {"tools": SHORT_TOOLS, "tool_choice": ONE_TOOL}),
    (RESPONSES, CALLS, {"tools": TOOLS, "parallel_tool_calls": False, "tool_choice": "required"}),
    (
        RESPONSES,
        CALLS,
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [ONE_TOOL]}},
    ),
    (RESPONSES, '{"a": 1}', {"text": {"format": FORM}}),
    (RESPONSES, '{"a": 1}', {"text": {"format": {"type": "json_object"}}}),
    (RESPONSES, "Yes.", {"text": {"verbosity": "low"}}),
    (RESPONSES, "Yes.", {"text": {"format": {"type": "text"}}}),
    (EMBEDDINGS, None, {}),
    (EMBEDDINGS, None, {"input": ["Hi", "Ho"], "dimensions": 2, "user": "me"}),
    (EMBEDDINGS, None, {"input": [[70, 71], [72]], "encoding_format": "float"}),
    (EMBEDDINGS, None, {"input": [70, 71], "encoding_format": "base64"}),
    (COUNT, None, {"instructions": "Be brief.", "tools": TOOLS, "text": {"format": FORM}, "reasoning": None}),
    (COUNT, None, {"input": ITEMS, "truncation": "auto", "personality": "friendly"}),
]
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": [{"role": "user", "content": "The quick brown fox"}]},
    TEXT: {"model": "tiny", "prompt": "The quick 🙂 fox"},
    RESPONSES: {"model": "tiny", "input": "The quick brown fox"},
    EMBEDDINGS: {"model": "tiny", "input": "Hi"},
    COUNT: {"model": "tiny", "input": "Hi"},
}


@pytest.fixture
async def app(start_app: Any) -> Any:
    app = await start_app()
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    return app


async def events(app: Any, path: str, body: dict[str, Any]) -> list[Any]:
    """The data of a stream."""
    async with app.http.post(path, json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        lines = (await response.text()).split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    values = [json.loads(each) for each in data if each != "[DONE]"]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == ([value["type"] for value in values] if path == RESPONSES else [])
    return values


def found(judge: Judge, schema: str, value: Any) -> set[tuple[str, str]]:
    """Where a value does not fit the schema although it should; returns where it need not."""
    problems = {(schema, path): problem for path, problem in judge.problems(schema, value).items()}
    wrong = {key: problem for key, problem in problems.items() if key not in LEFT_OUT}
    assert not wrong, value
    return set(problems)


async def asked(app: Any, judge: Judge, path: str, text: str | None, fields: dict[str, Any]) -> set[tuple[str, str]]:
    """Ask both ways; returns where the answers differ on purpose."""
    app.engine.text = text
    body = LEAST[path] | fields
    request, answer, event = SCHEMAS[path]
    whole = {name: value for name, value in body.items() if name != "stream_options"}
    for sent in (whole, body | {"stream": True} if event else whole):
        assert judge.problems(request, sent).keys() <= {"tools.*.strict", "tools.*.parameters"}  # most leave them out
    status, given = await app.post(path, whole)
    assert status == 200, given
    differences = found(judge, answer, given)
    if event and "best_of" not in fields:
        streamed = await events(app, path, body)
        assert len(streamed) > 1
        differences = differences.union(*(found(judge, event, each) for each in streamed))
    if path == RESPONSES and body.get("store", True):
        async with app.http.get(f"{path}/{given['id']}") as response:
            assert await response.json() == given
    return differences


@pytest.mark.parametrize(("path", "text", "fields"), SAID)
async def test_answers(app: Any, openai_schema: Judge, path: str, text: str | None, fields: dict[str, Any]) -> None:
    await asked(app, openai_schema, path, text, fields)


async def test_what_is_left_out_is_there(app: Any, openai_schema: Judge) -> None:
    """Else it is no difference any more, and its name in the list hides faults."""
    differences: set[tuple[str, str]] = set()
    for path, fields in (
        (TEXT, {"echo": True, "logprobs": 1, "stream_options": {"include_usage": True}}),
        (RESPONSES, {}),
        (EMBEDDINGS, {"encoding_format": "base64"}),
    ):
        differences |= await asked(app, openai_schema, path, None, fields)
    _, begun = await app.post(RESPONSES, LEAST[RESPONSES] | {"background": True})
    assert differences | found(openai_schema, "Response", begun) == LEFT_OUT.keys()
    await app.until_running(0)


@pytest.mark.parametrize("path", SCHEMAS)
async def test_openai_s_own_examples(app: Any, openai_schema: Judge, path: str) -> None:
    """All but those with files, which no model reads here."""
    let_see(app)
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {}, PLACEHOLDER)
    app.engine.text, examples = "Yes.", list(openai_schema.examples(path.removeprefix("/v1")))
    for body in examples:
        body |= {"model": "tiny"} | ({"max_tokens": 64} if "max_tokens" in body else {})
        if "file_url" in str(body):
            status, answer = await app.post(path, body)
            assert status == 400 and "parts of type 'input_file' are not supported" in answer["error"]["message"]
        elif body.pop("stream", False):
            for event in await events(app, path, body):
                found(openai_schema, SCHEMAS[path][2], event)
        else:
            status, answer = await app.post(path, body)
            assert status == 200, answer
            found(openai_schema, SCHEMAS[path][1], answer)
    assert examples


async def test_a_conversation_that_goes_on(app: Any, openai_schema: Judge) -> None:
    first = (await app.post(RESPONSES, LEAST[RESPONSES]))[1]["id"]
    await asked(app, openai_schema, RESPONSES, "Yes.", {"previous_response_id": first})


async def test_models(app: Any, openai_schema: Judge) -> None:
    for path, schema in (
        ("/v1/models", "ListModelsResponse"),
        ("/v1/models/tiny", "Model"),
        ("/v1/models/org/tiny", "Model"),
    ):
        async with app.http.get(path) as response:
            assert response.status == 200 and not found(openai_schema, schema, await response.json())


@pytest.mark.parametrize("path", SCHEMAS)
async def test_errors(app: Any, openai_schema: Judge, path: str) -> None:
    for method, where, body, expected in (
        ("POST", path, {}, 400),
        ("POST", path, "[", 400),
        ("POST", path, {**LEAST[path], "model": "nobody"}, 404),
        ("POST", path, {**LEAST[path], "model": 5}, 400),
        ("POST", f"{path}/x", LEAST[path], 404),
        ("PATCH", path, LEAST[path], 405),
        ("GET", "/v1/models/nobody", {}, 404),
        ("GET", f"{RESPONSES}/resp_none", {}, 404),
        ("DELETE", f"{RESPONSES}/resp_none", {}, 404),
    ):
        data = body if isinstance(body, str) else json.dumps(body)
        async with app.http.request(method, where, data=data) as response:
            assert response.status == expected, (method, where, await response.text())
            assert not found(openai_schema, ERROR, await response.json())


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
async def test_an_error_within_a_stream(
    app: Any, openai_schema: Judge, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of a response are numbered, its error as well."""
    add = app.engine._add_token

    def fail(sequence: Any, *said: Any) -> None:
        add(sequence, *said)
        if len(sequence.request.output) == 3:
            app.engine.failure = EngineDeadError("the worker is gone")

    monkeypatch.setattr(app.engine, "_add_token", fail)
    *before, error = await events(app, path, LEAST[path])
    assert before and not found(openai_schema, ERROR, error)
    if path == RESPONSES:
        assert not found(openai_schema, "ResponseStreamEvent", error)
        assert [event["sequence_number"] for event in [*before, error]] == list(range(len(before) + 1))


# Fields that mean something only beside others.
BESIDE: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": CHAT_TOOLS},
    "best_of": {"max_tokens": 2},
    "n": {"max_tokens": 2},
}
# Values that the schema allows and that are refused, with the reason.
REFUSED = {
    (CHAT, "function_call", "none"): "takes functions, which tools have replaced",
    (CHAT, "function_call", "auto"): "takes functions, which tools have replaced",
    (CHAT, "seed", -9223372036854776000): "rounded in the schema: seeds have 64 bits",
    (CHAT, "seed", 9223372036854776000): "rounded in the schema: seeds have 64 bits",
    (TEXT, "prompt", None): "a text to begin with that is the same for all models there is not",
    (TEXT, "prompt", ""): "as long as the tokenizer puts nothing before it",
    (COUNT, "input", None): "nothing to count, as long as no conversation comes before it",
    (EMBEDDINGS, "input", ""): "the schema's own text says that it cannot be empty",
}


@pytest.mark.parametrize("path", SCHEMAS)
async def test_what_the_schema_allows_is_taken(app: Any, openai_schema: Judge, path: str) -> None:
    """Each field at each of its ends: vLLM's `echo` with `max_tokens` 0 and a `top_p` of 0 were such."""
    schema, refused = SCHEMAS[path][0], set()
    app.engine.text = "Yes."
    for field, described in openai_schema.fields(schema).items():
        if field == "model":
            continue
        beside = {"tools": TOOLS} if (path != CHAT and field == "tool_choice") else BESIDE.get(field, {})
        for value in openai_schema.bounds(described):
            body = LEAST[path] | ({} if path == RESPONSES and field == "top_logprobs" else beside) | {field: value}
            if openai_schema.problems(schema, body):  # one part of the schema allows it and another one does not
                continue
            async with app.http.post(path, json=body) as response:
                answer = await response.text()
            if response.status != 200:
                assert json.loads(answer)["error"]["param"] in (field, "messages"), answer
                refused.add((path, field, value))
    assert refused == {key for key in REFUSED if key[0] == path}
