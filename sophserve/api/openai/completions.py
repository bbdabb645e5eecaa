"""/v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from msgspec.structs import replace

from sophserve.api.generation.answer_pump import Reply, send_answer
from sophserve.api.generation.logprobs import CompletionLogprobs, Entries, prompt_logprobs
from sophserve.api.generation.params import fitted, sampling_params
from sophserve.api.generation.prompts import each_in_slices, encode, listed, truncated
from sophserve.api.generation.request_bodies import CompletionRequest
from sophserve.api.generation.run import Generation
from sophserve.api.generation.served_model import SERVED_MODEL, ServedModel
from sophserve.api.generation.structured_output import check_structured
from sophserve.api.http.body import read_body, warn_unknown
from sophserve.api.http.request_record import name_request
from sophserve.api.openai.choices import Answer, Choice, ChoicesWriter
from sophserve.engine.output import OutputDelta
from sophserve.errors import RequestError
from sophserve.sampling import SamplingParams
from sophserve.text.detokenizer import decode_in_slices
from sophserve.text.tokenizer import Tokenizer

# Tokens of a prompt whose logprobs are echoed in one event.
_ECHOED = 64


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue one or several texts."""
    body, unknown = await read_body(request, CompletionRequest)
    async with completion_answer(request.app, body) as reply:
        return await send_answer(request, reply, body.stream, warn_unknown(unknown))


@asynccontextmanager
async def completion_answer(app: web.Application, body: CompletionRequest) -> AsyncIterator[Reply]:
    """The continuation of one or several texts. See Begin."""
    served = app[SERVED_MODEL]
    model = served.check_model(body.model)

    def plan() -> tuple[list[str | list[int]], SamplingParams, int | None]:
        best, keep = _best_of(body)
        defaults = {"max_tokens": 16} | served.sampling_defaults
        return (
            listed(body.prompt, "prompt"),
            sampling_params(best, defaults, best.logprobs, _prompt_logprobs(body)),
            keep,
        )

    texts, params, keep = await served.texts.run(plan)
    async with served.admitted(len(texts) * params.n, body.timeout):
        identity = name_request("cmpl-", body.request_id)
        await check_structured(served.engine, body, params.structured)
        each = await each_in_slices(served, texts, lambda text: _prompt(served, text, body, params))
        prompts, fitting, shown = zip(*each, strict=True)
        generation = Generation(identity, list(prompts), list(fitting), body.priority or 0, body.cache_salt or "")
        yield Reply(generation, CompletionWriter(body, model, generation, keep, served.tokenizer, shown))


class CompletionWriter(ChoicesWriter):
    """Choices with text, which begins with the prompt where the request says echo; texts: what it then shows."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(
        self,
        body: CompletionRequest,
        model: str,
        generation: Generation,
        keep: int | None,
        tokenizer: Tokenizer,
        texts: Sequence[str],
    ) -> None:
        super().__init__(body, model, generation, keep)
        self._body = body
        self._tokenizer = tokenizer
        self._texts = texts
        skip_special_tokens = generation.params[0].skip_special_tokens
        before: Sequence[Sequence[int]] = [()] * len(texts) if body.echo else generation.prompts
        self._logprobs = [
            CompletionLogprobs(tokenizer, skip_special_tokens, prompt) for prompt in before for _ in range(generation.n)
        ]

    def _whole(self, index: int, answer: Answer) -> Choice:
        token_ids: list[Sequence[int]] = [[chosen.token_id for chosen, *_ in answer.logprobs]]
        entries: list[Entries] = [answer.logprobs]
        text = answer.text
        if self._body.echo:
            number = index // self._generation.n
            text = self._texts[number] + text
            token_ids.insert(0, self._generation.prompts[number])
            entries.insert(0, answer.prompt_logprobs or [])
        choice: Choice = {"index": index, "text": text, "logprobs": None}
        if self._body.logprobs is not None:
            choice["logprobs"] = self._logprobs[index].rows(token_ids, entries)
        choice["finish_reason"], choice["stop_reason"] = answer.finish_reason, answer.stop_reason
        if self._body.prompt_logprobs is not None and answer.prompt_logprobs is not None:
            most = self._body.prompt_logprobs
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, answer.prompt_logprobs, most)
        return choice

    def _opening(self, index: int, delta: OutputDelta) -> Iterator[Choice]:
        """The prompt, where it is echoed: its text, and its logprobs in parts."""
        if not self._body.echo:
            return
        number = index // self._generation.n
        text, token_ids, entries = self._texts[number], self._generation.prompts[number], delta.prompt_logprobs or []
        for start in range(0, len(token_ids) if entries else 1, _ECHOED):
            part = slice(start, start + _ECHOED)
            yield self._shaped(index, "" if start else text, token_ids[part], entries[part])

    def _parts(self, index: int, delta: OutputDelta) -> list[Choice]:
        """Text, with the logprobs of the tokens that came with it."""
        entries = delta.logprobs or []
        token_ids = [chosen.token_id for chosen, *_ in entries]
        return [self._shaped(index, delta.text, token_ids, entries)] if delta.text or entries else []

    def _silent(self, index: int) -> Choice:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": None}

    def _closing(self, index: int, delta: OutputDelta) -> Choice:
        return self._silent(index) | {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}

    def _shaped(self, index: int, text: str, token_ids: list[int], entries: Entries) -> Choice:
        wanted = self._body.logprobs is not None
        logprobs = self._logprobs[index].add(token_ids, entries) if wanted else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}


def _best_of(body: CompletionRequest) -> tuple[CompletionRequest, int | None]:
    """The request for best_of answers with the logprobs that they are compared by, and how many of them to keep."""
    most, n = body.best_of, body.n or 1
    if not most or most == n == 1:
        return body, None
    if not n <= most <= 128:
        raise RequestError(f"best_of must be between n ({n}) and 128, got {most}", "best_of")
    if body.stream:
        raise RequestError("best_of cannot be streamed, as the best is known at the end; leave out stream", "best_of")
    return replace(body, n=most, logprobs=body.logprobs or 0), n


def _prompt(
    served: ServedModel, text: str | list[int], body: CompletionRequest, params: SamplingParams
) -> tuple[list[int], SamplingParams, str]:
    """The tokens of one prompt, its parameters, and what echo shows of it. Raises RequestError."""
    context = served.engine.info.max_model_len
    tokens = text
    if isinstance(tokens, str):
        special, bounded = body.add_special_tokens is not False, body.truncate_prompt_tokens is None
        tokens = encode(served, tokens, special, bounded)
    tokens = truncated(tokens, body, context)
    params = fitted(params, body, tokens, context)
    served.engine.check(tokens, params)
    if not body.echo:
        return tokens, params, ""
    if isinstance(text, str) and body.truncate_prompt_tokens is None:
        return tokens, params, text
    return tokens, params, decode_in_slices(served.tokenizer, tokens, params.skip_special_tokens)


def _prompt_logprobs(body: CompletionRequest) -> int | None:
    """How many the engine has to give: echo shows the prompt's logprobs as if they were the answer's."""
    counts = [body.prompt_logprobs, body.logprobs if body.echo else None]
    return max((count for count in counts if count is not None), default=None)
