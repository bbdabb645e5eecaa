"""Two ranks of one model, started in several ways: `hosts.py --model DIRECTORY`.

- alone: `--tensor-parallel-size 2`
- torchrun: two processes of it on one host
- hosts: a process on each of two hosts, network namespaces with 0.1 ms and 10 Gbit/s between them
- stages: as hosts, with `--pipeline-parallel-size 2`

Each serves in turn, and `sophserve load` drives it: random prompts of 128 tokens, answers of 64.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model
from benchmarks.networks import Network
from benchmarks.serving import CONTEXT, READY_SECONDS, ROOT, answers, end, load

WAYS = ("alone", "torchrun", "hosts", "stages")
NEAR = {"delay": 1e-4, "rate": 1e10}
PORT, LAUNCH_PORT = 8765, 29600


def commands(way: str, options: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """What each host runs, and within what environment."""
    module = ["-m", "sophserve", *options]
    if way == "alone":
        return [([sys.executable, *module, "--tensor-parallel-size", "2"], {})]
    if way == "torchrun":
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(LAUNCH_PORT)]
        return [([sys.executable, *launcher, *module], {})]
    split = ["--pipeline-parallel-size", "2", "--tensor-parallel-size", "1"]
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": str(LAUNCH_PORT)}
    words = [sys.executable, *module, *(split if way == "stages" else [])]
    return [(words, launch | {"RANK": str(rank)}) for rank in range(2)]


@contextmanager
def served(way: str, options: argparse.Namespace) -> Iterator[str]:
    """The address of a server that is ready; in the block this thread is on its host."""
    with ExitStack() as stack:
        network = None
        if way in ("hosts", "stages"):
            network = stack.enter_context(Network(2))
            network.be(**NEAR)
        address = network.addresses[0] if network else "127.0.0.1"
        words = ["--model", str(options.model), "--host", address, "--port", str(PORT)]
        words += ["--max-model-len", str(CONTEXT), "--speculation", "off"]
        processes = []
        for host, (command, more) in enumerate(commands(way, words)):
            with network.on(host) if network else ExitStack():
                environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
                processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
            stack.callback(end, processes[-1])
        stack.enter_context(network.on(0) if network else ExitStack())
        deadline = time.monotonic() + READY_SECONDS
        while not answers(f"http://{address}:{PORT}"):
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                sys.exit(f"{way}: the server did not start")
            time.sleep(0.2)
        yield f"http://{address}:{PORT}"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="see make_checkpoint.py")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for way in options.ways:
            with served(way, options) as url:
                for concurrency in options.concurrency:
                    report = load(url, concurrency, max(4, 2 * concurrency))
                    found.setdefault((way, concurrency), []).append(1e3 / report["metrics"]["tpot"]["p50"])
    print(f"{datetime.date.today()}, {cpu_model()}, commit {commit()}, {options.model.name}\n")
    print("| | at once | tokens/s of a stream | times alone |\n|---|---|---|---|")
    for (way, concurrency), rates in found.items():
        rate = statistics.median(rates)
        ratio = rate / statistics.median(found["alone", concurrency])
        print(f"| {way} | {concurrency} | {rate:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
