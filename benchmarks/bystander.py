"""What others notice of a server's load: `bystander.py URL`, a process of its own, so that nothing but the server can
hold it up.

It keeps one streamed completion running, asks /health every 20 ms, and lets a new client, on a new connection, send a
long message and ask for a short answer twice a second. To each line on its standard input it answers with one of JSON
on what was noticed since the line before, waits that are not over included.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

HEALTH_PERIOD, NEWCOMER_PERIOD = 0.02, 0.5
PROMPT = "Once upon a time"


@dataclass
class Noticed:
    """Seconds. tokens: how many came; p50, p99, worst: the waits from token to token of a running stream; first: the
    longest wait for a stream's first token; health and newcomer: that for an answer; problems: what went wrong how
    often."""

    seconds: float = 0.0
    tokens: int = 0
    p50: float = 0.0
    p99: float = 0.0
    worst: float = 0.0
    first: float = 0.0
    health: float = 0.0
    newcomers: int = 0
    newcomer: float = 0.0
    problems: dict[str, int] = field(default_factory=dict)

    @property
    def newcomers_served(self) -> bool:
        """Whether new clients came and each had its answer."""
        return self.newcomers > 0 and not any(name.startswith("newcomer") for name in self.problems)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that is at least as large as that share of them; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Watch:
    """The three clients, and what they have seen."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._started = time.perf_counter()
        self._token: float | None = None
        self._waiting: dict[str, float] = {}
        self._clear()

    def _clear(self) -> None:
        self._gaps: list[float] = []
        self._longest: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._newcomers = 0

    def take(self) -> Noticed:
        """What was noticed since the last call."""
        now = time.perf_counter()
        gaps = [*self._gaps, now - self._token] if self._token else self._gaps
        for kind, since in self._waiting.items():
            self._longest[kind] = max(self._longest[kind], now - since)
        found = Noticed(
            seconds=now - self._started,
            tokens=len(self._gaps),
            p50=percentile(self._gaps, 0.5),
            p99=percentile(self._gaps, 0.99),
            worst=max(gaps, default=0.0),
            first=self._longest["first"],
            health=self._longest["health"],
            newcomers=self._newcomers + ("newcomer" in self._waiting),
            newcomer=self._longest["newcomer"],
            problems=dict(self._problems),
        )
        self._started = now
        self._clear()
        return found

    async def run(self) -> None:
        """Watch until cancelled."""
        async with ClientSession(timeout=ClientTimeout(None)) as session:
            async with session.get(self._url + "/v1/models") as response:
                model = (await response.json())["data"][0]
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(session, model["id"], model["max_model_len"]))
                group.create_task(self._ask_health(session))
                group.create_task(self._come_anew(model["id"]))

    async def _read(self, session: ClientSession, model: str, context: int) -> None:
        body = {"model": model, "prompt": PROMPT, "max_tokens": context - 64, "ignore_eos": True, "stream": True}
        body |= {"temperature": 0, "return_token_ids": True}
        while True:
            self._waiting.setdefault("first", time.perf_counter())
            self._token = None
            try:
                async with session.post(self._url + "/v1/completions", json=body) as response:
                    if response.status != 200:
                        self._problems[f"stream {response.status}"] += 1
                        await asyncio.sleep(0.05)
                    elif not await self._follow(response.content):
                        self._problems["stream cut off"] += 1
            except (OSError, ClientError):
                self._problems["stream lost"] += 1
                await asyncio.sleep(0.05)

    async def _follow(self, lines: AsyncIterator[bytes]) -> bool:
        """Note when each token came. Returns whether the answer was whole."""
        last = b""
        async for line in lines:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                if self._token:
                    self._gaps.append(now - self._token)
                else:
                    self._done("first")
                self._token = now
            last = line if line.strip() else last
        return last.strip() == b"data: [DONE]"

    async def _ask_health(self, session: ClientSession) -> None:
        while True:
            started = self._waiting["health"] = time.perf_counter()
            try:
                async with session.get(self._url + "/health") as response:
                    await response.read()
                    if response.status != 200:
                        self._problems[f"health {response.status}"] += 1
            except (OSError, ClientError):
                self._problems["health lost"] += 1
            self._done("health")
            await asyncio.sleep(started + HEALTH_PERIOD - time.perf_counter())

    async def _come_anew(self, model: str) -> None:
        # Long enough to be tokenized where long texts are, and of little work for the model.
        turn = {"role": "user", "content": "Hello there! " * 800}
        body = {"model": model, "messages": [turn], "truncate_prompt_tokens": 8, "max_tokens": 2, "ignore_eos": True}
        while True:
            started = self._waiting["newcomer"] = time.perf_counter()
            try:
                async with (
                    ClientSession(connector=TCPConnector(force_close=True), timeout=ClientTimeout(None)) as session,
                    session.post(self._url + "/v1/chat/completions", json=body) as response,
                ):
                    await response.read()
                    if response.status != 200:
                        self._problems[f"newcomer {response.status}"] += 1
            except (OSError, ClientError):
                self._problems["newcomer lost"] += 1
            self._newcomers += 1
            self._done("newcomer")
            await asyncio.sleep(started + NEWCOMER_PERIOD - time.perf_counter())

    def _done(self, kind: str) -> None:
        self._longest[kind] = max(self._longest[kind], time.perf_counter() - self._waiting.pop(kind))


class Bystander:
    """The process, as others use it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def noticed(self) -> Noticed:
        """What it noticed since the last call."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        return Noticed(**json.loads(line))

    async def watch(self, seconds: float) -> Noticed:
        """What it notices in so many seconds from now."""
        await self.noticed()
        await asyncio.sleep(seconds)
        return await self.noticed()


@asynccontextmanager
async def bystander(url: str) -> AsyncIterator[Bystander]:
    """One that watches the server at this URL, and has had its first tokens."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, url, stdin=pipe, stdout=pipe)
    try:
        found = Bystander(process)
        async with asyncio.timeout(60):
            while (await found.noticed()).tokens == 0:
                await asyncio.sleep(0.1)
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def main(url: str) -> None:
    watch = Watch(url)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    task = asyncio.create_task(watch.run())
    while await lines.readline():
        if task.done():
            task.result()
        print(json.dumps(asdict(watch.take())), flush=True)
    task.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
