"""Requests bodies with something wrong in them: good ones, changed at random in their structure or their bytes."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

HELLO = [{"role": "user", "content": "The quick brown fox"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
SAMPLING = {
    "model": "tiny",
    "n": 2,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "min_tokens": 1,
    "seed": 1,
    "stop": ["x", "yz"],
    "stop_token_ids": [5],
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"7": 5, "8": -100},
    "bad_words": ["dog"],
    "allowed_token_ids": [5, 6, 7, 8, 9],
    "skip_special_tokens": False,
    "truncate_prompt_tokens": 8,
    "truncation_side": "right",
    "priority": 1,
    "cache_salt": "salt",
    "request_id": "mine",
    "timeout": 30,
    "return_token_ids": True,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "prompt_logprobs": 2,
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
    "structured_outputs": {"regex": "[a-z]+", "choice": ["a", "b"]},
    "guided_json": SCHEMA,
    "suffix": "end",
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
    {"role": "user", "content": "Well?"},
]
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "2"}]},
]
ITEMS = [
    {"role": "developer", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "reasoning", "summary": []},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "c1", "output": "2"},
]
CONVERSATION = {
    "messages": TURNS,
    "tools": [TOOL],
    "documents": [{"title": "a", "text": "b"}],
    "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}",
    "chat_template_kwargs": {"enable_thinking": False},
    "add_generation_prompt": True,
    "continue_final_message": False,
}
FORMAT = {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}

# What must be there, and what may be.
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/v1/chat/completions": (
        {"messages": HELLO, "max_tokens": 4},
        {
            **SAMPLING,
            **CONVERSATION,
            **{"logprobs": True, "top_logprobs": 2, "parallel_tool_calls": False, "include_reasoning": False},
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ),
    "/v1/completions": (
        {"prompt": "The quick brown fox", "max_tokens": 4},
        SAMPLING | {"prompt": ["Hi", [5, 6, 7]], "echo": True, "logprobs": 2, "best_of": 3},
    ),
    "/v1/embeddings": (
        {"input": "Hi"},
        {"input": [[5, 6], "Hi"], "encoding_format": "base64", "dimensions": 3, "model": "tiny"},
    ),
    "/v1/messages": (
        {"messages": HELLO, "max_tokens": 4},
        {
            **{"messages": BLOCKS, "system": [{"type": "text", "text": "Be brief."}], "stream": True, "top_k": 3},
            **{"stop_sequences": ["x"], "temperature": 1, "thinking": {"type": "enabled", "budget_tokens": 9}},
            **{"tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ),
    "/v1/messages/count_tokens": ({"messages": HELLO}, {"messages": BLOCKS, "system": "Be brief."}),
    "/v1/responses": (
        {"input": "Hi", "max_output_tokens": 4},
        {
            **{"input": ITEMS, "instructions": "Be brief.", "stream": True, "store": True, "top_logprobs": 2},
            **{"tools": [{"type": "function", "name": "f", "parameters": SCHEMA}], "tool_choice": "required"},
            **{"text": FORMAT, "previous_response_id": "resp_1", "metadata": {"a": "b"}, "truncation": "auto"},
            **{"background": True, "conversation": "conv_1"},
        },
    ),
    "/v1/conversations": ({}, {"items": ITEMS, "metadata": {"a": "b"}}),
    **dict.fromkeys(
        ("/v1/rerank", "/v2/rerank", "/rerank"),
        (
            {"query": "Hi", "documents": ["a", {"text": "b"}]},
            {"top_n": 1, "return_documents": False, "instruction": "Look.", "truncate_prompt_tokens": -1},
        ),
    ),
    **dict.fromkeys(("/v1/score", "/score"), ({"text_1": "Hi", "text_2": ["a", "b"]}, {"queries": ["a"]})),
    "/v1/conversations/x": ({"metadata": {"a": "b"}}, {}),
    "/v1/conversations/x/items": ({"items": ITEMS}, {}),
    "/v1/responses/x/cancel": ({}, {}),
    "/v1/files": ({"purpose": "batch"}, {}),
    "/v1/batches": (
        {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        {"metadata": {"a": "b"}},
    ),
    "/v1/batches/x/cancel": ({}, {}),
    "/v1/responses/input_tokens": ({"input": "Hi"}, {"input": ITEMS, "instructions": "Be brief."}),
    "/tokenize": ({"prompt": "Hi"}, CONVERSATION | {"return_token_strs": True, "add_special": True}),
    "/detokenize": ({"tokens": [70, 71]}, {"model": "tiny"}),
    "/apply-template": ({"messages": HELLO}, CONVERSATION),
    "/reset_prefix_cache": ({}, {}),
    "/requests/x/cancel": ({}, {}),
}

JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**63, -(2**63) - 1, 10**25, 0.5, -0.0, 1e-320, 1e300),
    *("", "a", "\x00", "\U0010ffff", "<|im_end|>", "{{ 1 }}", "(a|b)*" * 50, "a" * 5000, "required", "json_object"),
    *([], {}, [[]], [None], [1], [2**40], {"a": 1}, {"1": -100}, {"type": "text"}, {"type": "object"}),
    *({"$ref": "#"}, {"pattern": "(?=a)"}, {"enum": []}, {"anyOf": [{"$ref": "#"}]}, {"type": "function"}),
]


class Mutator:
    """Makes one request after the other: its path and its body."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def request(self) -> tuple[str, bytes]:
        """The next one."""
        rng = self._random
        path = rng.choice(list(BODIES))
        least, further = BODIES[path]
        names = rng.sample(list(further), rng.randint(0, min(4, len(further))))
        body: Any = copy.deepcopy(least | {name: further[name] for name in names})
        for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
            body = self._changed(body)
        data = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
        return path, self._damaged(data) if rng.random() < 0.25 else data

    def _changed(self, value: Any) -> Any:
        """The value with one place in it changed."""
        rng = self._random
        if not value or not isinstance(value, dict | list) or rng.random() < 0.15:
            return self._replaced(value)
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        match rng.randrange(12):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[rng.choice(("a", "type", "x" * 300, "\r\nX: y", "role"))] = value[key]
            case 1:
                value.insert(key, copy.deepcopy(value[key]))
            case 2 if isinstance(value, list):
                value *= rng.choice((2, 40))
            case 3:
                value[key] = copy.deepcopy(value)
            case _:
                value[key] = self._changed(value[key])
        return value

    def _replaced(self, value: Any) -> Any:
        rng = self._random
        if isinstance(value, bool) or not isinstance(value, int | float | str) or rng.random() < 0.5:
            return copy.deepcopy(rng.choice(JUNK))
        if isinstance(value, str):
            place = rng.randint(0, len(value))
            odd = rng.choice(("\ud800", "\x00", "\n", "\U0001f469\u200d\U0001f4bb", '"', "\\", "<|im_start|>"))
            return value[:place] + odd + value[place:]
        return rng.choice((value + 1, -value, value * 1000, value / 3, value * 10**18, str(value)))

    def _damaged(self, data: bytes) -> bytes:
        """The bytes with some of them changed."""
        rng = self._random
        for _ in range(rng.randint(1, 4)):
            place = rng.randint(0, len(data))
            end = place + rng.randint(0, 8)
            match rng.randrange(4):
                case 0:
                    data = data[:place]
                case 1:
                    data = data[:place] + data[end:]
                case 2:
                    data = data[:place] + rng.randbytes(rng.randint(1, 4)) + data[end:]
                case 3:
                    data = data[:end] + data[place:]
        return data
