"""Measure how a server starts and idles: `startup.py MODEL [--runs N] [-- further sophserve options]`.

Prints one row a run: seconds from the start of the process to the first HTTP answer and to readiness, and how long each
stage of loading took that /health named, then, idle for some seconds, CPU use of all processes together in percent of
one core, resident memory of each process, and whether torch is mapped into the server. The idle part needs psutil;
`--idle 0` leaves it out.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a checkpoint's folder, or a name that --model takes")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--idle", type=float, default=5.0, help="seconds to watch the idle server")
    parser.add_argument("options", nargs="*", help="for sophserve")
    options = parser.parse_args()
    columns = ["run", "first answer (s)", "ready (s)", "stages (s)"]
    columns += ["idle CPU (%)", "memory (MiB)", "torch in server"] if options.idle else []
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for number in range(1, options.runs + 1):
        cells = measure(options.model, options.idle, options.options)
        print(f"| {number} | {' | '.join(cells)} |", flush=True)


def measure(model: str, idle: float, options: list[str]) -> list[str]:
    port = free_port()
    command = [sys.executable, "-m", "sophserve", "--model", model, "--port", str(port), *options]
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        first, ready, stages = follow(process, port, started)
        shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items())
        return [f"{first:.2f}", f"{ready:.2f}", shown, *(idling(process.pid, idle) if idle else [])]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def idling(pid: int, seconds: float) -> list[str]:
    import psutil

    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in tree)

    before = used()
    time.sleep(seconds)
    cpu = 100 * (used() - before) / seconds
    memory = " + ".join(f"{each.memory_info().rss / 2**20:.0f}" for each in tree)
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [f"{cpu:.1f}", memory, "yes" if "libtorch" in maps else "no"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def follow(process: subprocess.Popen[bytes], port: int, started: float) -> tuple[float, float, dict[str, float]]:
    """Seconds from `started` to the first answer and to readiness, and those of each stage that was seen between."""
    first, before = 0.0, started
    stage, stages = "", dict[str, float]()
    while process.poll() is None:
        answer = health(port)
        now = time.monotonic()
        if answer is not None:
            first = first or now - started
            if stage:
                stages[stage] = stages.get(stage, 0.0) + now - before
            if answer[0] == 200:
                return first, now - started, stages
            stage, before = answer[1], now
        time.sleep(0.005)
    sys.exit(f"the server exited with code {process.returncode}; run the command by hand to see why")


def health(port: int) -> tuple[int, str] | None:
    """The status, and the stage of loading that it names; None while nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        body: Any = json.loads(response.read() or b"{}")
        return response.status, "" if response.status == 200 else body["stage"]
    except OSError:
        return None
    finally:
        connection.close()


if __name__ == "__main__":
    main()
