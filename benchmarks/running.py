"""A server in a process of its own, and what /proc says of it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Running:
    """A server that is ready. Where something has no process any more, its figures are 0."""

    url: str
    pid: int

    @property
    def alive(self) -> bool:
        return _field(self.pid, "State")[:1] not in ("", "Z")

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers, in the order of their start."""
        return [pid for pid in _children(self.pid) if b"sophserve.worker.process" in _bytes(pid, "cmdline")]

    @property
    def memory(self) -> float:
        """Resident, of the server process alone, in MiB."""
        return memory(self.pid)

    @property
    def worker_memory(self) -> float:
        """Of all its workers."""
        return sum(map(memory, self.workers))

    @property
    def others_memory(self) -> float:
        """Of the processes it has besides workers, such as those that try grammars out."""
        return sum(map(memory, set(_children(self.pid)) - set(self.workers)))

    @property
    def descriptors(self) -> int:
        with contextlib.suppress(OSError):
            return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
        return 0

    @property
    def threads(self) -> int:
        return int(_field(self.pid, "Threads") or 0)


def memory(pid: int) -> float:
    """Resident, in MiB."""
    return int((_field(pid, "VmRSS") or "0").split()[0]) / 1024


def _field(pid: int, name: str) -> str:
    found = re.search(rf"^{name}:\s*(.*)$", _bytes(pid, "status").decode(), re.M)
    return found[1] if found else ""


def _children(pid: int) -> list[int]:
    tasks = [path.name for path in Path(f"/proc/{pid}/task").glob("*")]
    return sorted({int(child) for task in tasks for child in _bytes(pid, f"task/{task}/children").split()})


def _bytes(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


@contextlib.contextmanager
def running(model: str, options: Sequence[str] = (), log: Path | None = None) -> Iterator[Running]:
    """`sophserve --model MODEL ...` on a free port, ready; its log goes to a file, else nowhere."""
    command = [sys.executable, "-m", "sophserve", "--model", model, "--port", "0", *options]
    with contextlib.ExitStack() as stack:
        copy = stack.enter_context(log.open("w")) if log else None
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        stack.callback(_stop, process)
        assert process.stderr is not None
        url = _wait_until_ready(process.stderr, copy)
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=copy or subprocess.DEVNULL)
        stack.callback(drain.wait)
        stack.callback(_stop, process)
        yield Running(url, process.pid)


def _wait_until_ready(lines: IO[str], copy: IO[str] | None) -> str:
    seen = ""
    for line in lines:
        seen += line
        if copy:
            copy.write(line)
            copy.flush()
        if found := re.search(r"ready: (http\S+)/v1", line):
            return found[1].rstrip("/")
    sys.exit(f"the server did not start:\n{seen[-2000:]}")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 40
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.wait()
