"""What the router adds, and where it sends what: `route.py`.

- added: a stand-in for a server, which answers at once with 20 events 20 ms apart, asked for 200 streams a second,
  directly and through the router in turn: the time to the first event.
- held: 2,000 streams at once through the router, an event a second each for 10 s: how late events are.
- prefixes: requests that begin with one of 8 texts go to 4 servers of the demo model through the router: the part of
  the prompts' tokens that was cached, beside one server that is asked the same, and the most requests of a server by
  the mean.

Client, router and stand-ins share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model
from benchmarks.serving import ROOT, answers, end

TEXTS, REPLICAS, REQUESTS = 8, 4, 400
MOST_FILES = 1 << 14


async def stand_in(port: int) -> None:
    """A server that says what `events` and `every` of a request ask for."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(body["events"]):
            if number:
                await asyncio.sleep(body["every"])
            await response.write(b'data: {"at": %.6f}\n\n' % time.time())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    for path in ("/health", "/live"):
        app.router.add_get(path, lambda _: web.json_response({}))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(*words: str, port: int) -> AsyncIterator[str]:
    """A process that serves at this port, once it does."""
    url = f"http://127.0.0.1:{port}"
    started = subprocess.Popen([sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if await asyncio.to_thread(answers, url):
                break
            await asyncio.sleep(0.1)
        yield url
    finally:
        end(started)


@asynccontextmanager
async def router(replicas: list[str]) -> AsyncIterator[str]:
    port = free_port()
    words = ["-m", "sophserve", "route", "--port", str(port), "--log-level", "warning", "--replica", *replicas]
    async with process(*words, port=port) as url:
        yield url


async def stream(session: aiohttp.ClientSession, url: str, events: int, every: float) -> tuple[float, list[float]]:
    """Seconds to the first event, and of each between being said and being here."""
    begin, first, late = time.perf_counter(), 0.0, []
    prompt = random.random()
    async with session.post(
        f"{url}/v1/completions", json={"prompt": f"{prompt}", "stream": True, "events": events, "every": every}
    ) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - begin
                late.append(time.time() - json.loads(line[6:])["at"])
    assert len(late) == events, "a stream was cut"
    return first, late


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """The median and the 99th of a hundred, in ms."""
    ordered = sorted(seconds)
    return 1e3 * statistics.median(ordered), 1e3 * ordered[int(0.99 * len(ordered))]


async def at_rate(url: str, rate: float, seconds: float) -> list[float]:
    """The first events' times at so many new streams a second, whatever becomes of those before."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await stream(session, url, 1, 0.0)
        tasks, begin = [], time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
            tasks.append(asyncio.ensure_future(stream(session, url, 20, 0.02)))
        return [first for first, _ in await asyncio.gather(*tasks)]


async def added(turns: int) -> None:
    port = free_port()
    async with process(__file__, "--stand-in", str(port), port=port) as direct, router([direct]) as routed:
        print("| 200 streams a second | first event p50, ms | p99 |\n|---|---|---|")
        found: dict[str, list[float]] = {"directly": [], "through the router": []}
        for _ in range(turns):
            for name, url in zip(found, (direct, routed), strict=True):
                found[name] += await at_rate(url, 200, 5)
        for name, seconds in found.items():
            print("| {} | {:.2f} | {:.2f} |".format(name, *quantiles(seconds)))


async def held(count: int, seconds: int) -> None:
    port = free_port()
    async with process(__file__, "--stand-in", str(port), port=port) as direct, router([direct]) as url:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            tasks = []
            for _ in range(count):
                tasks.append(asyncio.ensure_future(stream(session, url, seconds, 1.0)))
                await asyncio.sleep(2 / count)
            late = [each for _, of_stream in await asyncio.gather(*tasks) for each in of_stream]
        print("\n{} streams, an event a second each: late by {:.1f} ms, p99 {:.1f} ms".format(count, *quantiles(late)))


async def ask_with_prefixes(url: str) -> tuple[int, int]:
    """Cached tokens and all of them, of prompts that begin with one of a few texts."""
    chance, cached, tokens = random.Random(1), 0, 0
    words = [f"word{number}" for number in range(1000)]
    texts = [" ".join(chance.choices(words, k=60)) for _ in range(TEXTS)]
    prompts = [texts[number % TEXTS] + " " + " ".join(chance.choices(words, k=8)) for number in range(REQUESTS)]
    chance.shuffle(prompts)
    limit = asyncio.Semaphore(8)
    async with aiohttp.ClientSession() as session:

        async def ask(prompt: str) -> None:
            nonlocal cached, tokens
            async with limit:
                body = {"model": "demo", "prompt": prompt, "max_tokens": 4}
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    usage = (await response.json())["usage"]
            cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            tokens += usage["prompt_tokens"]

        await asyncio.gather(*map(ask, prompts))
    return cached, tokens


async def requests_of(url: str) -> float:
    """How many requests a server has answered."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:request_success_total"))


async def prefixes() -> None:
    async def over(count: int, use: Callable[[list[str]], Awaitable[None]], urls: list[str]) -> None:
        if not count:
            await use(urls)
            return
        port = free_port()
        words = ["-m", "sophserve", "--model", "demo", "--port", str(port), "--kv-cache-memory", "64MiB"]
        async with process(*words, "--log-level", "warning", port=port) as url:
            await over(count - 1, use, [*urls, url])

    shares = []

    async def one(urls: list[str]) -> None:
        cached, tokens = await ask_with_prefixes(urls[0])
        shares.append(cached / tokens)

    async def routed(urls: list[str]) -> None:
        async with router(urls) as url:
            cached, tokens = await ask_with_prefixes(url)
        answered = [await requests_of(each) for each in urls]
        shares.append(cached / tokens)
        share, most = shares[1] / shares[0], max(answered) * len(urls) / sum(answered)
        print(f"\ncached: one server {shares[0]:.1%}, {len(urls)} behind the router {shares[1]:.1%}, {share:.2f} of it")
        print(
            f"requests of a server, at most: {most:.2f} of the mean ({', '.join(f'{each:.0f}' for each in answered)})"
        )

    await over(1, one, [])
    await over(REPLICAS, routed, [])


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["added", "held", "prefixes"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--stand-in", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))
    if options.stand_in:
        asyncio.run(stand_in(options.stand_in))
        return
    print(f"{cpu_model()}, commit {commit()}\n")
    if "added" in options.parts:
        asyncio.run(added(options.turns))
    if "held" in options.parts:
        asyncio.run(held(options.streams, 10))
    if "prefixes" in options.parts:
        asyncio.run(prefixes())


if __name__ == "__main__":
    main()
