"""/metrics, the statistics in the log, and emptying the prefix cache."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

LABELS = {"model_name": "tiny", "engine": "0"}


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    # Those of connections belong to no model.
    assert all(LABELS.items() <= sample.labels.items() for sample in samples if sample.name.startswith("vllm:"))
    return {
        sample.name + sample.labels.get("finished_reason", ""): sample.value
        for sample in samples
        if "le" not in sample.labels
    }


@pytest.fixture(scope="module")
def server(make_checkpoint: Callable[..., Path], server_class: Callable[..., Any]) -> Iterator[Any]:
    """Of the test that counts, which comes first, and of those behind it."""
    server = server_class("--model", str(make_checkpoint("qwen2")))
    server.wait_until_ready()
    yield server
    server.stop()


def test_metrics_and_log_line(server: Any) -> None:
    assert any("memory: weights " in line and " MiB, KV cache " in line for line in server.log)
    client = server.client()
    prompt = list(range(3, 103))
    for _ in range(2):
        client.completions.create(model="tiny", prompt=prompt, max_tokens=10, extra_body={"ignore_eos": True})
    found = metrics(server.url)
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    assert found["vllm:kv_cache_usage_perc"] == 0
    assert found["vllm:prompt_tokens_total"] == found["vllm:prefix_cache_queries_total"] == 200
    assert found["vllm:prefix_cache_hits_total"] == found["vllm:prompt_tokens_cached_total"] == 96
    assert found["vllm:generation_tokens_total"] == 20
    assert found["vllm:request_success_totallength"] == 2
    assert found["vllm:time_to_first_token_seconds_count"] == found["vllm:e2e_request_latency_seconds_count"] == 2
    assert found["vllm:inter_token_latency_seconds_count"] == 18
    assert found["vllm:request_prompt_tokens_sum"] == 200
    assert found["vllm:request_generation_tokens_sum"] == 20
    assert found["vllm:num_preemptions_total"] == 0
    assert 0 < found["vllm:time_to_first_token_seconds_sum"] < found["vllm:e2e_request_latency_seconds_sum"]
    request = urllib.request.Request(f"{server.url}/reset_prefix_cache", method="POST")
    assert urllib.request.urlopen(request).status == 200
    client.completions.create(model="tiny", prompt=prompt, max_tokens=1)
    assert metrics(server.url)["vllm:prefix_cache_hits_total"] == 96
    end = time.monotonic() + 15
    while not (lines := [line for line in server.log if "Avg prompt throughput" in line]):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert "Running: 0 reqs, Waiting: 0 reqs, KV cache usage: 0.0%, Prefix cache hit rate: 32.0%" in lines[0]


def test_cache_salt_isolates(server: Any) -> None:
    client = server.client()
    prompt = list(range(103, 203))
    cached = []
    for salt in ("a", "b", "a", None, None):
        extra = {} if salt is None else {"cache_salt": salt}
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, extra_body=extra)
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 0, 96, 0, 96]
