"""What one client can send to make all others wait: bodies and behaviours, each in a small and a large size.

A server is right when others notice none of them, whatever the answer's status is.
"""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import hostile_clients as clients
from benchmarks.hostile_clients import COMPLETIONS, LIMIT, RESPONSES, Found, prompt, text
from benchmarks.running import Running

CHAT, MESSAGES, EMBEDDINGS = "/v1/chat/completions", "/v1/messages", "/v1/embeddings"
TOKENIZE, DETOKENIZE, TEMPLATE = "/tokenize", "/detokenize", "/apply-template"
MIB = 1 << 20

Attack = Callable[[Running, int], Awaitable[Found]]
Make = Callable[[int, int], dict[str, Any] | bytes]


@dataclass(frozen=True)
class Case:
    """attack(server, size) bears the load and says how often which answer came; sizes: a small and a large one."""

    name: str
    attack: Attack
    sizes: tuple[int, int]


def body(name: str, path: str, make: Make, *sizes: int, times: int = 1, leave: float = LIMIT) -> Case:
    """`times` bodies make(size, number) sent at once, by clients that leave after so many seconds."""

    async def attack(server: Running, size: int) -> Found:
        bodies = [await asyncio.to_thread(_encoded, make, size, number) for number in range(times)]
        async with clients.new_session() as session:
            answers = (clients.status(session, server.url + path, each, leave) for each in bodies)
            return Counter(await asyncio.gather(*answers))

    small, large = sizes
    return Case(name, attack, (small, large))


def _encoded(make: Make, size: int, number: int) -> bytes:
    made = make(size, number)
    return made if isinstance(made, bytes) else json.dumps(made).encode()


def turn(content: Any = "hi") -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content}


def chat(**more: Any) -> dict[str, Any]:
    """The body of a chat, and of Messages."""
    return {"messages": [turn()], "max_tokens": 1} | more


def response(**more: Any) -> dict[str, Any]:
    """The body of Responses."""
    return {"input": "hi", "max_output_tokens": 16} | more


def noise(size: int) -> str:
    """So many letters in which nothing repeats."""
    return "".join(random.Random(size).choices(string.ascii_letters + " ", k=size))


def schema(size: int) -> dict[str, Any]:
    """An object of so many properties."""
    return {"type": "object", "properties": {f"property_{i}": {"type": "string"} for i in range(size)}}


def tools(count: int, properties: int) -> list[dict[str, Any]]:
    """So many functions in chat's form."""
    made = ({"name": f"f{i}", "parameters": schema(properties)} for i in range(count))
    return [{"type": "function", "function": each} for each in made]


def flat(size: int, item: bytes, start: bytes = b'{"prompt": "hi", "max_tokens": 1, "extra": [') -> bytes:
    """A body with a list of so many items, in a field that nobody knows unless another start is given."""
    return start + b",".join([item] * size) + b"]}"


def nested(size: int, left: bytes, right: bytes) -> bytes:
    """A body with an unknown field that is so deep."""
    return b'{"prompt": "hi", "max_tokens": 1, "extra": ' + left * size + b"1" + right * size + b"}"


def regex(pattern: str, **more: Any) -> dict[str, Any]:
    """A completion that must match."""
    return prompt(structured_outputs={"regex": pattern}) | more


def calls(size: int) -> list[dict[str, Any]]:
    """A conversation in which the model made so many calls at once."""
    made = [{"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in range(size)]
    return [turn(), {"role": "assistant", "content": None, "tool_calls": made}, turn()]


LONG = {"max_tokens": 400, "ignore_eos": True}

PLAIN = body("a plain prompt", COMPLETIONS, lambda n, i: prompt(prompt=[400 + j % 99 for j in range(n)]), 200, 2000)
"""What any client may ask for, as the measure of the others."""

MILD = [
    body("plain answers", COMPLETIONS, lambda n, i: prompt(n=n, **LONG), 4, 32),
    body("a plain chat", CHAT, lambda n, i: chat(max_tokens=n), 50, 500),
]

FIELDS = [
    body("stop: one long text", COMPLETIONS, lambda n, i: prompt(n=16, stop=["a" * n]), 10_000, 100_000),
    body("stop: one long text, n=128", COMPLETIONS, lambda n, i: prompt(n=128, stop="a" * n), 10_000, 100_000),
    body("stop: many texts", COMPLETIONS, lambda n, i: prompt(n=16, stop=[f"{j:08}" for j in range(n)]), 64, 100_000),
    body("stop: chat", CHAT, lambda n, i: chat(n=16, stop=["a" * n]), 10_000, 8 * MIB),
    body("stop: messages", MESSAGES, lambda n, i: chat(stop_sequences=["a" * n]), 10_000, 8 * MIB),
    body("stop_token_ids", COMPLETIONS, lambda n, i: prompt(n=128, stop_token_ids=[7] * n), 1024, MIB),
    body("bad_words: long", COMPLETIONS, lambda n, i: prompt(n=16, bad_words=[noise(n)]), 10_000, 8 * MIB),
    body("bad_words: many", COMPLETIONS, lambda n, i: prompt(n=16, bad_words=["a b c d e f g"] * n), 128, MIB),
    body("logit_bias", COMPLETIONS, lambda n, i: prompt(n=128, logit_bias=dict.fromkeys(range(n), 1)), 1024, 500_000),
    body(
        "allowed_token_ids",
        COMPLETIONS,
        lambda n, i: prompt(n=8, max_tokens=30, allowed_token_ids=[*range(400)] * n),
        200,
        250,
    ),
    body(
        "allowed_token_ids, n=32",
        COMPLETIONS,
        lambda n, i: prompt(n=32, max_tokens=30, allowed_token_ids=[*range(400)] * n),
        200,
        10_000,
    ),
    body("prompts: 8 texts", COMPLETIONS, lambda n, i: prompt(prompt=[noise(n)] * 8), 9_900, MIB),
    body("prompts: many texts", COMPLETIONS, lambda n, i: prompt(prompt=[noise(9_900)] * n), 8, 1200),
    body("prompts: ids", COMPLETIONS, lambda n, i: prompt(prompt=[500] * n), MIB, 6 * MIB),
    body("prompts: many lists of ids", COMPLETIONS, lambda n, i: prompt(prompt=[[500]] * n), 1000, 4 * MIB),
    body("prompt: one text", COMPLETIONS, lambda n, i: prompt(prompt=text(n)), 100_000, 30 * MIB),
    body("prompt: one word", COMPLETIONS, lambda n, i: prompt(prompt="a" * n), 100_000, 30 * MIB),
    body("prompt_logprobs", COMPLETIONS, lambda n, i: prompt(prompt=[500] * n, prompt_logprobs=20), 1000, 2000),
    body(
        "prompt_logprobs, 20 prompts",
        COMPLETIONS,
        lambda n, i: prompt(prompt=[[500] * n] * 20, prompt_logprobs=20),
        1000,
        2000,
    ),
    body(
        "echo with logprobs",
        COMPLETIONS,
        lambda n, i: prompt(prompt=[500] * n, echo=True, logprobs=20, n=8),
        1000,
        2000,
    ),
    body("logprobs, big n", COMPLETIONS, lambda n, i: prompt(n=n, logprobs=20, **LONG), 16, 128),
    body("big n, whole", CHAT, lambda n, i: chat(n=n, **LONG), 32, 128),
    body("big n, streamed", CHAT, lambda n, i: chat(n=n, stream=True, **LONG), 32, 128),
    body("unknown field: lists", COMPLETIONS, lambda n, i: flat(n, b"[]"), 500_000, 10_000_000),
    body("unknown field: objects", COMPLETIONS, lambda n, i: flat(n, b'{"a":{}}'), 100_000, 3_500_000),
    body("unknown field: deep", COMPLETIONS, lambda n, i: nested(n, b"[", b"]"), 500, 15 * MIB),
    body("unknown fields", CHAT, lambda n, i: chat(**{f"field{j}": j for j in range(n)}), 10_000, 1_500_000),
    body("not JSON", CHAT, lambda n, i: b"[" * n, 100_000, 31 * MIB),
    body(
        "priority, names, salts",
        COMPLETIONS,
        lambda n, i: prompt(cache_salt="s" * n, request_id="i" * n),
        10_000,
        15 * MIB,
    ),
    body("model: a long name", COMPLETIONS, lambda n, i: prompt(model="m" * n), 100_000, 31 * MIB),
    body("user and metadata", CHAT, lambda n, i: chat(user="u" * n, metadata={"a": "b" * n}), 10_000, 15 * MIB),
]

CONVERSATIONS = [
    body("messages: empty ones", CHAT, lambda n, i: chat(messages=[turn("")] * n), 3_000, 1_000_000),
    body("messages: empty ones, Messages", MESSAGES, lambda n, i: chat(messages=[turn("")] * n), 3_000, 1_000_000),
    body("messages: empty ones, Responses", RESPONSES, lambda n, i: response(input=[turn("")] * n), 3_000, 1_000_000),
    body("messages: parts", CHAT, lambda n, i: chat(messages=[turn([{"type": "text", "text": ""}] * n)]), 3_000, MIB),
    body("messages: a long one", CHAT, lambda n, i: chat(messages=[turn(text(n))]), 100_000, 30 * MIB),
    body("messages: long below the bound", CHAT, lambda n, i: chat(messages=[turn(text(9_900))] * n), 8, 3_000),
    body("messages: calls", CHAT, lambda n, i: chat(messages=calls(n)), 1_000, 300_000),
    body("tools", CHAT, lambda n, i: chat(tools=tools(n, 50)), 300, 12_000),
    body("tools: required", CHAT, lambda n, i: chat(tools=tools(n, 20), tool_choice="required"), 100, 10_000),
    body(
        "tools: Messages",
        MESSAGES,
        lambda n, i: chat(tools=[{"name": f"f{j}", "input_schema": schema(50)} for j in range(n)]),
        300,
        12_000,
    ),
    body(
        "tools: Responses",
        RESPONSES,
        lambda n, i: response(
            tools=[{"type": "function", "name": f"f{j}", "parameters": schema(50)} for j in range(n)]
        ),
        300,
        12_000,
    ),
    body("documents", CHAT, lambda n, i: chat(documents=[{"title": "a", "text": "b"}] * n), 10_000, 1_000_000),
    body(
        "template arguments", CHAT, lambda n, i: chat(chat_template_kwargs={f"a{j}": j for j in range(n)}), 10_000, MIB
    ),
    body("system: parts", MESSAGES, lambda n, i: chat(system=[{"type": "text", "text": "a"}] * n), 3_000, 900_000),
    body("input: a long text", RESPONSES, lambda n, i: response(input=text(n)), 100_000, 30 * MIB),
    body("instructions", RESPONSES, lambda n, i: response(instructions=text(n)), 100_000, 30 * MIB),
]

TEXTS = [
    body("tokenize, twice", TOKENIZE, lambda n, i: {"prompt": text(n)}, 440_000, 8 * MIB, times=2),
    body("tokenize and leave", TOKENIZE, lambda n, i: {"prompt": text(n)}, 440_000, 30 * MIB, times=8, leave=0.5),
    body("tokenize: strings", TOKENIZE, lambda n, i: {"prompt": text(n), "return_token_strs": True}, 440_000, 30 * MIB),
    body("tokenize: messages", TOKENIZE, lambda n, i: {"messages": [turn("")] * n}, 3_000, 1_000_000),
    body("detokenize", DETOKENIZE, lambda n, i: {"tokens": [500] * n}, 100_000, 6 * MIB),
    body("detokenize: wrong ids", DETOKENIZE, lambda n, i: {"tokens": [10**9] * n}, 100_000, 2 * MIB),
    body("apply-template", TEMPLATE, lambda n, i: {"messages": [turn("")] * n}, 3_000, 1_000_000),
    body(
        "count_tokens",
        MESSAGES + "/count_tokens",
        lambda n, i: {"messages": [turn(text(n))]},
        440_000,
        30 * MIB,
        times=2,
    ),
    body("input_tokens", RESPONSES + "/input_tokens", lambda n, i: {"input": text(n)}, 440_000, 30 * MIB, times=2),
    body("embeddings: a long text", EMBEDDINGS, lambda n, i: {"input": text(n)}, 440_000, 30 * MIB),
    body("embeddings: many texts", EMBEDDINGS, lambda n, i: {"input": ["a b c"] * n}, 1_000, 2_000_000),
    body("embeddings: long texts", EMBEDDINGS, lambda n, i: {"input": [[500] * 2000] * n}, 8, 1000),
]

GRAMMARS = [
    body("grammar: compiled", COMPLETIONS, lambda n, i: regex(f"a{{{n + i}}}"), 20_000, 100_000),
    body(
        "grammar: trials and leave",
        COMPLETIONS,
        lambda n, i: regex(f"a{{{n + i}}}"),
        90_000,
        190_000,
        times=30,
        leave=0.2,
    ),
    body("grammar: refused", COMPLETIONS, lambda n, i: regex(f"(a|b)*{i}" + "c" * n), MIB, 20 * MIB, times=8),
    body("grammar: states", COMPLETIONS, lambda n, i: regex(f"(a|b)*a(a|b){{{n + i}}}"), 20, 200, times=4),
    body(
        "grammar: alternatives", COMPLETIONS, lambda n, i: regex("|".join(f"word{j}" for j in range(n))), 2_000, 25_000
    ),
    body(
        "grammar: choices",
        COMPLETIONS,
        lambda n, i: prompt(structured_outputs={"choice": [f"w{j}" for j in range(n)]}),
        2_000,
        1_000_000,
    ),
    body("grammar: a large schema", CHAT, lambda n, i: chat(guided_json=schema(n)), 500, 500_000),
    body(
        "grammar: lark",
        COMPLETIONS,
        lambda n, i: prompt(guided_grammar="start: " + "|".join(f'"a{j}"' for j in range(n))),
        1_000,
        1_000_000,
    ),
    body("grammar: followed by many", COMPLETIONS, lambda n, i: regex("[a-z ]+", n=n, max_tokens=100), 16, 128),
]

BEHAVIOURS = [
    Case("unread streams", clients.unread, (1, 20)),
    Case("unread whole answers", clients.unread_whole, (1, 20)),
    Case("unfinished uploads", clients.unfinished, (4, 40)),
    Case("silent connections", clients.silent, (200, 2_000)),
    Case("half headers", clients.half_headers, (50, 500)),
    Case("idle, half-sent and unread at once", clients.all_connections, (200, 2_000)),
    Case("streams opened and closed", clients.cancel_storm, (100, 1_000)),
    Case("tiny requests", clients.many_tiny, (200, 5_000)),
    Case("listed while many wait", clients.waiting_listed, (100, 1_000)),
    Case("long headers", clients.long_header, (7_000, 1_000_000)),
    Case("responses that go on", clients.stored_chain, (5, 100)),
    Case("a worker killed", clients.killed_worker, (1, 3)),
]

CASES = [*MILD, *FIELDS, *CONVERSATIONS, *TEXTS, *GRAMMARS, *BEHAVIOURS]
