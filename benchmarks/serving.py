"""sophserve beside its peers as servers over HTTP: `serving.py --model DIRECTORY --systems sophserve,vllm,llama.cpp`.

Starts one server after the other and drives each with `sophserve load`: random prompts of 128 tokens, answers of 64,
at several concurrencies, four rounds of so many requests each and at least eight. Server and client share the machine.
Prompts are the same for every system; none begins like another.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model
from benchmarks.peers import setup, vllm_api
from device.cpus import thread_count

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("sophserve", "vllm", "llama.cpp")
CONTEXT = 512
INPUT, OUTPUT = 128, 64
READY_SECONDS = 300


def command(system: str, model: Path, peers: Path, port: int, most: int, gguf: str) -> list[str]:
    """How a server is started, with its default options but for what it must hold. gguf: the kind of file that
    llama.cpp is given."""
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    size = ["--max-model-len", str(CONTEXT)]
    if system == "sophserve":
        return [sys.executable, "-m", "sophserve", "--model", str(model), *listen, *size]
    if system == "vllm":
        python = str(setup.vllm_python(peers))
        module = ["-m", "vllm.entrypoints.openai.api_server"]
        return [python, *module, "--model", str(model), *listen, *size, "--enable-prompt-tokens-details"]
    slots = ["-np", str(most), "-c", str(most * CONTEXT), "-t", str(thread_count())]
    return [str(setup.llama_cpp_server(peers)), "-m", str(setup.gguf(peers, model, gguf)), *listen, *slots]


@contextmanager
def server(system: str, options: argparse.Namespace, more: Sequence[str] = ()) -> Iterator[str]:
    """Its address, once it answers. more: options of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if system == "vllm":
        environment = {**os.environ, **vllm_api.environment(sorted(os.sched_getaffinity(0))[: thread_count()])}
    log = options.peers_dir / f"{system}-server.log"
    most = max(options.concurrency)
    arguments = [*command(system, options.model, options.peers_dir, port, most, options.gguf), *more]
    with log.open("w") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + READY_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{system} did not start; what it said is in {log}")
            time.sleep(0.2)
        yield url
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Let it finish, for a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def load(url: str, concurrency: int, requests: int) -> dict[str, Any]:
    """What `sophserve load` measured."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        words = f"--endpoint completions --input-length {INPUT} --output-length {OUTPUT} --seed {concurrency}"
        words += f" --concurrency {concurrency} --num-requests {requests} --save-json {file.name} --url {url}"
        arguments = [sys.executable, "-m", "sophserve", "load", *words.split()]
        subprocess.run(arguments, check=True, stdout=sys.stderr, env={**os.environ, "PYTHONPATH": str(ROOT)})
        report: dict[str, Any] = json.loads(Path(file.name).read_text())
        return report


def main() -> None:
    # A run that `timeout` ends must end the server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sophserve-peers"
    parser.add_argument("--model", type=Path, required=True, help="a bfloat16 checkpoint; see make_checkpoint.py")
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--peers-dir", type=Path, default=cache, help=f"where peers are installed (default: {cache})")
    parser.set_defaults(gguf="bf16")
    options = parser.parse_args()
    if unknown := set(options.systems) - set(SYSTEMS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    options.peers_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for system in options.systems:
        # Prompts come again, so that there would be guesses.
        with server(system, options, ["--speculation", "off"] if system == "sophserve" else []) as url:
            for concurrency in options.concurrency:
                report = load(url, concurrency, max(8, 4 * concurrency))
                assert report["cached_tokens"] < 0.05 * report["prompt_tokens"], "prompts were in the cache"
                ttft, tpot, e2el = (report["metrics"][name] for name in ("ttft", "tpot", "e2el"))
                numbers = [f"{report['output_throughput']:.0f}", f"{ttft['p50']:.0f}", f"{ttft['p99']:.0f}"]
                numbers += [f"{tpot['p50']:.1f}", f"{tpot['p99']:.1f}", f"{e2el['p50'] / 1000:.2f}"]
                rows.append(f"| {concurrency} | {system} | {' | '.join(numbers)} |")
    print(f"{datetime.date.today()}, {cpu_model()}, commit {commit()}, {options.model.name}\n")
    print("| at once | | output tokens/s | TTFT p50, ms | p99 | TPOT p50, ms | p99 | E2E p50, s |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(sorted(rows, key=lambda row: int(row.split("|")[1]))))


if __name__ == "__main__":
    main()
