"""Guesses from the prompt beside those of peers: `copies.py --model DIRECTORY --systems sophserve,vllm,llama.cpp`.

The prompt is what the model says after some token, then that token again: the answer repeats the prompt. A checkpoint
of `make_checkpoint.py qwen2-mini DIR --draft 0.02` says what follows a token by that token alone, as good as always.
Each system's server runs without guesses, then with each kind of guesses by n-grams that it has, and answers over HTTP,
at temperature 0, so many requests at once. The time is that from the last request's first token to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model
from benchmarks.serving import SYSTEMS, server
from sophserve import LLM, SamplingParams

VLLM_NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
GUESSES: dict[str, dict[str, list[str]]] = {
    "sophserve": {"off": ["--speculation", "off"], "auto": ["--speculation", "auto"]},
    "vllm": {"off": [], "ngram": ["--speculative-config", json.dumps(VLLM_NGRAM)]},
    "llama.cpp": {"off": [], **{kind: ["--spec-type", kind] for kind in ("ngram-simple", "ngram-map-k", "ngram-mod")}},
}
FIRST = 100


def said_after(model: Path, starts: list[int], tokens: int) -> list[list[int]]:
    """What the model says after each of these tokens alone."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    with LLM(str(model), max_model_len=tokens + 64) as llm:
        outputs = llm.generate([{"prompt_token_ids": [start]} for start in starts], params)
        return [list(output.outputs[0].token_ids) for output in outputs]


async def answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[float, float, int]:
    """When the first and the last tokens came, and how many there were."""
    first, tokens = 0.0, 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                first = first or time.perf_counter()
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return first, time.perf_counter(), tokens


async def measure(url: str, model: str, prompts: list[list[int]], tokens: int, turns: int) -> list[float]:
    """Tokens/s of the answers together, for each turn after the first."""
    options = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    found = []
    connector = aiohttp.TCPConnector(force_close=True)  # a server may have closed it by the next turn
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        for _ in range(1 + turns):
            bodies = [
                {**options, "model": model, "prompt": each, "stream_options": {"include_usage": True}}
                for each in prompts
            ]
            answers = await asyncio.gather(*(answer(session, url, body) for body in bodies))
            begin, end = max(first for first, _, _ in answers), max(last for _, last, _ in answers)
            assert all(count == tokens for _, _, count in answers), answers
            found.append(len(prompts) * (tokens - 1) / (end - begin))
    return found[1:]


def main() -> None:
    # A run that `timeout` ends must end the server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sophserve-peers"
    parser.add_argument("--model", type=Path, required=True, help="see above")
    parser.add_argument("--gguf", default="bf16", choices=["bf16", "q8_0", "q4_0"], help="what llama.cpp is given")
    parser.add_argument("--systems", type=lambda text: text.split(","), default=list(SYSTEMS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peers-dir", type=Path, default=cache, help=f"where peers are installed (default: {cache})")
    options = parser.parse_args()
    starts = [FIRST + 7 * place for place in range(max(options.concurrency))]
    said = said_after(options.model, starts, options.tokens)
    prompts = [[start, *each, start] for start, each in zip(starts, said, strict=True)]
    print(f"{datetime.date.today()}, {cpu_model()}, commit {commit()}, {options.model.name}\n")
    print("| system | guesses | at once | tokens/s | times without |\n|---|---|---|---|---|")
    for system in options.systems:
        plain: dict[int, float] = {}
        for kind, words in GUESSES[system].items():
            with server(system, options, words) as url:
                for batch in options.concurrency:
                    turns = asyncio.run(
                        measure(url, str(options.model), prompts[:batch], options.tokens, options.turns)
                    )
                    rate = statistics.median(turns)
                    plain.setdefault(batch, rate)
                    print(f"| {system} | {kind} | {batch} | {rate:.1f} | {rate / plain[batch]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
