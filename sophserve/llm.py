"""The embedded API: LLM, which blocks, and AsyncLLM, whose answers are async iterators. Objects have vLLM's shapes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import msgspec
from tqdm import tqdm

from sophserve.checkpoint import read_generation_config, resolve_model
from sophserve.config import EngineConfig
from sophserve.engine.engine import Engine
from sophserve.engine.interleave import interleave
from sophserve.engine.output import OutputDelta, TokenLogprob
from sophserve.errors import ConfigError, SophserveError
from sophserve.profiling import ProfileOptions
from sophserve.sampling import SamplingParams, sampling_defaults
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer

Prompt = str | list[int]
Message = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Logprob:
    """A token's log-probability, its rank in the vocabulary (1 = most probable) and its text."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class CompletionOutput:
    """One answer as far as it is there. logprobs: for each token the chosen one and the most probable ones, by id."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing will be added."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """The answers to one prompt, `params.n` of them, as far as they are there."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0

    @property
    def finished(self) -> bool:
        """Whether all answers are complete."""
        return all(output.finished for output in self.outputs)


class AsyncLLM:
    """An engine in the running event loop:

    async with AsyncLLM(model="/data/Qwen2-7B") as llm:
        async for output in llm.generate("Once upon a time", SamplingParams(max_tokens=100)):
            print(output.outputs[0].text)

    Options are those of the command line with underscores. Raises SophserveError when they cannot work.
    """

    def __init__(self, model: str, **options: Any) -> None:
        try:
            config = msgspec.convert({"model": str(model), **options}, EngineConfig)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{error}; the options are those of the command line with underscores") from None
        directory = resolve_model(config.model)
        self.engine = Engine(config, directory)
        self.engine.start_worker()
        self._directory = directory

    async def start(self) -> None:
        """Wait until the model is loaded. `async with` does it."""
        try:
            self.tokenizer = await asyncio.to_thread(Tokenizer.from_directory, self._directory)
            override = self.engine.config.chat_template
            self.chat_template = ChatTemplate.from_directory(
                self._directory, self.tokenizer, Path(override) if override else None
            )
            await self.engine.start(self.tokenizer)
        except BaseException:
            await self.engine.close()
            raise

    async def close(self) -> None:
        """Abort what runs and stop the worker."""
        await self.engine.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start_profile(
        self, max_record_num: int = 1_000_000, mode: int = 1, directory: str | Path = "."
    ) -> list[Path]:
        """Record what the device does, as `sophserve.profile`; returns the folders, one for each rank."""
        try:
            options = msgspec.convert({"max_record_num": max_record_num, "mode": mode}, ProfileOptions)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{error}; see sophserve.profile") from None
        return await self.engine.profiling.start(options, Path(directory))

    async def stop_profile(self) -> list[Path]:
        """End it; returns the folders, more than before if the worker was restarted."""
        return await self.engine.profiling.stop()

    def default_sampling_params(self) -> SamplingParams:
        """The checkpoint's own sampling parameters (generation_config.json)."""
        return SamplingParams(**sampling_defaults(read_generation_config(self._directory)))

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield everything generated so far after each step. Closing the iterator aborts the request."""
        params = sampling_params or self.default_sampling_params()
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self.engine.check(token_ids, params)
        text = prompt if isinstance(prompt, str) else None
        outputs = [CompletionOutput(index) for index in range(params.n)]
        request = RequestOutput(request_id or uuid4().hex, text, token_ids, outputs)
        answers = [self.engine.generate(token_ids, params, request.request_id, index) for index in range(params.n)]
        async with aclosing(interleave(answers)) as deltas:
            async for index, delta in deltas:
                self._apply(request, index, delta)
                yield replace(request, outputs=[replace(output) for output in outputs])

    async def chat(
        self,
        messages: list[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **template_options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """`generate` for a conversation; template_options go to the chat template."""
        prompt = self.chat_template.render(messages, **template_options)
        token_ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        async with aclosing(self.generate(token_ids, sampling_params, request_id)) as outputs:
            async for output in outputs:
                output.prompt = prompt
                yield output

    def _apply(self, request: RequestOutput, index: int, delta: OutputDelta) -> None:
        output = request.outputs[index]
        output.text += delta.text
        output.token_ids = output.token_ids + delta.token_ids
        output.finish_reason = delta.finish_reason
        output.stop_reason = delta.stop_reason
        request.num_cached_tokens = max(request.num_cached_tokens, delta.cached_tokens)
        if delta.logprobs is not None:
            output.logprobs = (output.logprobs or []) + [self._logprobs(entries) for entries in delta.logprobs]
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + sum(e[0].logprob for e in delta.logprobs)
        if delta.prompt_logprobs is not None:
            request.prompt_logprobs = [
                None if entries is None else self._logprobs(entries) for entries in delta.prompt_logprobs
            ]

    def _logprobs(self, entries: list[TokenLogprob]) -> dict[int, Logprob]:
        text = self.tokenizer.token_text
        return {entry.token_id: Logprob(entry.logprob, entry.rank, text(entry.token_id)) for entry in entries}


class LLM:
    """An engine for scripts:

    with LLM(model="/data/Qwen2-7B") as llm:
        print(llm.generate("Once upon a time", SamplingParams(max_tokens=100))[0].outputs[0].text)

    Options are those of the command line with underscores. Raises SophserveError when they cannot work.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sophserve", daemon=True)
        self._llm = AsyncLLM(model, **options)
        self._thread.start()
        self._closed = False
        try:
            self._run(self._llm.start())
        except BaseException:
            self._stop_loop()
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer all prompts (texts or token ids) together, in their order."""
        many = [prompts] if _is_one_prompt(prompts) else prompts
        calls = [partial(self._llm.generate, prompt) for prompt in many]  # type: ignore[arg-type]
        return self._answer(calls, sampling_params, use_tqdm)

    def chat(
        self,
        messages: list[Message] | list[list[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or several; template_options go to the chat template."""
        many = [messages] if messages and isinstance(messages[0], dict) else messages
        calls = [partial(self._llm.chat, chat, **template_options) for chat in many]  # type: ignore[arg-type]
        return self._answer(calls, sampling_params, use_tqdm)

    def start_profile(self, max_record_num: int = 1_000_000, mode: int = 1, directory: str | Path = ".") -> list[Path]:
        """Record what the device does, as `sophserve.profile`; returns the folders, one for each rank."""
        self._check_open()
        return self._run(self._llm.start_profile(max_record_num, mode, directory))

    def stop_profile(self) -> list[Path]:
        """End it; returns the folders, more than before if the worker was restarted."""
        self._check_open()
        return self._run(self._llm.stop_profile())

    def default_sampling_params(self) -> SamplingParams:
        """The checkpoint's own sampling parameters (generation_config.json)."""
        return self._llm.default_sampling_params()

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self._llm.tokenizer

    def close(self) -> None:
        """Stop the worker. Done by `with`, too."""
        if not self._closed:
            self._closed = True
            self._run(self._llm.close())
            self._stop_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self,
        calls: Sequence[Callable[[SamplingParams | None], AsyncGenerator[RequestOutput, None]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        self._check_open()
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params: list[SamplingParams | None] = [sampling_params] * len(calls)
        else:
            params = list(sampling_params)
            if len(params) != len(calls):
                raise ConfigError(f"{len(calls)} prompts but {len(params)} sampling_params; give one or as many")
        return self._run(_gather(calls, params, use_tqdm))

    def _check_open(self) -> None:
        if self._closed:
            raise SophserveError("this LLM is closed")

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C among them: what runs must be aborted
            future.cancel()
            raise

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _is_one_prompt(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))


async def _gather(
    calls: Sequence[Callable[[SamplingParams | None], AsyncGenerator[RequestOutput, None]]],
    params: list[SamplingParams | None],
    use_tqdm: bool,
) -> list[RequestOutput]:
    with tqdm(total=len(calls), unit="prompt", disable=not use_tqdm) as bar:

        async def last(number: int) -> RequestOutput:
            async with aclosing(calls[number](params[number])) as outputs:
                async for output in outputs:
                    result = output
            bar.update()
            return result

        tasks = [asyncio.create_task(last(number)) for number in range(len(calls))]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
