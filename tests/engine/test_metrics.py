"""What the metrics tell of requests, however they end."""

from __future__ import annotations

from sophserve.engine.metrics import EngineMetrics
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.engine.sequence import Timeline


def samples(metrics: EngineMetrics) -> dict[str, float]:
    return {
        sample.name.removeprefix("vllm:")
        + sample.labels.get("finished_reason", "")
        + sample.labels.get("position", ""): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_histograms_agree_with_totals() -> None:
    """vLLM#55634: aborted requests were in the totals only, and so were embeddings."""
    metrics = EngineMetrics(Scheduler(Limits(8, 64, 16), 8), "tiny", 256)
    for reason, tokens in (("length", 5), ("stop", 1), ("abort", 3), ("error", 2)):
        timeline = Timeline()
        timeline.arrived -= 2
        timeline.scheduled = timeline.arrived + 1
        for _ in range(tokens):
            metrics.on_tokens(timeline, 1, prompt_tokens=10, cached_tokens=0)
        metrics.on_finish(timeline, reason, tokens, most=7)
    waiting, prefilling, embedded = Timeline(), Timeline(), Timeline()
    prefilling.scheduled = prefilling.arrived
    metrics.on_finish(waiting, "abort", 0, most=7)
    metrics.on_finish(prefilling, "abort", 0, most=7)
    metrics.on_prompt(embedded, 20, 0)
    metrics.on_finish(embedded, "stop", 0, most=1)
    found = samples(metrics)
    reasons = {name: value for name, value in found.items() if name.startswith("request_success_total")}
    assert {name[len("request_success_total") :]: value for name, value in reasons.items()} == {
        "length": 1,
        "stop": 2,
        "abort": 3,
        "error": 1,
    }
    times = ["e2e_request_latency", "request_queue_time", "request_prefill_time", "request_inference_time"]
    for name in [*(f"{each}_seconds" for each in [*times, "request_decode_time"]), "request_prompt_tokens"]:
        assert found[f"{name}_count"] == 7, name
    assert found["request_prompt_tokens_sum"] == found["prompt_tokens_total"] == 60
    assert found["request_generation_tokens_sum"] == found["generation_tokens_total"] == 11
    assert found["request_generation_tokens_count"] == found["request_params_max_tokens_count"] == 7
    assert found["request_time_per_output_token_seconds_count"] == 3
    parts = ["request_queue_time", "request_prefill_time", "request_decode_time"]
    whole = sum(found[f"{part}_seconds_sum"] for part in parts)
    assert abs(whole - found["e2e_request_latency_seconds_sum"]) < 1e-6


def test_guesses() -> None:
    metrics = EngineMetrics(Scheduler(Limits(8, 64, 16), 8), "tiny", 256)
    for drafted, accepted in ((0, 0), (3, 3), (5, 1), (2, 0)):
        metrics.on_drafts(drafted, accepted)
        metrics.on_tokens(Timeline(), accepted + 1, prompt_tokens=3, cached_tokens=0)
    found = {
        name: value
        for name, value in samples(metrics).items()
        if name.startswith("spec_decode") and "created" not in name
    }
    assert {name.removeprefix("spec_decode_num_"): value for name, value in found.items()} == {
        "drafts_total": 3,
        "draft_tokens_total": 10,
        "accepted_tokens_total": 4,
        **{f"accepted_tokens_per_pos_total{place}": value for place, value in enumerate([2, 1, 1, 0, 0])},
    }
    line = metrics.log_line()
    assert line and line.endswith("Mean acceptance length: 2.33, Draft acceptance rate: 40.0%")
    metrics.on_tokens(Timeline(), 1, prompt_tokens=3, cached_tokens=0)
    assert "acceptance" not in (metrics.log_line() or "")
