"""What the router counts and times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sophserve.api.http.request_record import Record
from sophserve.route.replicas import Replica, Replicas

# As vllm:time_to_first_token_seconds has them.
_BUCKETS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640]


class RouterMetrics:
    """The router's registry for Prometheus. vLLM's names are left to the replicas, whose sums would be wrong by it."""

    def __init__(self, replicas: Replicas) -> None:
        self.registry = CollectorRegistry()
        self._replicas = replicas
        self._chosen: Counter[tuple[str, str]] = Counter()
        self._first_byte = Histogram(
            "sophserve:router_first_byte_seconds",
            "Time from a request's arrival to the first byte of its answer's body.",
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self.registry.register(self)

    def count(self, replica: Replica, why: str) -> None:
        """A replica was chosen for a request."""
        self._chosen[replica.name, why] += 1

    def first_byte(self, record: Record) -> None:
        self._first_byte.observe(time.monotonic() - record.started)

    def collect(self) -> Iterator[Metric]:
        """The counters and gauges as they stand, for the registry."""
        replicas = self._replicas.all
        up = GaugeMetricFamily("sophserve:router_replica_up", "Whether a replica takes requests.", labels=["replica"])
        running = GaugeMetricFamily(
            "sophserve:router_requests_running", "Requests that a replica has.", labels=["replica"]
        )
        failed = CounterMetricFamily(
            "sophserve:router_failures", "Requests that a replica did not answer.", labels=["replica", "reason"]
        )
        for replica in replicas:
            up.add_metric([replica.name], replica.up)
            running.add_metric([replica.name], replica.running)
            for reason, value in replica.failures.items():
                failed.add_metric([replica.name, reason], value)
        chosen = CounterMetricFamily(
            "sophserve:router_requests", "Requests given to a replica.", labels=["replica", "by"]
        )
        for labels, value in self._chosen.items():
            chosen.add_metric(labels, value)
        healthy = GaugeMetricFamily("vllm:healthy_pods_total", "Replicas that take requests.", labels=["server"])
        for replica in replicas:
            healthy.add_metric([replica.name], replica.up)
        yield from (up, running, failed, chosen, healthy)
