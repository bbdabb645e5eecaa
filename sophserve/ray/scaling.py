"""How many replicas there should be."""

from __future__ import annotations

from typing import Any


def by_requests(context: Any) -> tuple[float, dict[str, Any]]:
    """Ray Serve's autoscaling policy: so many that each has its target of running and waiting requests. Ray applies
    bounds and delays."""
    found = (context.aggregated_metrics or {}).get("requests", {})
    requests = sum(found.get(replica, 0.0) for replica in context.running_replicas)
    return requests / context.config.get_target_ongoing_requests(), {}
