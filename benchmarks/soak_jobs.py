"""Requests with a known answer, over every endpoint: greedy, or sampled with a seed, so that an answer is the same
however busy the server is, and whatever happens to its workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# What differs from one answer to the next: names, times, and how much of a prompt was in the cache.
_OWN = {"id", "item_id", "call_id", "created", "created_at", "completed_at", "request_id"}
_OWN |= {
    "prompt_tokens_details",
    "input_tokens_details",
    "cache_read_input_tokens",
    "input_tokens",
    "previous_response_id",
}

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}
TEXTS = ["Once upon a time", "The quick brown fox jumps over", "One, two, three, four,", "A server takes requests and"]


@dataclass(frozen=True)
class Job:
    """One request. fold(body of the answer) is what must be the same each time."""

    name: str
    path: str
    body: dict[str, Any]
    fold: Callable[[str], Any]

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


def whole(answer: str) -> Any:
    """A JSON answer without what is its own."""
    return _common(json.loads(answer))


def _common(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _common(each) for key, each in value.items() if key not in _OWN}
    return [_common(each) for each in value] if isinstance(value, list) else value


def _events(answer: str) -> list[dict[str, Any]]:
    lines = [line[6:] for line in answer.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def chunks(answer: str) -> Any:
    """The choices of a stream of completions or a chat: all of each one's text, reasoning, arguments and log
    probabilities, and its end. Raises ValueError for a stream that breaks off or reports an error."""
    if not answer.endswith("data: [DONE]\n\n") or '"error":' in answer.rsplit("data: ", 2)[-2]:
        raise ValueError(f"the stream ends with {answer[-300:]!r}")
    found: dict[str, Any] = {}
    for event in _events(answer):
        for choice in event["choices"]:
            where = f"{choice['index']}"
            _add(found, where, choice["delta"] if "delta" in choice else {"text": choice["text"]})
            for token in _tokens(choice.get("logprobs")):
                found.setdefault(f"{where} logprobs", []).append(token)
            if choice["finish_reason"]:
                found[f"{where} end"] = choice["finish_reason"]
    return found


def _tokens(logprobs: dict[str, Any] | None) -> list[Any]:
    return (logprobs or {}).get("token_logprobs") or (logprobs or {}).get("content") or []


def _add(found: dict[str, Any], where: str, delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if isinstance(value, str) and key not in (*_OWN, "role", "type"):
            found[f"{where} {key}"] = found.get(f"{where} {key}", "") + value
        elif isinstance(value, dict):
            _add(found, f"{where} {key}", value)
        elif isinstance(value, list):
            for each in value:
                _add(found, f"{where} {key} {each['index']}", each)


def responses(answer: str) -> Any:
    """The last event's response."""
    last = _events(answer)[-1]
    if last["type"] not in ("response.completed", "response.incomplete"):
        raise ValueError(f"the stream ends with {last}")
    return _common(last["response"])


def messages(answer: str) -> Any:
    """The blocks of a stream of Messages, and its end."""
    found: dict[str, Any] = {}
    events = _events(answer)
    if events[-1]["type"] != "message_stop":
        raise ValueError(f"the stream ends with {events[-1]}")
    for event in events:
        if event["type"] == "content_block_delta":
            _add(found, f"{event['index']}", event["delta"])
        if event["type"] == "message_delta":
            found["end"] = _common(event)
    return found


def make_jobs() -> list[Job]:
    """Each endpoint, streamed and not."""
    jobs = [*_completions(), *_chats()]
    jobs += [
        Job("embeddings", "/v1/embeddings", {"input": TEXTS}, whole),
        Job("tokenize", "/tokenize", {"prompt": " ".join(TEXTS) * 500, "return_token_strs": True}, whole),
        Job("detokenize", "/detokenize", {"tokens": list(range(300, 500)) * 20}, whole),
        Job("template", "/apply-template", {"messages": _turns(TEXTS[0])}, whole),
    ]
    return jobs


def _completions() -> list[Job]:
    jobs = []
    for number, text in enumerate(TEXTS):
        body = {"prompt": text, "max_tokens": 100 + 150 * number, "temperature": number % 2, "seed": number}
        body |= {"logprobs": 2, "ignore_eos": True}
        jobs.append(Job(f"completion {number}", "/v1/completions", body, whole))
        jobs.append(Job(f"completion {number}, streamed", "/v1/completions", body | {"stream": True}, chunks))
    long = {"prompt": [400 + number % 97 for number in range(900)], "max_tokens": 60, "seed": 1, "ignore_eos": True}
    jobs.append(Job("long prompt", "/v1/completions", long | {"n": 2, "stream": True}, chunks))
    scored = {"prompt": TEXTS, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    jobs.append(Job("scored prompts", "/v1/completions", scored, whole))
    pattern = {
        "prompt": "The answer is",
        "max_tokens": 40,
        "seed": 2,
        "structured_outputs": {"regex": "[a-z]{9,30}[.]"},
    }
    jobs.append(Job("regex", "/v1/completions", pattern, whole))
    return jobs


def _turns(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def _chats() -> list[Job]:
    jobs = []
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    kinds: dict[str, dict[str, Any]] = {
        "chat": {"logprobs": True, "top_logprobs": 1},
        "schema": {"response_format": schema},
        "tools": {"tools": [TOOL], "tool_choice": "required"},
        "four answers": {"n": 4, "temperature": 1},
    }
    for number, (name, more) in enumerate(kinds.items()):
        body = {"messages": _turns(TEXTS[number]), "max_tokens": 200, "temperature": 0, "seed": number} | more
        jobs.append(Job(name, "/v1/chat/completions", body, whole))
        jobs.append(Job(f"{name}, streamed", "/v1/chat/completions", body | {"stream": True}, chunks))
    form = {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA}}
    body = {"input": TEXTS[1], "max_output_tokens": 200, "temperature": 0, "text": form}
    jobs.append(Job("response", "/v1/responses", body, whole))
    jobs.append(Job("response, streamed", "/v1/responses", body | {"stream": True}, responses))
    tool = {"name": "get_weather", "input_schema": WEATHER}
    body = {"messages": _turns(TEXTS[2])[1:], "max_tokens": 200, "temperature": 0}
    for name, more in {"message": {}, "message with tools": {"tools": [tool], "tool_choice": {"type": "any"}}}.items():
        jobs.append(Job(name, "/v1/messages", body | more, whole))
        jobs.append(Job(f"{name}, streamed", "/v1/messages", body | more | {"stream": True}, messages))
    return jobs
