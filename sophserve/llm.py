"""The embedded API: LLM, which blocks, and AsyncLLM, whose answers are async iterators. Objects have vLLM's shapes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import msgspec
from tqdm import tqdm

from sophserve.background import Background
from sophserve.checkpoint import read_config, read_generation_config, resolve_model
from sophserve.config import ServerConfig
from sophserve.engine.engine import Engine
from sophserve.engine.interleave import interleave
from sophserve.engine.output import OutputDelta
from sophserve.errors import ConfigError, SophserveError
from sophserve.image_prompt import template_with_images
from sophserve.link.messages import TokenLogprob
from sophserve.llm_prompts import EnginePrompt, Message, Prompt, chat_prompt, engine_prompt, listed
from sophserve.media.limits import media_limits
from sophserve.media.loader import ImageLoader, image_loader
from sophserve.options import engine_config
from sophserve.preflight import check
from sophserve.profile_format import ProfileOptions
from sophserve.sampling import SamplingParams, sampling_defaults
from sophserve.text.json_schema import prepared_form
from sophserve.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

# Bytes: images of Pillow's come uncompressed.
_LARGEST_IMAGE = 1 << 30

MakePrompt = Callable[[], Awaitable[EnginePrompt]]


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
        config = engine_config({"model": str(model), **options})
        directory = resolve_model(config.model)
        check(config, directory)
        self.engine = Engine(config, directory)
        self.images: ImageLoader | None = None
        self.engine.start_worker()

    async def start(self) -> None:
        """Wait until the model is loaded. `async with` does it."""
        try:
            directory, override = self.engine.directory, self.engine.config.chat_template
            self.tokenizer = await asyncio.to_thread(Tokenizer.from_directory, directory)
            limits = media_limits(self.engine.config, ServerConfig())
            limits = msgspec.structs.replace(limits, bytes=_LARGEST_IMAGE, memory=None)
            self.images = await asyncio.to_thread(image_loader, directory, read_config(directory), limits)
            processor = self.images.processor if self.images else None
            self.chat_template = template_with_images(directory, self.tokenizer, override, processor)
            await self.engine.start(self.tokenizer)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Abort what runs and stop the worker."""
        await self.engine.close()
        if self.images:
            await self.images.close()

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
        return SamplingParams(**sampling_defaults(read_generation_config(self.engine.directory)))

    def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield everything generated so far after each step. Closing the iterator aborts the request. Raises
        RequestError for what cannot be generated."""
        return self._outputs(partial(self._prompt, prompt), sampling_params, request_id)

    def chat(
        self,
        messages: list[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **template_options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """`generate` for a conversation; template_options go to the chat template. Images are parts of type image_url,
        or image_pil with an image of Pillow's."""
        return self._outputs(partial(self._conversation, messages, **template_options), sampling_params, request_id)

    async def _prompt(self, prompt: Prompt) -> EnginePrompt:
        return await engine_prompt(prompt, self.tokenizer, self.images)

    async def _conversation(self, messages: list[Message], **template_options: Any) -> EnginePrompt:
        return await chat_prompt(messages, self.chat_template, self.tokenizer, self.images, **template_options)

    async def _outputs(
        self,
        prompt: MakePrompt,
        sampling_params: SamplingParams | None,
        request_id: str | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        async with aclosing(self._answers(await prompt(), sampling_params, request_id)) as answers:
            async for answer in answers:
                yield answer.output()

    async def _answers(
        self, prompt: EnginePrompt, sampling_params: SamplingParams | None, request_id: str | None = None
    ) -> AsyncGenerator[_Answers, None]:
        """The same object after each step, with what is there by then."""
        given = sampling_params or self.default_sampling_params()
        # A copy: what a caller changes in its own later does not matter here.
        params = msgspec.structs.replace(given, begins_text=given.begins_text or prompt.begins_text)
        if params.structured:
            params.structured, not_kept = prepared_form(params.structured)
            if not_kept:
                log.warning("not kept to: %s", ", ".join(not_kept))
        answers = _Answers(request_id or uuid4().hex, prompt.text, prompt.token_ids, params.n, self.tokenizer)
        self.engine.check(prompt.token_ids, params, prompt.items)
        sources = [
            self.engine.generate(
                prompt.token_ids,
                params,
                answers.request_id,
                index,
                cache_salt=prompt.cache_salt,
                items=prompt.items,
            )
            for index in range(params.n)
        ]
        async with aclosing(interleave(sources)) as deltas:
            async for index, delta in deltas:
                answers.add(index, delta)
                yield answers


class _Answers:
    """A RequestOutput in the making: a step adds to it what the step gave, however long the answers are."""

    def __init__(
        self, request_id: str, prompt: str | None, prompt_token_ids: list[int], n: int, tokenizer: Tokenizer
    ) -> None:
        self.request_id = request_id
        self._whole = RequestOutput(request_id, prompt, prompt_token_ids, [CompletionOutput(each) for each in range(n)])
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._shown = list(self._whole.outputs)
        self._changed: set[int] = set()
        self._tokenizer = tokenizer

    def add(self, index: int, delta: OutputDelta) -> None:
        """Take what a step gave one of the answers."""
        answer, request = self._whole.outputs[index], self._whole
        self._changed.add(index)
        self._texts[index].append(delta.text)
        answer.token_ids += delta.token_ids
        answer.finish_reason = delta.finish_reason
        answer.stop_reason = delta.stop_reason
        request.num_cached_tokens = max(request.num_cached_tokens, delta.cached_tokens)
        if delta.logprobs is not None:
            answer.logprobs = answer.logprobs or []
            answer.logprobs += map(self._logprobs, delta.logprobs)
            answer.cumulative_logprob = (answer.cumulative_logprob or 0.0) + sum(e[0].logprob for e in delta.logprobs)
        if delta.prompt_logprobs is not None:
            request.prompt_logprobs = [
                None if entries is None else self._logprobs(entries) for entries in delta.prompt_logprobs
            ]

    def output(self) -> RequestOutput:
        """A copy that does not change any more. Only the answers that changed since the last one are copied."""
        for index in self._changed:
            answer, texts = self._whole.outputs[index], self._texts[index]
            texts[:] = ["".join(texts)]
            logprobs = None if answer.logprobs is None else answer.logprobs.copy()
            self._shown[index] = replace(answer, text=texts[0], token_ids=answer.token_ids.copy(), logprobs=logprobs)
        self._changed.clear()
        return replace(self._whole, outputs=self._shown.copy())

    def _logprobs(self, entries: list[TokenLogprob]) -> dict[int, Logprob]:
        text = self._tokenizer.token_text
        return {entry.token_id: Logprob(entry.logprob, entry.rank, text(entry.token_id)) for entry in entries}


class LLM:
    """An engine for scripts:

    with LLM(model="/data/Qwen2-7B") as llm:
        print(llm.generate("Once upon a time", SamplingParams(max_tokens=100))[0].outputs[0].text)

    Options are those of the command line with underscores. Raises SophserveError when they cannot work.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._llm = AsyncLLM(model, **options)
        self._background = Background("sophserve")
        self._closed = False
        try:
            self._background.run(self._llm.start())
        except BaseException:
            self._background.close()
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer all prompts (texts, token ids, or vLLM's dictionaries of them, also with images) together, in their
        order. Raises RequestError for what cannot be generated."""
        each = [partial(self._llm._prompt, prompt) for prompt in listed(prompts)]
        return self._answer(each, sampling_params, use_tqdm)

    def chat(
        self,
        messages: list[Message] | list[list[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or several; template_options go to the chat template."""
        many = [messages] if messages and isinstance(messages[0], dict) else messages
        chats = [partial(self._llm._conversation, chat, **template_options) for chat in many]  # type: ignore[arg-type]
        return self._answer(chats, sampling_params, use_tqdm)

    def start_profile(self, max_record_num: int = 1_000_000, mode: int = 1, directory: str | Path = ".") -> list[Path]:
        """Record what the device does, as `sophserve.profile`; returns the folders, one for each rank."""
        self._check_open()
        return self._background.run(self._llm.start_profile(max_record_num, mode, directory))

    def stop_profile(self) -> list[Path]:
        """End it; returns the folders, more than before if the worker was restarted."""
        self._check_open()
        return self._background.run(self._llm.stop_profile())

    def default_sampling_params(self) -> SamplingParams:
        """The checkpoint's own sampling parameters (generation_config.json)."""
        return self._llm.default_sampling_params()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._llm.tokenizer

    def close(self) -> None:
        """Stop the worker. Done by `with`, too."""
        if not self._closed:
            self._closed = True
            self._background.run(self._llm.close())
            self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(
        self,
        prompts: Sequence[MakePrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        self._check_open()
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params: list[SamplingParams | None] = [sampling_params] * len(prompts)
        else:
            params = list(sampling_params)
            if len(params) != len(prompts):
                raise ConfigError(f"{len(prompts)} prompts but {len(params)} sampling_params; give one or as many")
        return self._background.run(_gather(self._llm, prompts, params, use_tqdm))

    def _check_open(self) -> None:
        if self._closed:
            raise SophserveError("this LLM is closed")


async def _gather(
    llm: AsyncLLM,
    prompts: Sequence[MakePrompt],
    params: list[SamplingParams | None],
    use_tqdm: bool,
) -> list[RequestOutput]:
    with tqdm(total=len(prompts), unit="prompt", disable=not use_tqdm) as bar:

        async def last(prompt: MakePrompt, sampling_params: SamplingParams | None) -> RequestOutput:
            async with aclosing(llm._answers(await prompt(), sampling_params)) as answers:
                async for answer in answers:
                    whole = answer
            bar.update()
            return whole.output()

        tasks = [asyncio.create_task(last(*each)) for each in zip(prompts, params, strict=True)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def profile(
    llm: LLM, max_record_num: int = 1_000_000, mode: int = 1, directory: str | Path = "."
) -> Iterator[list[Path]]:
    """Record what the device does in a block:

    with sophserve.profile(llm) as folders:
        llm.generate("Once upon a time")

    The folders are those of the ranks; `sophserve profile` draws them. Raises SophserveError.
    """
    folders = llm.start_profile(max_record_num, mode, directory)
    try:
        yield folders
    finally:
        folders[:] = llm.stop_profile()
