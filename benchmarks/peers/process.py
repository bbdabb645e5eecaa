"""A measured system as a child process: asks it for workloads and watches its memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from benchmarks.peers.protocol import Workload

# What vLLM puts before each line: the process, and a place in the source. And how a traceback ends.
PREFIX = re.compile(r"^(?:\([^)]*\) )?(?:ERROR [^]]*\] )?", re.M)
ERROR = re.compile(r"^[\w.]*(?:Error|Exception): \S.*?(?::\s*\n.*)?$", re.M)
ROOT = Path(__file__).resolve().parent.parent.parent


class SystemFailed(RuntimeError):
    """A system did not start, or could not run a workload."""


class SystemProcess:
    """Use as a context: it starts `command` and ends it. ready: seconds until the model was loaded and warm."""

    def __init__(self, command: Sequence[str | Path], environment: dict[str, str], log: Path) -> None:
        self._peak = 0
        self._stop = threading.Event()
        self._log = log
        here = {**os.environ, "PYTHONPATH": str(ROOT), "BENCHMARK_STARTED": str(time.time()), **environment}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
                env=here,
            )
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self.ready = 0.0

    def __enter__(self) -> Self:
        try:
            self.ready = float(self._answer()["ready"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def peak_mib(self) -> float:
        """The largest sum of resident sizes of processes alive together; pages that they share count in each."""
        return self._peak / 1024

    def measure(self, work: Workload) -> float:
        """Seconds of one repetition. Raises SystemFailed."""
        assert self._process.stdin is not None
        self._process.stdin.write(work.to_json() + "\n")
        answer = self._answer()
        if "error" in answer:
            raise SystemFailed(str(answer["error"]))
        return float(answer["seconds"])

    def _answer(self) -> dict[str, float | str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise SystemFailed(f"{cause(self._log)} (status {status}, log {self._log.name})")
        answer: dict[str, float | str] = json.loads(line)
        return answer

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self._peak = max(self._peak, sum(map(_largest_resident, _tree(self._process.pid))))


def cause(log: Path) -> str:
    """The first error that a log names, from which the others follow; its last line if it names none."""
    text = PREFIX.sub("", log.read_text(errors="replace"))
    if error := ERROR.search(text):
        return " ".join(error[0].split())
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def _largest_resident(pid: int) -> int:
    """KiB, from the process's start on; 0 if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for each in pids:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                pids += map(int, task.read_text().split())
            except OSError:
                continue
    return pids
