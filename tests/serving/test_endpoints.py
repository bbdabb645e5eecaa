"""Every way to ask gives the same answer, and operators see and end what runs."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import APIStatusError, OpenAI

ASKED: list[Any] = [{"role": "user", "content": "The quick brown fox"}]


def get(url: str, method: str = "GET") -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
        return json.loads(answer.read())


def test_one_engine(make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]) -> None:
    server = start_server(make_checkpoint("qwen2"), "--max-num-seqs", "1")
    client: OpenAI = server.client()
    greedy = {"temperature": 0, "ignore_eos": True}
    chat = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=40, extra_body=greedy)
    response = client.responses.create(model="tiny", input=ASKED, max_output_tokens=40, extra_body=greedy)
    assert response.output_text == chat.choices[0].message.content
    anthropic = Anthropic(base_url=server.url, api_key="none")
    cut = anthropic.messages.create(model="tiny", messages=ASKED, max_tokens=40, extra_body={"temperature": 0})
    assert response.output_text.startswith(cut.content[0].text)
    used = cut.usage
    assert (used.input_tokens or 0) + (used.cache_read_input_tokens or 0) == chat.usage.prompt_tokens
    memory = get(f"{server.url}/server_info")["memory"]
    assert memory["weights"] > 100_000 and memory["kv_cache"] > 0 and 0 < memory["free"] <= memory["total"]

    outcomes: dict[str, int] = {}

    def ask(name: str) -> None:
        try:
            client.completions.create(
                model="tiny",
                prompt="Hi",
                n=120,
                max_tokens=240,
                extra_body=greedy,
                extra_headers={"X-Request-Id": name},
            )
        except APIStatusError as error:
            outcomes[name] = error.status_code

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    live: list[Any] = []
    while len({entry["id"] for entry in live}) < 2 or {entry["state"] for entry in live} != {"running", "waiting"}:
        assert time.monotonic() < end
        live = get(f"{server.url}/requests")["requests"]
    assert {entry["id"] for entry in live} == {"a", "b"}
    for name in ("a", "b"):
        assert get(f"{server.url}/requests/{name}/cancel", "POST")["cancelled"] > 0
    for thread in threads:
        thread.join(10)
    assert outcomes == {"a": 499, "b": 499}
    assert get(f"{server.url}/requests") == {"requests": []}
    with pytest.raises(urllib.error.HTTPError):
        get(f"{server.url}/requests/a", "DELETE")
