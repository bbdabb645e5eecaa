"""What the engine counts and times, under vLLM's metric names, so that dashboards and routers made for it work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sophserve.engine.scheduler import Scheduler
from sophserve.engine.sequence import Timeline

log = logging.getLogger(__name__)

# Seconds between two lines of statistics in the log.
REPORT_PERIOD = 10.0

# Buckets as vLLM has them, in seconds.
_FIRST = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640]
_TOKEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80]
_REQUEST = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680]
_STEP_TOKENS = [2**power for power in range(15)]

_TIMES = {
    "time_to_first_token_seconds": ("Time from arrival to the first token.", _FIRST),
    "inter_token_latency_seconds": ("Time between two tokens.", _TOKEN),
    "request_time_per_output_token_seconds": ("A request's mean time between two tokens.", _TOKEN),
    "e2e_request_latency_seconds": ("Time from arrival to the last token.", _REQUEST),
    "request_queue_time_seconds": ("Time from arrival to the first step.", _REQUEST),
    "request_prefill_time_seconds": ("Time from the first step to the first token.", _REQUEST),
    "request_decode_time_seconds": ("Time from the first token to the last.", _REQUEST),
    "request_inference_time_seconds": ("Time from the first step to the last token.", _REQUEST),
}


def token_buckets(most: int) -> list[float]:
    """1, 2, 5, 10, 20, 50 ... up to most."""
    steps = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    return [*map(float, takewhile(lambda step: step < most, steps)), float(most)]


@dataclass
class Counts:
    """Totals since the start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_by_place: list[int] = field(default_factory=list)
    restarts: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error"), 0))


class EngineMetrics:
    """The engine's registry for Prometheus, and the line for the log."""

    def __init__(self, scheduler: Scheduler, model_name: str, max_model_len: int) -> None:
        self.registry = CollectorRegistry()
        self.counts = Counts()
        self._scheduler = scheduler
        self._labels = {"model_name": model_name, "engine": "0"}
        self._times = {name: self._histogram(name, text, buckets) for name, (text, buckets) in _TIMES.items()}
        tokens = token_buckets(max_model_len)
        self._prompt_length = self._histogram("request_prompt_tokens", "Tokens of a prompt.", tokens)
        self._answer_length = self._histogram("request_generation_tokens", "Tokens of an answer.", tokens)
        self._max_tokens = self._histogram("request_params_max_tokens", "A request's max_tokens.", tokens)
        self._step_tokens = self._histogram("iteration_tokens_total", "Tokens of a step.", _STEP_TOKENS)
        self.registry.register(self)
        self._last = (time.monotonic(), 0, 0)
        self._last_drafts = (0, 0, 0)

    def on_step(self, tokens: int) -> None:
        self._step_tokens.observe(tokens)

    def on_prompt(self, timeline: Timeline, prompt_tokens: int, cached_tokens: int) -> None:
        timeline.prompt_tokens = prompt_tokens
        self.counts.prompt_tokens += prompt_tokens
        self.counts.cached_tokens += cached_tokens

    def on_tokens(self, timeline: Timeline, count: int, prompt_tokens: int, cached_tokens: int) -> None:
        now = time.monotonic()
        self.counts.generation_tokens += count
        if timeline.first_token:
            self._times["inter_token_latency_seconds"].observe(now - timeline.last_token)
        else:
            timeline.first_token = now
            self.on_prompt(timeline, prompt_tokens, cached_tokens)
            self._times["time_to_first_token_seconds"].observe(now - timeline.arrived)
        timeline.last_token = now

    def on_drafts(self, drafted: int, accepted: int) -> None:
        """So many tokens of a sequence were guessed in a step, and the first ones of them came true."""
        counts = self.counts
        if drafted:
            counts.drafts += 1
            counts.draft_tokens += drafted
            counts.accepted_tokens += accepted
            counts.accepted_by_place += [0] * (drafted - len(counts.accepted_by_place))
            for place in range(accepted):
                counts.accepted_by_place[place] += 1

    def on_finish(self, timeline: Timeline, reason: str, answer_tokens: int, most: int) -> None:
        """A sequence ended, however: all are in every histogram, with what they came to, so that the sums agree with
        the totals. What one that was aborted did not reach took no time, and has no tokens."""
        self.counts.finished[reason] += 1
        end = timeline.last_token or time.monotonic()
        scheduled, first = timeline.scheduled or end, timeline.first_token or end
        self._times["e2e_request_latency_seconds"].observe(end - timeline.arrived)
        self._times["request_queue_time_seconds"].observe(scheduled - timeline.arrived)
        self._times["request_prefill_time_seconds"].observe(first - scheduled)
        self._times["request_inference_time_seconds"].observe(end - scheduled)
        self._times["request_decode_time_seconds"].observe(end - first)
        if answer_tokens > 1:
            self._times["request_time_per_output_token_seconds"].observe((end - first) / (answer_tokens - 1))
        self._prompt_length.observe(timeline.prompt_tokens)
        self._answer_length.observe(answer_tokens)
        self._max_tokens.observe(most)

    async def report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_PERIOD)
            if line := self.log_line():
                log.info(line)

    def log_line(self) -> str | None:
        """Throughput since the last call and the present state; None when nothing happened since and nothing runs."""
        scheduler, stats = self._scheduler, self._scheduler.stats
        then, prompt, generation = self._last
        now = time.monotonic()
        self._last = (now, self.counts.prompt_tokens, self.counts.generation_tokens)
        busy = scheduler.running or scheduler.waiting
        if not busy and (prompt, generation) == self._last[1:]:
            return None
        hit_rate = stats.prefix_hits / stats.prefix_queries if stats.prefix_queries else 0.0
        images = self._scheduler.images
        line = (
            f"Avg prompt throughput: {(self.counts.prompt_tokens - prompt) / (now - then):.1f} tokens/s, "
            f"Avg generation throughput: {(self.counts.generation_tokens - generation) / (now - then):.1f} tokens/s, "
            f"Running: {len(scheduler.running)} reqs, Waiting: {len(scheduler.waiting)} reqs, "
            f"KV cache usage: {100 * self._cache_usage():.1f}%, Prefix cache hit rate: {100 * hit_rate:.1f}%"
        )
        line += self._of_drafts()
        return line + (f", MM cache hit rate: {100 * images.hits / images.queries:.1f}%" if images.queries else "")

    def _of_drafts(self) -> str:
        """For the line: of the guesses since the last call."""
        counts, last = self.counts, self._last_drafts
        self._last_drafts = now = (counts.drafts, counts.draft_tokens, counts.accepted_tokens)
        drafts, tokens, accepted = (value - before for value, before in zip(now, last, strict=True))
        if not drafts:
            return ""
        length, rate = 1 + accepted / drafts, 100 * accepted / tokens
        return f", Mean acceptance length: {length:.2f}, Draft acceptance rate: {rate:.1f}%"

    def collect(self) -> Iterator[Metric]:
        """The counters and gauges as they stand, for the registry."""
        scheduler, stats, counts = self._scheduler, self._scheduler.stats, self.counts
        gauges = {
            "vllm:num_requests_running": ("Sequences that are being computed.", len(scheduler.running)),
            "vllm:num_requests_waiting": ("Sequences that are queued.", len(scheduler.waiting)),
            "vllm:kv_cache_usage_perc": ("Share of the KV blocks in use; 1 is all.", self._cache_usage()),
        }
        counters = {
            "vllm:prefix_cache_queries": ("Tokens looked up in the prefix cache.", stats.prefix_queries),
            "vllm:prefix_cache_hits": ("Tokens found in the prefix cache.", stats.prefix_hits),
            "vllm:mm_cache_queries": ("Images that had to be encoded or found.", scheduler.images.queries),
            "vllm:mm_cache_hits": ("Images that were encoded already.", scheduler.images.hits),
            "vllm:num_preemptions": ("Preempted sequences.", stats.preemptions),
            "vllm:prompt_tokens": ("Tokens of prompts.", counts.prompt_tokens),
            "vllm:prompt_tokens_cached": ("Tokens of prompts that the cache held.", counts.cached_tokens),
            "vllm:generation_tokens": ("Generated tokens.", counts.generation_tokens),
            "vllm:spec_decode_num_drafts": ("Times that tokens were guessed.", counts.drafts),
            "vllm:spec_decode_num_draft_tokens": ("Guessed tokens.", counts.draft_tokens),
            "vllm:spec_decode_num_accepted_tokens": ("Guessed tokens that came true.", counts.accepted_tokens),
            "sophserve:prefix_cache_evictions": ("KV blocks evicted from the prefix cache.", stats.evictions),
            "sophserve:worker_restarts": ("Restarts of lost workers.", counts.restarts),
        }
        names, values = list(self._labels), list(self._labels.values())
        for kind, entries in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, value) in entries.items():
                family = kind(name, text, labels=names)
                family.add_metric(values, value)
                yield family
        finished = CounterMetricFamily(
            "vllm:request_success", "Finished sequences.", labels=[*names, "finished_reason"]
        )
        for reason, value in counts.finished.items():
            finished.add_metric([*values, reason], value)
        yield finished
        limits = scheduler.limits
        about = {
            "block_size": limits.block_size,
            "num_gpu_blocks": scheduler.pool.num_blocks,
            "enable_prefix_caching": limits.prefix_caching,
        }
        cache = GaugeMetricFamily("vllm:cache_config_info", "The KV cache, in its labels.", labels=[*about, *names])
        cache.add_metric([*map(str, about.values()), *values], 1)
        yield cache
        accepted = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Guessed tokens that came true, by their place among those guessed at once.",
            labels=[*names, "position"],
        )
        for place, value in enumerate(counts.accepted_by_place):
            accepted.add_metric([*values, str(place)], value)
        yield accepted

    def _cache_usage(self) -> float:
        return self._scheduler.pool.used / self._scheduler.pool.num_blocks

    def _histogram(self, name: str, text: str, buckets: list[float]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", text, self._labels, registry=self.registry, buckets=buckets)
        return histogram.labels(**self._labels)
