"""Whether two builds answer alike: `same_answers.py record FILE` with each of them, then `same_answers.py compare A B`.

300 requests are sent one after another to servers of `demo`: every route, whole and streamed, every parameter, tools
(by a chat template that knows them), reasoning, structured output, and what is refused. Recorded are status, headers
and body, without what is new in each run: ids, times, and where a stream was cut between two events that add to the
same text. `compare` prints each difference, and fails where there is one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.running import running

Request = tuple[str, str, dict[str, Any] | str | None]  # method, path, body

HEADERS = ("content-type", "allow", "x-warning", "retry-after", "warning")
# Fields whose value is new each time, and what a measured time or a state of the server shows.
NEW = re.compile(r"\b(chatcmpl|cmpl|embd|resp|msg|call|toolu|fc|rs|req|chatcmpl-tool)[-_][0-9a-f]{9,32}\b|call_\w{24}")
TIMES = ("created", "created_at", "completed_at", "sequence_number", "uptime", "started", "obfuscation")
# Fields of which the events of a stream add pieces.
PIECES = ("content", "text", "reasoning", "reasoning_content", "arguments", "partial_json", "thinking")
PIECES += ("delta", "tokens", "token_logprobs", "text_offset", "top_logprobs")
DIFFERENT = "two values that cannot be joined"

TEMPLATE = """{%- if tools %}<|system|>{% for tool in tools %}<tool_call>{{ tool | tojson }}</tool_call>{% endfor %}
{% endif %}{%- for message in messages %}<|{{ message.role }}|>{{ message.content }}
{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
GRAMMARS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "text"}},
    {"structured_outputs": {"regex": "[ab]{3,5}"}},
    {"guided_choice": ["yes", "no"]},
    {"guided_regex": "[0-9]+", "guided_json": SCHEMA},
    {"structured_outputs": {"grammar": 'start: "x" | "y"'}},
    {"guided_grammar": "start: ]"},
]
SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1, "seed": 1, "top_p": 0.7, "top_k": 20, "min_p": 0.01},
    {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    {"temperature": 0, "stop": ["e", " th"]},
    {"temperature": 0, "stop": "e", "include_stop_str_in_output": True},
    {"temperature": 0, "logit_bias": {"40": 5, "41": -100}},
    {"temperature": 0, "bad_words": ["the", "a"], "min_tokens": 4},
    {"temperature": 0, "allowed_token_ids": [40, 41, 42, 43]},
    {"temperature": 0, "ignore_eos": True, "stop_token_ids": [44]},
    {"temperature": 0.5, "seed": 3, "n": 3},
    {"temperature": 0, "skip_special_tokens": False, "return_token_ids": True},
    {"temperature": 0, "priority": 3, "cache_salt": "salt", "timeout": 60},
    {"temperature": 0, "truncate_prompt_tokens": 4},
    {"temperature": -1},
    {"top_p": 7},
    {"stop": 5},
    {"n": 0},
    {"max_tokens": 0},
    {"unknown_field": {"a": [1, 2]}, "temperature": 0},
]


def with_default(body: dict[str, Any]) -> dict[str, Any]:
    return {"temperature": 0, "max_tokens": 12} | body


def streams(path: str, bodies: list[dict[str, Any]]) -> Iterator[Request]:
    for body, stream in product(bodies, (False, True)):
        extra = {"stream_options": {"include_usage": True}} if stream and path.endswith("completions") else {}
        yield "POST", path, with_default(body) | ({"stream": True} | extra if stream else {})


def asked(text: str = "Once upon a time") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chats() -> Iterator[Request]:
    bodies = [{"messages": asked(), **each} for each in SAMPLING + GRAMMARS]
    bodies += [{"messages": asked(), "logprobs": True, "top_logprobs": count} for count in (0, 2)]
    bodies += [
        {"messages": asked(), "prompt_logprobs": 1},
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *asked("Hi")]},
        {"messages": [*asked("A"), {"role": "assistant", "content": "The"}], "continue_final_message": True},
        {"messages": asked(), "chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"},
        {"messages": asked(), "tools": [TOOL]},
        {"messages": asked(), "tools": [TOOL], "tool_choice": "none"},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        {"messages": asked(), "model": "another"},
    ]
    yield from streams("/v1/chat/completions", bodies)


def tool_chats() -> Iterator[Request]:
    called = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    history = [*asked(), {"role": "assistant", "content": None, "tool_calls": [called]}]
    history.append({"role": "tool", "tool_call_id": "call_1", "content": "sunny"})
    named = {"type": "function", "function": {"name": "weather"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    bodies = [
        {"messages": messages, "tools": [TOOL], "max_tokens": 60, **each}
        for messages in (asked(), history)
        for each in (
            {},
            {"tool_choice": "required"},
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"tool_choice": named},
            {"tool_choice": allowed},
            {"tool_choice": "none"},
            {"response_format": {"type": "json_object"}},
        )
    ]
    bodies += [
        {"messages": asked(), "tools": [TOOL, TOOL]},
        {"messages": asked(), "tools": [{"type": "web"}]},
        {"messages": asked(), "tools": [TOOL], "tool_choice": "often"},
        {"messages": asked(), "tool_choice": "required"},
        {"messages": asked(), "include_reasoning": False},
    ]
    yield from streams("/v1/chat/completions", bodies)
    anthropic = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}
    bodies = [
        {"messages": asked(), "tools": [anthropic], "max_tokens": 60, "tool_choice": {"type": kind}}
        for kind in ("auto", "any", "none")
    ]
    yield from streams("/v1/messages", bodies)
    flat = {"type": "function", **TOOL["function"]}
    bodies = [{"input": "Hi", "tools": [flat], "tool_choice": choice} for choice in ("auto", "required", "none")]
    for body, stream in product(bodies, (False, True)):
        yield "POST", "/v1/responses", {"temperature": 0, "max_output_tokens": 40, "stream": stream} | body


def texts() -> Iterator[Request]:
    bodies = [{"prompt": "Once upon", **each} for each in SAMPLING + GRAMMARS[:4]]
    bodies += [
        {"prompt": ["Once", "The dog"]},
        {"prompt": [40, 41, 42]},
        {"prompt": [[40, 41], [42]], "echo": True},
        {"prompt": "Once upon", "echo": True, "logprobs": 2},
        {"prompt": "Once upon", "logprobs": 0},
        {"prompt": "Once upon", "prompt_logprobs": 2},
        {"prompt": "Once upon", "best_of": 3, "n": 2, "temperature": 1, "seed": 2},
        {"prompt": []},
        {"prompt": [1, "a"]},
        {"prompt": "x" * 40_000},
        {"prompt": [999_999_999]},
    ]
    ids = [[40 + (number * seed) % 200 for number in range(1, 30)] for seed in range(12)]
    bodies += [{"prompt": prompt, "temperature": 0.7, "seed": seed} for seed, prompt in enumerate(ids)]
    yield from streams("/v1/completions", bodies)


def others() -> Iterator[Request]:
    responses = [
        {"input": "Hi"},
        {"input": asked(), "instructions": "Be brief."},
        {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
        {"input": "Hi", "previous_response_id": "resp_0"},
        {"input": "Hi", "store": False, "metadata": {"a": "b"}},
        {"input": []},
    ]
    for body, stream in product(responses, (False, True)):
        yield "POST", "/v1/responses", {"temperature": 0, "max_output_tokens": 40, "stream": stream} | body
    messages = [
        {"messages": asked()},
        {"messages": asked(), "system": "Be brief.", "stop_sequences": ["e"]},
        {"messages": asked(), "system": [{"type": "text", "text": "Be brief."}], "thinking": {"type": "disabled"}},
        {"messages": [*asked(), {"role": "assistant", "content": [{"type": "text", "text": "The"}]}]},
        {"messages": []},
        {"messages": asked(), "max_tokens": 0},
    ]
    yield from streams("/v1/messages", messages)
    for text in ("Hi", ["Hi", "there"], [40, 41], [], ""):
        for extra in ({}, {"encoding_format": "base64"}, {"dimensions": 8}):
            yield "POST", "/v1/embeddings", {"input": text, **extra}
    for path, bodies in {
        "/tokenize": [{"prompt": "Hi there"}, {"messages": asked(), "return_token_strs": True}, {}],
        "/detokenize": [{"tokens": [40, 41, 42]}, {"tokens": [-1]}, {"tokens": "a"}],
        "/apply-template": [{"messages": asked()}, {"messages": []}],
        "/v1/messages/count_tokens": [{"messages": asked()}, {"messages": asked(), "system": "a"}, {}],
        "/v1/responses/input_tokens": [{"input": "Hi"}, {"input": asked(), "instructions": "a"}, {}],
        "/v1/chat/completions": ["", "[]", "{", '{"messages": 5}'],
        "/v1/completions": ['{"prompt": null}'],
        "/reset_prefix_cache": [{}],
        "/start_profile": [],
    }.items():
        yield from (("POST", path, body) for body in bodies)  # type: ignore[misc]
    for path in ("/health", "/ready", "/live", "/ping", "/version", "/openapi.json", "/tokenizer_info", "/v1/models"):
        yield "GET", path, None
    for path in ("/v1/models/demo", "/v1/models/x", "/v1/responses/resp_0", "/nothing", "/v1/completions", "/requests"):
        yield "GET", path, None
    for path in ("/v1/responses/resp_0", "/requests/x", "/v1/models"):
        yield "DELETE", path, None
    yield "POST", "/requests/x/cancel", {}


def send(url: str, request: Request) -> dict[str, Any]:
    method, path, body = request
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    data = body if isinstance(body, str) or body is None else json.dumps(body)
    try:
        connection.request(method, path, data, {"Content-Type": "application/json"} if data is not None else {})
        answer = connection.getresponse()
        content = answer.read().decode()
    finally:
        connection.close()
    headers = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
    return {"request": request, "status": answer.status, "headers": headers, "body": lasting(headers, content)}


def lasting(headers: dict[str, str], content: str) -> Any:
    """What of a body is the same in every run."""
    content = NEW.sub(r"\1-NEW", content)
    if headers.get("content-type", "").startswith("application/json"):
        return without_times(json.loads(content))
    if not headers.get("content-type", "").startswith("text/event-stream"):
        return content
    events: dict[str, list[Any]] = {}  # by the choice that they belong to
    for text in content.split("\n\n"):
        event = [json_of(line) for line in text.splitlines()]
        choices = [each for _, data in event if isinstance(data, dict) for each in data.get("choices", [])]
        choice = str(choices[0]["index"]) if choices else ""
        for each in choices:  # those of a choice come with any of its chunks
            events.setdefault(f"{choice} ids", []).extend(each.pop("token_ids", []))
        row = events.setdefault(choice, [])
        both = joined(row[-1], event) if row else DIFFERENT
        row[-1:] = [*row[-1:], event] if both is DIFFERENT else [both]
    return events


def json_of(line: str) -> Any:
    name, _, value = line.partition(": ")
    if not value.startswith(("{", "[{")):
        return [name, value]
    data = without_times(json.loads(value))
    if isinstance(data, dict) and data.get("type") == "message_start":
        del data["message"]["usage"]["output_tokens"]  # as many as the first event found
    return [name, data]


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def joined(a: Any, b: Any, name: str = "") -> Any:
    """One value in place of two that differ in pieces alone; DIFFERENT for others."""
    if name in PIECES and type(a) is type(b) and isinstance(a, str | list):
        return a + b
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() - {"prompt_token_ids"} == b.keys():
        each = a | {key: joined(a[key], b[key], key) for key in b}
        return DIFFERENT if DIFFERENT in each.values() else each
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        items = [joined(x, y) for x, y in zip(a, b, strict=True)]
        return DIFFERENT if DIFFERENT in items else items
    return a if a == b else DIFFERENT


def record(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, target.open("w") as file:
        template = Path(folder) / "template.jinja"
        template.write_text(TEMPLATE)
        plain = [*chats(), *texts(), *others()]
        tools = ("--chat-template", str(template), "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
        for options, requests in (((), plain), (tools, list(tool_chats()))):
            with running("demo", options) as server:
                for request in requests:
                    file.write(json.dumps(send(server.url, request)) + "\n")
            print(f"{len(requests)} requests are recorded", flush=True)


def compare(first: Path, second: Path) -> int:
    a, b = ([json.loads(line) for line in path.read_text().splitlines()] for path in (first, second))
    different = 0
    for x, y in zip(a, b, strict=True):
        if x != y:
            different += 1
            print(f"{x['request']}\n  - {json.dumps(x)[:3000]}\n  + {json.dumps(y)[:3000]}")
    print(f"{len(a)} answers, {different} differ")
    return bool(different)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("file", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("first", type=Path)
    both.add_argument("second", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.file)
        return 0
    return compare(options.first, options.second)


if __name__ == "__main__":
    sys.exit(main())
