"""The file that compare.py appends what it measured to, so that a comparison can be made in several runs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One measured number: tokens per second, seconds, MiB, or a field of Limits (system `machine`)."""

    model: str
    system: str
    what: str
    value: float
    commit: str


@dataclass(frozen=True)
class Failure:
    """What a system could not do, `start` or a workload, and what it said."""

    model: str
    system: str
    what: str
    error: str
    commit: str


class Samples:
    """The file of samples, one JSON object a line."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self._path = path
        if fresh:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, sample: Sample | Failure) -> None:
        """Append one."""
        with self._path.open("a") as file:
            file.write(json.dumps(vars(sample) | {"time": int(time.time())}) + "\n")

    def read(self, model: str, current: str) -> dict[tuple[str, str], float]:
        """Medians by (system, what), for this model; sophserve's of the current commit only."""
        groups: dict[tuple[str, str], list[float]] = {}
        for entry in self._entries(model, current):
            if "value" in entry:
                groups.setdefault((entry["system"], entry["what"]), []).append(entry["value"])
        return {key: median(values) for key, values in groups.items()}

    def failures(self, model: str, current: str) -> dict[tuple[str, str], str]:
        """The last error by (system, what) of what never succeeded."""
        errors = {(e["system"], e["what"]): e["error"] for e in self._entries(model, current) if "error" in e}
        measured = self.read(model, current)
        return {key: error for key, error in errors.items() if key not in measured}

    def _entries(self, model: str, current: str) -> list[dict[str, Any]]:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        entries = [entry for entry in map(json.loads, lines) if entry["model"] in (model, "")]
        return [e for e in entries if not e["system"].startswith("sophserve") or e["commit"] == current]
