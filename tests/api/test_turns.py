"""Whatever OpenAI's and Anthropic's APIs allow in a conversation is in the prompt, or named, or refused: over every
endpoint alike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sophserve.api.anthropic.turns import Block
from sophserve.api.generation.request_bodies import ContentPart, Message
from sophserve.api.http import nested_fields
from sophserve.api.openai import response_items
from sophserve.text.chat_template import ChatTemplate

# One system at the beginning, then user and assistant in turn.
STRICT = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content ~ '|' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{%- set turns = rest | rejectattr('role', 'equalto', 'tool') | rejectattr('tool_calls') %}
{%- for m in turns %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- endfor %}
{%- for m in rest %}
    {{- '<' ~ m.role ~ '>' ~ (system if loop.first else '') ~ m.content }}
    {%- for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
# Takes any order, and shows calls.
FREE = """\
{%- for m in messages %}
    {{- '<' ~ m.role ~ '>' ~ m.content }}
    {%- for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


def shared(name: str) -> Path:
    path = Path(os.environ.get("SHARED_DATA", "../shared/data")) / name
    if not path.exists():
        pytest.skip("the files of real checkpoints (../shared/data) are not here")
    return path


def real_template(name: str) -> ChatTemplate:
    config = json.loads((shared(name) / "tokenizer_config.json").read_text())
    return ChatTemplate({"default": config["chat_template"]}, {})


def make_roomy(app: Any) -> None:
    app.engine.context = 4096
    app.engine._info = replace(app.engine.info, max_model_len=app.engine.context)


async def asked(app: Any, path: str, body: dict[str, Any]) -> tuple[str, str]:
    """The prompt, and what the header says, of a request that is answered."""
    async with app.http.post(path, json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        warning = response.headers.get("X-Sophserve-Warnings", "")
    if path == "/apply-template":
        return answer["prompt"], warning
    if path == "/tokenize":
        return app.tokenizer.decode(answer["tokens"], skip_special_tokens=False), warning
    return app.prompt, warning


async def chatted(app: Any, messages: list[Any]) -> str:
    """The prompt of a chat, which is that of /apply-template and /tokenize as well."""
    chat, _ = await asked(app, "/v1/chat/completions", {"messages": messages, "max_tokens": 1})
    for path in ("/apply-template", "/tokenize"):
        assert (await asked(app, path, {"messages": messages}))[0] == chat
    return chat


async def responded(app: Any, items: list[Any], **more: Any) -> tuple[str, str]:
    return await asked(app, "/v1/responses", {"input": items, "max_output_tokens": 1, **more})


async def said_to_anthropic(app: Any, turns: list[Any], **more: Any) -> tuple[str, str]:
    body = {"messages": turns, **more}
    prompt, warning = await asked(app, "/v1/messages", {**body, "max_tokens": 1})
    async with app.http.post("/v1/messages/count_tokens", json=body) as response:
        assert (await response.json())["input_tokens"] == len(app.engine.prompts[-1])
    return prompt, warning


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


# --- roles and fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2.5", "qwq-32b"])
async def test_developers_are_heard(app: Any, name: str) -> None:
    """OpenAI: developer replaces system; llama.cpp PR#20215, SGLang#40082."""
    make_roomy(app)
    app.serving.chat_template = real_template(name)
    items = [{"role": "developer", "content": "Say BANANA."}, user("hi")]
    prompt = await chatted(app, items)
    assert "<|im_start|>system\nSay BANANA.<|im_end|>" in prompt and "Alibaba" not in prompt
    assert (await responded(app, items))[0] == prompt


async def test_older_fields(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": FREE}, {})
    messages = [
        user("q"),
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "42"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "refusal": "Never."},
        {"role": "function", "name": "f", "content": None},
    ]
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    expected = f"<user>q<assistant>{call}<tool>42<assistant>No.<assistant>Never.<tool><assistant>"
    assert await chatted(app, messages) == expected


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("read", ["reasoning", "reasoning_content", "thinking"])
async def test_thoughts_have_three_names(app: Any, name: str, read: str) -> None:
    """The last one is Ollama's."""
    source = "{% for m in messages %}{{ m." + read + " or '' }}|{{ m.content }};{% endfor %}"
    app.serving.chat_template = ChatTemplate({"default": source}, {})
    assert await chatted(app, [{"role": "assistant", "content": "Yes", name: "Hm"}, user("q")]) == "Hm|Yes;|q;"


async def test_recordings_are_refused(app: Any) -> None:
    body = {"messages": [user("q"), {"role": "assistant", "audio": {"id": "audio_1"}}]}
    status, answer = await app.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "messages[1].audio")


async def test_what_the_template_leaves_out_is_named(app: Any) -> None:
    named = {"role": "user", "content": "q", "name": "Ann"}
    function = {"name": "f", "arguments": "{}"}
    called = {
        "role": "assistant",
        "content": "c",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    for path in ("/v1/chat/completions", "/apply-template"):
        _, warning = await asked(app, path, {"messages": [named, called, user("q")]})
        assert warning == "left out by the chat template: 'messages.name', 'messages.tool_calls'"
        assert (await asked(app, path, {"messages": [user("q")]}))[1] == ""


async def test_unknown_fields_inside_of_others(app: Any, start_app: Any) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {}, "colour": 1}], "mood": "good"},
        {"role": "assistant", "content": "a", "annotations": [], "audio": None, "unknown": None},
    ]
    options = {"include_usage": True, "chatty": True, "include_obfuscation": False}
    body = {"messages": messages, "max_tokens": 1, "odd": 1, "stream": True, "stream_options": options}
    async with app.http.post("/v1/chat/completions", json=body) as response:
        names = ["odd", "stream_options.chatty", "messages[0].content[0].colour", "messages[0].mood"]
        assert response.headers["X-Sophserve-Warnings"] == f"ignored unknown fields: {', '.join(map(repr, names))}"
    many = [{"role": "user", "content": "q", "mood": "good"}] * 2000
    async with app.http.post("/apply-template", json={"messages": many}) as response:
        assert response.headers["X-Sophserve-Warnings"].count("mood") == 20
    _, warning = await responded(app, [{"role": "user", "content": [{"type": "input_text", "text": "q", "bold": 1}]}])
    assert warning == "ignored unknown fields: 'input[0].content[0].bold'"
    thinking = {"type": "enabled", "budget_tokens": 1024}
    turns = [{"role": "user", "content": [{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]}]
    _, warning = await said_to_anthropic(app, turns, thinking=thinking)
    assert warning == "without effect: 'thinking.budget_tokens'"
    app = await start_app(reject_unknown_fields=True)
    status, answer = await app.post("/v1/chat/completions", {"messages": [user("q") | {"mood": 1}]})
    assert (status, answer["error"]["param"]) == (400, "messages[0].mood")


def test_the_fields_of_messages_are_those_of_the_schema() -> None:
    """Each field of OpenAI's messages, parts and items is read, or known to be without effect, or its type is told."""
    schemas = json.loads((shared("openai-openapi") / "openapi.json").read_text())["components"]["schemas"]

    def resolved(schema: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in schema:
            return resolved(schemas[schema["$ref"].rpartition("/")[2]])
        options = [each for part in ("oneOf", "anyOf", "allOf") for each in schema.get(part, [])]
        return [inner for option in options for inner in resolved(option)] or [schema]

    def fields(name: str) -> dict[str, set[str]]:
        """By the type of an object, or its role, its fields."""
        found: dict[str, set[str]] = {}
        for schema in resolved({"$ref": f"#/components/schemas/{name}"}):
            properties = schema.get("properties", {})
            kind = (properties.get("type") or properties.get("role") or {}).get("enum", ["?"])[0]
            found.setdefault(kind, set()).update(properties)
        return found

    quiet = nested_fields.WITHOUT_EFFECT | nested_fields.NOTED
    for names in fields("ChatCompletionRequestMessage").values():
        assert names <= set(Message.__struct_fields__) | quiet
    for part in ("ChatCompletionRequestMessageContentPartText", "ChatCompletionRequestMessageContentPartRefusal"):
        assert fields(part).popitem()[1] <= set(ContentPart.__struct_fields__) | quiet
    known = set(response_items._CALLS) | response_items._RESULTS | {"message", "reasoning"}
    told = response_items._SAY_NOTHING | set(response_items._INSTEAD) | {"computer_call", "computer_call_output"}
    items = fields("InputItem")
    assert items.keys() - {"?"} <= known | told
    for kind, names in items.items():
        if kind in known:
            assert names <= set(response_items.Item.__struct_fields__) | quiet, kind


# --- orders -----------------------------------------------------------------------------------------------------------


async def test_orders_that_strict_templates_refuse(app: Any) -> None:
    """vLLM#44000, vLLM#6862, llama.cpp#27367."""
    app.serving.chat_template = ChatTemplate({"default": STRICT}, {})
    again = [user("hi"), user("again")]
    expected = "<user>hi\n\nagain<assistant>"
    assert await chatted(app, again) == expected
    assert (await responded(app, again))[0] == (await said_to_anthropic(app, again))[0] == expected
    systems = [{"role": "system", "content": "s"}, {"role": "system", "content": "t"}, user("c")]
    assert await chatted(app, systems) == "<user>s\n\nt|c<assistant>"
    assert (await said_to_anthropic(app, [systems[1], user("c")], system="s"))[0] == "<user>s\n\nt|c<assistant>"
    late = [user("a"), {"role": "assistant", "content": "b"}, systems[0], user("c")]
    expected = "<user>a<assistant>b<user>s\n\nc<assistant>"
    assert await chatted(app, late) == (await responded(app, late))[0] == expected
    assert (await said_to_anthropic(app, late))[0] == expected


async def test_what_claude_code_sends(app: Any) -> None:
    """Results of tools with text beside them, and system in the middle."""
    app.serving.chat_template = ChatTemplate({"default": STRICT}, {})
    call = {"type": "tool_use", "id": "toolu_123", "name": "ls", "input": {"path": "."}}
    result = {"type": "tool_result", "tool_use_id": "toolu_123", "content": [{"type": "text", "text": "a.txt"}]}
    turns = [
        user([{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "List."}]),
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": [call]},
        user([result, {"type": "text", "text": "And then?"}]),
        {"role": "system", "content": "Now."},
    ]
    prompt, _ = await said_to_anthropic(app, turns, system=[{"type": "text", "text": "You are Claude."}])
    assert prompt == (
        "<user>You are Claude.|<reminder>\nList.\n\nBe brief.<assistant>"
        '<tool_call>{"name": "ls", "arguments": {"path": "."}}</tool_call><tool>a.txt<assistant><user>And then?\n\nNow.'
        "<assistant>"
    )


async def test_an_answer_is_continued_only_where_it_is_the_last_word(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": FREE}, {})
    thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}]}
    assert (await said_to_anthropic(app, [user("a"), thought]))[0] == "<user>a<assistant>"
    redacted = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}
    status, answer = await app.post("/v1/messages", {"messages": [redacted], "max_tokens": 1})
    assert status == 400 and "messages is empty" in answer["error"]["message"]


# --- content ----------------------------------------------------------------------------------------------------------


async def test_parts_of_results(app: Any) -> None:
    """vLLM PR#39899."""
    source = """\
{%- for m in messages %}
    {%- if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>
    {%- elif m.content is string %}{{ m.content }}
    {%- else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}
{%- endfor %}"""
    app.serving.chat_template = ChatTemplate({"default": source}, {})
    texts = ["CCC", "DDD"]
    parts = [{"type": "text", "text": text} for text in texts]
    function = {"name": "f", "arguments": "{}"}
    called = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    assert await chatted(app, [user("q"), called, {"role": "tool", "tool_call_id": "c", "content": parts}]) == (
        "q<tool_response>CCCDDD</tool_response>"
    )
    output = [{"type": "input_text", "text": text} for text in texts]
    items = [
        user("q"),
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": output},
    ]
    assert (await responded(app, items))[0] == "q<tool_response>CCCDDD</tool_response>"
    turns = [
        user("q"),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
        user([{"type": "tool_result", "tool_use_id": "c", "content": parts}]),
    ]
    assert (await said_to_anthropic(app, turns))[0] == "q<tool_response>CCCDDD</tool_response>"


async def test_texts_as_parts(app: Any) -> None:
    """vLLM#9294."""
    source = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    app.serving.chat_template = ChatTemplate({"default": source}, {})
    question = "What is the capital of France?"
    assert await chatted(app, [user(question)]) == question
    assert (await responded(app, [user(question)]))[0] == question
    assert (await said_to_anthropic(app, [user(question)]))[0] == question


# --- other vendors' histories -----------------------------------------------------------------------------------------


async def test_documents(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": FREE}, {})
    source = {"type": "text", "media_type": "text/plain", "data": "The key is 42."}
    blocks = [{"type": "document", "source": source}, {"type": "text", "text": "What is the key?"}]
    assert (await said_to_anthropic(app, [user(blocks)]))[0] == "<user>The key is 42.\nWhat is the key?<assistant>"
    inner = {"type": "content", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]}
    found = {"type": "search_result", "source": "x.org", "title": "X", "content": [{"type": "text", "text": "Found."}]}
    blocks = [{"type": "document", "source": inner, "title": "T", "context": "C"}, found]
    result = {"type": "tool_result", "tool_use_id": "c", "content": [found]}
    prompt, _ = await said_to_anthropic(app, [user(blocks), user([result])])
    assert prompt == "<user>T\nC\nOne.\nTwo.\nX\nx.org\nFound.<tool>X\nx.org\nFound.<assistant>"
    for source in ({"type": "base64", "media_type": "application/pdf", "data": "eA=="}, {"type": "url", "url": "x"}):
        body = {"messages": [user([{"type": "document", "source": source}])], "max_tokens": 1}
        status, answer = await app.post("/v1/messages", body)
        assert status == 400 and "messages[0].content[0]: documents are read from" in answer["error"]["message"]


async def test_what_anthropics_own_tools_did(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": FREE}, {})
    page = {"type": "web_search_result", "title": "T", "url": "u", "encrypted_content": "zzz"}
    blocks = [
        {"type": "text", "text": "Let me look."},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [page]},
        {"type": "mcp_tool_use", "id": "m", "name": "echo", "server_name": "x", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "m", "content": [{"type": "text", "text": "hi"}]},
        {"type": "container_upload", "file_id": "f"},
        {"type": "text", "text": "Found."},
    ]
    prompt, warning = await said_to_anthropic(app, [user("a"), {"role": "assistant", "content": blocks}, user("b")])
    assert prompt == (
        '<user>a<assistant>Let me look.<tool_call>{"name": "web_search", "arguments": {"query": "q"}}</tool_call>'
        '<tool>[{"type":"web_search_result","title":"T","url":"u"}]'
        '<assistant><tool_call>{"name": "echo", "arguments": {}}</tool_call><tool>hi<assistant>Found.<user>b<assistant>'
    )
    assert warning == "entries of the conversation that say nothing to this model were left out: 'container_upload'"


async def test_every_block_of_anthropic_is_known(app: Any) -> None:
    """Those of its client: in the prompt, or left out and named, or refused for what it would lose."""
    from typing import get_args, get_type_hints

    from anthropic.types.beta import BetaContentBlockParam

    app.serving.chat_template = ChatTemplate({"default": FREE}, {})
    refused = {"image": "this model sees no images"}
    for kind in get_args(BetaContentBlockParam)[:-1]:  # the last one are those of answers, of the same types
        hints = get_type_hints(kind)
        [name] = get_args(hints["type"])
        names = {field.rstrip("_") for field in hints}
        assert names - {"stop_reason"} <= set(Block.__struct_fields__) | nested_fields.WITHOUT_EFFECT, name
        block: dict[str, Any] = {"type": name, "text": "WORD", "content": "WORD", "thinking": "WORD", "name": "WORD"}
        block |= {"id": "i", "tool_use_id": "i", "input": {}, "source": "WORD"}
        if name in ("document", "image"):
            block["source"] = {"type": "text" if name == "document" else "base64", "data": "WORD"}
        body = {"messages": [user("a"), {"role": "assistant", "content": [block]}, user("b")], "max_tokens": 1}
        async with app.http.post("/v1/messages", json=body) as response:
            answer, warning = await response.json(), response.headers.get("X-Sophserve-Warnings", "")
        if name in refused:
            assert response.status == 400 and refused[name] in answer["error"]["message"]
        else:
            assert response.status == 200, answer
            assert "WORD" in app.prompt or name in warning or name == "thinking"


async def test_custom_calls_of_a_history(app: Any) -> None:
    """SGLang PR#22656, vLLM PR#56285."""
    app.serving.chat_template = ChatTemplate({"default": FREE}, {})
    items = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
        user("go on"),
    ]
    call = '<tool_call>{"name": "apply_patch", "arguments": {"input": "*** Begin"}}</tool_call>'
    expected = f"<assistant>{call}<tool>ok<user>go on<assistant>"
    assert (await responded(app, items))[0] == expected
    custom = {"id": "c1", "type": "custom", "custom": {"name": "apply_patch", "input": "*** Begin"}}
    messages = [{"role": "assistant", "tool_calls": [custom]}, {"role": "tool", "tool_call_id": "c1", "content": "ok"}]
    assert await chatted(app, [*messages, user("go on")]) == expected


async def test_what_openais_own_tools_did(app: Any) -> None:
    make_roomy(app)
    app.serving.chat_template = ChatTemplate({"default": FREE}, {})
    outcome = {"type": "exit", "exit_code": 0}
    shown = [{"stdout": "a.txt", "stderr": "", "outcome": outcome}]
    items: list[Any] = [
        {"type": "local_shell_call", "id": "l", "call_id": "l", "action": {"command": ["ls"]}, "status": "completed"},
        {"type": "local_shell_call_output", "id": "l", "output": "a.txt"},
        {"type": "shell_call", "call_id": "s", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "s", "output": shown},
        {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "mcp_call", "id": "m", "server_label": "x", "name": "echo", "arguments": '{"a": 1}', "output": "hi"},
        {"type": "code_interpreter_call", "id": "i", "container_id": "c", "code": "1+1", "outputs": [{"logs": "2"}]},
        {"type": "mcp_list_tools", "id": "t", "server_label": "x", "tools": []},
        user("go on"),
    ]
    prompt, warning = await responded(app, items)
    calls = [
        ("local_shell", '{"command": ["ls"]}', "a.txt"),
        ("shell", '{"commands": ["ls"]}', json.dumps(shown, separators=(",", ":"))),
        ("echo", '{"a": 1}', "hi"),
        ("code_interpreter", '{"code": "1+1"}', '[{"logs":"2"}]'),
    ]
    told = [
        f'<assistant><tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call><tool>{output}'
        for name, arguments, output in calls
    ]
    assert prompt == "".join(told) + "<user>go on<assistant>"
    left_out = "entries of the conversation that say nothing to this model were left out"
    assert warning == f"{left_out}: 'mcp_list_tools', 'web_search_call'"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"type": "compaction", "encrypted_content": "x"}, "send the conversation itself"),
        ({"type": "item_reference", "id": "msg_1"}, "send the item itself"),
        ({"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}}, "would be lost"),
        ({"type": "shell_call_output", "output": "x"}, "input[1].call_id: is missing"),
        ({"type": "custom_tool_call", "call_id": "c"}, "input[1].name: is missing"),
        ({"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]}, "input_file"),
    ],
)
async def test_items_whose_meaning_would_be_lost(app: Any, item: dict[str, Any], words: str) -> None:
    status, answer = await app.post("/v1/responses", {"input": [user("a"), item]})
    assert status == 400 and words in answer["error"]["message"], answer
    assert answer["error"]["param"].startswith("input[1]")


# --- tools ------------------------------------------------------------------------------------------------------------


async def test_every_tool_of_anthropic_is_known(start_app: Any) -> None:
    """Those of its client, some of which have no name: shown to the model, or left out and named."""
    from typing import get_args, get_type_hints

    from anthropic.types.beta import BetaToolUnionParam

    app = await start_app(reject_unknown_fields=True)
    for kind in get_args(BetaToolUnionParam):
        hints = get_type_hints(kind)
        if "input_schema" in hints:
            continue
        name, *_ = get_args(hints["type"])
        tool = {"type": name, "max_uses": 3} | ({"name": "x"} if "name" in hints else {})
        _, warning = await said_to_anthropic(app, [user("Hi")], tools=[tool])
        assert warning == f"tools of types that are not supported were left out: {name!r}"
    for tool, words in (({}, "tools[1].name: is missing"), ({"name": 1}, "tools[1].name: must be str, got int")):
        body = {"messages": [user("Hi")], "max_tokens": 1, "tools": [{"type": "web_search_20250305"}, tool]}
        status, answer = await app.post("/v1/messages", body)
        assert status == 400 and words in answer["error"]["message"], answer


async def test_every_tool_of_openai_is_known(app: Any) -> None:
    schemas = json.loads((shared("openai-openapi") / "openapi.json").read_text())["components"]["schemas"]
    app.serving.chat_template = ChatTemplate({"default": "{{ tools | tojson if tools }}" + FREE}, {})
    make_roomy(app)
    for option in schemas["Tool"]["oneOf"]:
        schema = schemas[option["$ref"].rpartition("/")[2]]
        for name in schema["properties"]["type"]["enum"]:
            _, warning = await responded(app, [user("Hi")], tools=[{"type": name, "name": "x"}])
            offered = name in ("function", "custom")
            assert warning == ("" if offered else f"tools of types that are not supported were left out: {name!r}")


async def test_examples_of_arguments_are_shown(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": "{{ tools | tojson if tools }}" + FREE}, {})
    tool = {"name": "f", "input_schema": {"type": "object"}, "input_examples": [{"city": "Bergen"}]}
    prompt, _ = await said_to_anthropic(app, [user("Hi")], tools=[tool])
    assert '"examples": [{"city": "Bergen"}]' in prompt


PATCH = {"type": "custom", "name": "apply_patch", "description": "Changes files."}


async def test_custom_tools(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": "{{ tools | tojson if tools }}" + FREE}, {})
    make_roomy(app)
    app.engine.text = '<tool_call>{"name": "apply_patch", "arguments": {"input": "*** \\"Begin\\"\\n"}}</tool_call>'
    ask: dict[str, Any] = {"model": "tiny", "input": "Hi", "tools": [PATCH]}
    response = await app.openai.responses.create(**ask)
    schema = {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }
    function = {"name": "apply_patch", "description": "Changes files.", "parameters": schema}
    assert app.prompt.startswith(json.dumps([{"type": "function", "function": function}]))
    [item] = response.output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "apply_patch", '*** "Begin"\n')
    events = [event async for event in await app.openai.responses.create(**ask, stream=True)]
    [delta] = [event for event in events if event.type == "response.custom_tool_call_input.delta"]
    [done] = [event for event in events if event.type == "response.custom_tool_call_input.done"]
    assert delta.delta == done.input == item.input and done.item_id == events[-1].response.output[0].id
    assert not [event for event in events if "function_call" in event.type]
    result = {"type": "custom_tool_call_output", "call_id": item.call_id, "output": "ok"}
    app.engine.text = "Done."
    for more in ({"input": [result], "previous_response_id": response.id}, {"input": [user("Hi"), item, result]}):
        more["input"] = [each if isinstance(each, dict) else each.model_dump() for each in more["input"]]  # type: ignore[attr-defined]
        await app.openai.responses.create(**{**ask, **more})
        told = '{"name": "apply_patch", "arguments": {"input": "*** \\"Begin\\"\\n"}}'
        assert app.prompt.endswith(f"<user>Hi<assistant><tool_call>{told}</tool_call><tool>ok<assistant>")


async def test_custom_tools_that_are_demanded(app: Any) -> None:
    app.serving.chat_template = ChatTemplate({"default": "{{ tools | tojson if tools }}" + FREE}, {})
    make_roomy(app)
    app.engine.text = '<tool_call>\n{"name": "apply_patch", "arguments": {"input": "x"}}\n</tool_call>'
    named = {"type": "custom", "name": "apply_patch"}
    for choice in ("required", named, {"type": "allowed_tools", "mode": "required", "tools": [named]}):
        await responded(app, [user("Hi")], tools=[PATCH], tool_choice=choice)
        assert "apply_patch" in app.engine.params[-1].structured.value
    regex = {**PATCH, "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}}
    app.engine.text = "ok"
    prompt, warning = await responded(app, [user("Hi")], tools=[regex])
    assert "[0-9]+" in app.engine.params[-1].structured.value and warning == "" and "(regex)" in prompt
    lark = {**PATCH, "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}}
    prompt, warning = await responded(app, [user("Hi")], tools=[regex | {"name": "r"}, lark])
    assert "start: " in prompt and warning == "without effect: 'tools[1].format'"


async def test_custom_tools_where_no_tool_can_be_called(start_app: Any) -> None:
    app = await start_app(tool_call_parser="none")
    _, warning = await responded(app, [user("Hi")], tools=[PATCH])
    assert warning == "tools of types that are not supported were left out: 'custom'"


# --- small fields -----------------------------------------------------------------------------------------------------


async def test_an_empty_answer_is_continued_at_its_beginning(app: Any) -> None:
    source = """\
{%- for m in messages %}{{ '<' + m.role + '>\\n\\n' + m.content | trim }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>\\n\\n' }}{% endif %}"""
    app.serving.chat_template = ChatTemplate({"default": source}, {})
    messages = [user("q"), {"role": "assistant", "content": ""}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    for path in ("/v1/chat/completions", "/apply-template", "/tokenize"):
        assert (await asked(app, path, {**body}))[0] == "<user>\n\nq<assistant>\n\n"


async def test_the_most_probable_token_alone(app: Any) -> None:
    """OpenAI's and Anthropic's top_p may be 0."""
    for path, body in (
        ("/v1/chat/completions", {"messages": [user("q")], "max_tokens": 1}),
        ("/v1/completions", {"prompt": "q", "max_tokens": 1}),
        ("/v1/responses", {"input": "q", "max_output_tokens": 1}),
        ("/v1/messages", {"messages": [user("q")], "max_tokens": 1}),
    ):
        status, answer = await app.post(path, {**body, "top_p": 0, "temperature": 1.5})
        assert status == 200, answer
        assert app.engine.params[-1].greedy and answer.get("top_p", 0) == 0
        worker = app.engine.params[-1].for_worker
        assert (worker.temperature, worker.top_p) == (0, 1)
        assert (await app.post(path, {**body, "top_p": -0.1}))[0] == 400
