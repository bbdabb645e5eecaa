"""The HTTP application over an engine without a model, in the test's own event loop."""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from sophserve.api.generation.served_model import ServedModel
from sophserve.api.startup import make_runner
from sophserve.config import EngineConfig, ServerConfig
from sophserve.engine.engine import Engine
from sophserve.engine.output import OutputDelta
from sophserve.engine.request import Item, Request
from sophserve.engine.sequence import Sequence, Watcher
from sophserve.grammar.check import GrammarCheck
from sophserve.grammar.compiler import AnswerGrammar, GrammarCompiler
from sophserve.link.messages import ModelInfo, PromptLogprobs, SampledTokens, TokenLogprob
from sophserve.sampling import SamplingParams
from sophserve.text.bound import characters_per_token
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer
from tests.api.images import let_see
from tests.api.openai_schema import Judge

CONTEXT = 256
END = 2
CHUNK = 512


def logprobs(token_id: int, count: int) -> list[TokenLogprob]:
    """Those of one position: the chosen token, and the `count` most probable ones."""
    top = [TokenLogprob(10 + rank, -0.5 * rank, rank) for rank in range(1, count + 1)]
    return [TokenLogprob(token_id, -0.25 - token_id / 1024, 7), *top]


def packed_logprobs(identity: int, first: int, entries: list[list[TokenLogprob]]) -> PromptLogprobs:
    """Of the prompt tokens from number `first` on."""
    flat = [entry for position in entries for entry in position]
    ids, values = array("i", (entry.token_id for entry in flat)), array("f", (entry.logprob for entry in flat))
    ranks = array("i", (position[0].rank for position in entries))
    count = len(entries[0]) - 1 if entries else 0
    return PromptLogprobs(identity, first, count, ids.tobytes(), values.tobytes(), ranks.tobytes())


class FakeEngine(Engine):
    """Repeats the prompt twice, from its token number `index` on, or says `text`, and then ends; if it obeys, as far as
    the request's grammar lets it. Text, stop conditions and checks are the engine's own. A gate that is closed holds
    every answer before its next token; failures are raised there."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(EngineConfig(model=str(directory), **options), directory)
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.text: str | None = None
        self.obeys = False
        self.context = CONTEXT
        self.params: list[SamplingParams] = []
        self.scheduling: list[tuple[int, str]] = []
        self.owners: list[str] = []
        self.prompts: list[list[int]] = []
        self.items: list[list[Item]] = []
        self.background: list[bool] = []
        self.running = 0
        self.started = False
        self.restarting = False

    @property
    def loaded(self) -> bool:
        return self.started and not self.died.is_set()

    @property
    def ready(self) -> bool:
        return self.loaded and not self.restarting

    async def start(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._info = ModelInfo(
            max_model_len=self.context,
            vocab_size=512,
            dtype="float32",
            device="fake",
            block_size=16,
            num_blocks=1000,
            kv_cache_bytes=0,
        )
        self._grammars = GrammarCheck(self.directory, 512)
        self.started = True

    async def generate(
        self,
        prompt: list[int],
        params: SamplingParams,
        request_id: str,
        index: int = 0,
        priority: int = 0,
        cache_salt: str = "",
        watcher: Watcher | None = None,
        background: bool = False,
        items: Iterable[Item] = (),
        owner: str = "",
    ) -> AsyncGenerator[OutputDelta, None]:
        self.params.append(params)
        self.items.append(list(items))
        self.scheduling.append((priority, cache_salt))
        self.owners.append(owner)
        self.background.append(background)
        self.prompts.append(prompt)
        room = self.context - len(prompt)
        most = room if params.max_tokens is None else min(room, params.max_tokens)
        request = Request(len(self.params), prompt, params, 0, most, [*params.stop_token_ids, END])
        request.blocks = [0]
        sequence = Sequence(request, self._tokenizer, request_id, index)
        self._sequences[request.id] = sequence
        sequence.watch(watcher)
        if params.prompt_logprobs is not None:
            # In parts, as chunks of a prompt give them: making all at once would stop the loop.
            for first in range(1, len(prompt), CHUNK):
                entries = [logprobs(token, params.prompt_logprobs) for token in prompt[first : first + CHUNK]]
                sequence.add_prompt_logprobs(packed_logprobs(request.id, first, entries))
                await asyncio.sleep(0)
        said = [*prompt[index % len(prompt) :], *prompt, *prompt[: index % len(prompt)]]
        if self.text is not None:
            said = self._tokenizer.encode(self.text, add_special_tokens=False)
        self.running += 1
        try:
            await self.compile(params.structured)
            grammar = self._grammar(request) if self.obeys else None
            while not sequence.finished:
                await self.gate.wait()
                await asyncio.sleep(0)
                if self.failure:
                    raise self.failure
                if not sequence.finished:
                    self._add_token(sequence, said, grammar)
                yield await self._next_delta(sequence)
        finally:
            self._forget(sequence)
            self.running -= 1

    async def embed(
        self,
        prompt: list[int],
        pooling: str,
        request_id: str,
        index: int = 0,
        priority: int = 0,
        background: bool = False,
    ) -> array[float]:
        self.prompts.append(prompt)
        self.scheduling.append((priority, pooling))
        self.background.append(background)
        self.running += 1
        try:
            await self.gate.wait()
            if self.failure:
                raise self.failure
            return array("f", [sum(prompt), -len(prompt), index, 3.0])
        finally:
            self.running -= 1

    def _grammar(self, request: Request) -> AnswerGrammar | None:
        params = request.params
        if params.structured is None:
            return None
        compiler = GrammarCompiler(self._tokenizer, self._tokenizer.vocab_size, [END])
        return AnswerGrammar(compiler, params.structured, request.end_token_ids, params.thought)

    def _add_token(self, sequence: Sequence, said: list[int], grammar: AnswerGrammar | None) -> None:
        request = sequence.request
        count = len(request.output)
        token = said[count] if count < len(said) else END
        if grammar and not (mask := int.from_bytes(grammar.mask(request.output), "little")) >> token & 1:
            token = (mask & -mask).bit_length() - 1
        request.output.append(token)
        most = request.params.logprobs
        sequence.add_tokens(SampledTokens(request.id, [token], None if most is None else [logprobs(token, most)]))

    def _forget(self, sequence: Sequence) -> None:
        if self._sequences.pop(sequence.request.id, None):
            sequence.leave()


class App:
    """A running application, and clients for it."""

    def __init__(self, engine: FakeEngine, serving: ServedModel, runner: web.AppRunner) -> None:
        self.engine = engine
        self.serving = serving
        self.runner = runner
        self.tokenizer = serving.tokenizer
        self.port: int = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = ClientSession(self.url)

    @cached_property
    def openai(self) -> AsyncOpenAI:
        """Their client; each takes longer to make than most tests last."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="secret", max_retries=0)

    @property
    def prompt(self) -> str:
        """The text that the engine was last asked to continue."""
        return self.tokenizer.decode(self.engine.prompts[-1], skip_special_tokens=False)

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any]:
        """Status and decoded body of one request."""
        data = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.post(path, **data, **options) as response:
            return response.status, await response.json()

    async def until_running(self, count: int) -> None:
        """Wait until that many answers are being generated."""
        async with asyncio.timeout(5):
            while self.engine.running != count:
                await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Everything that was started; no answer may be left."""
        await self.http.close()
        if "openai" in self.__dict__:
            await self.openai.close()
        await self.runner.cleanup()
        if self.engine._grammars:
            await self.engine._grammars.close()
        if self.serving.images:
            await self.serving.images.close()
        assert self.engine.running == 0


@cache
def texts_of(directory: Path) -> tuple[Tokenizer, ChatTemplate, int | None]:
    """What applications over a checkpoint share: its tokenizer, its template, and characters_per_token."""
    tokenizer = Tokenizer.from_directory(directory)
    return tokenizer, ChatTemplate.from_directory(directory, tokenizer), characters_per_token(tokenizer)


StartApp = Callable[..., Awaitable[App]]


@pytest.fixture
async def start_app(make_checkpoint: Callable[..., Path]) -> AsyncIterator[StartApp]:
    """`await start_app(ready=True, engine={...}, **server options)`."""
    apps = []

    async def start(
        ready: bool = True, engine: dict[str, Any] | None = None, defaults: dict[str, Any] | None = None, **options: Any
    ) -> App:
        directory = make_checkpoint("qwen2")
        fake = FakeEngine(directory, **(engine or {}))
        serving = ServedModel(fake, ServerConfig(**{"served_model_name": ["tiny", "org/tiny"], **options}))
        serving.tokenizer, serving.chat_template, serving.characters_per_token = texts_of(directory)
        serving.sampling_defaults = defaults or {}
        if ready:
            await fake.start(serving.tokenizer)
        runner = make_runner(serving)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        apps.append(App(fake, serving, runner))
        return apps[-1]

    yield start
    for app in apps:
        await app.close()


@pytest.fixture(scope="session")
def openai_schema() -> Judge:
    """OpenAI's own description of its API."""
    path = Path(
        os.environ.get("OPENAI_SCHEMA", Path(__file__).parents[2] / "../shared/data/openai-openapi/openapi.json")
    )
    if not path.is_file():
        pytest.skip("needs OpenAI's openapi.json: set OPENAI_SCHEMA to its path")
    return Judge(path)


@pytest.fixture
async def app(start_app: StartApp) -> App:
    """An application with default options."""
    return await start_app()


@pytest.fixture
async def seeing(start_app: StartApp) -> App:
    """One over a model that sees."""
    app = await start_app()
    let_see(app)
    return app


@pytest.fixture
async def client(app: App) -> AsyncIterator[AsyncAnthropic]:
    """Anthropic's, for the application."""
    async with AsyncAnthropic(base_url=app.url, api_key="secret", max_retries=0) as client:
        yield client
