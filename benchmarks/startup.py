"""Measure how a server starts and idles: `startup.py CHECKPOINT [--runs N] [-- further sophserve options]`.

Prints one row a run: seconds from the start of the process to the first HTTP answer and to readiness, then, idle for
some seconds, CPU use of all processes together in percent of one core, resident memory of each process, and whether
torch is mapped into the server. Needs psutil.
"""

from __future__ import annotations

import argparse
import http.client
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--idle", type=float, default=5.0, help="seconds to watch the idle server")
    parser.add_argument("options", nargs="*", help="for sophserve")
    options = parser.parse_args()
    print("| run | first answer (s) | ready (s) | idle CPU (%) | memory (MiB) | torch in server |")
    print("|---|---|---|---|---|---|")
    for number in range(1, options.runs + 1):
        print(f"| {number} | {' | '.join(measure(options.checkpoint, options.idle, options.options))} |", flush=True)


def measure(checkpoint: Path, idle: float, options: list[str]) -> list[str]:
    port = free_port()
    command = [sys.executable, "-m", "sophserve", "--model", str(checkpoint), "--port", str(port), *options]
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        first = wait_for(process, port, {200, 503}) - started
        ready = wait_for(process, port, {200}) - started
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        before = cpu_seconds(tree)
        time.sleep(idle)
        cpu = 100 * (cpu_seconds(tree) - before) / idle
        memory = " + ".join(f"{each.memory_info().rss / 2**20:.0f}" for each in tree)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        return [f"{first:.2f}", f"{ready:.2f}", f"{cpu:.1f}", memory, "yes" if "libtorch" in maps else "no"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(process: subprocess.Popen[bytes], port: int, statuses: set[int]) -> float:
    """The time at which /health answered with one of these."""
    while process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status in statuses:
                return time.monotonic()
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    sys.exit(f"the server exited with code {process.returncode}; run the command by hand to see why")


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    main()
