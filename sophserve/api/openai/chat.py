"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.generation.logprobs import chat_logprob_rows, chat_logprobs, prompt_logprobs
from sophserve.api.generation.params import fitted, sampling_params
from sophserve.api.generation.prompts import encode_chat
from sophserve.api.generation.reply import Choice, Reply
from sophserve.api.generation.request_bodies import ChatRequest, Message
from sophserve.api.generation.run import Answer, Generation
from sophserve.api.generation.served_model import SERVING, Serving
from sophserve.api.generation.structured_output import check_structured
from sophserve.api.generation.tools import AnswerFormat, ToolUse
from sophserve.api.http.body import read_body, warn_unknown
from sophserve.api.http.request_record import name_request
from sophserve.engine.output import OutputDelta
from sophserve.errors import RequestError
from sophserve.sampling import SamplingParams
from sophserve.text.answer_events import AnswerParser, ArgumentsDelta, CallStart, Event, ParsedAnswer, ReasoningDelta
from sophserve.text.tokenizer import Tokenizer


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    serving = request.app[SERVING]
    body, unknown = await read_body(request, ChatRequest)
    model = serving.check_model(body.model)
    plan = await serving.texts.run(lambda: ChatPlan(serving, body))
    async with serving.admitted(plan.params.n, body.timeout):
        generation, answers = await chat_generation(serving, plan, "chatcmpl-")
        logprobs = plan.params.logprobs is not None
        style = ChatStyle(serving.tokenizer, logprobs, answers, body.include_reasoning is not False)
        return await Reply(request, generation, style, model, warn_unknown(unknown)).send(body)


class ChatPlan:
    """A chat request once all is checked that can be checked before its prompt is made.

    max_tokens: a longest answer that is cut to what fits into the context. Raises RequestError.
    """

    def __init__(self, serving: Serving, body: ChatRequest, max_tokens: int | None = None) -> None:
        defaults = {"max_tokens": None} | serving.sampling_defaults
        if max_tokens is not None:
            defaults["max_tokens"] = max_tokens
        self.body = body
        self.params = sampling_params(body, defaults, _logprobs(body), body.prompt_logprobs)
        self.tools = ToolUse(serving, body)
        self.messages = template_messages(body.messages)


async def chat_generation(serving: Serving, plan: ChatPlan, prefix: str) -> tuple[Generation, AnswerFormat]:
    """What a chat request asks of the engine, under an id with this prefix, and how to read the answers. Raises
    RequestError."""
    body = plan.body
    identity = name_request(prefix, body.request_id)

    def prepare() -> tuple[list[int], SamplingParams, AnswerFormat]:
        prompt = encode_chat(serving, plan.messages, body)
        answers = AnswerFormat(serving, body, plan.tools, prompt)
        params = answers.asked(fitted(plan.params, body, prompt, serving.engine.info.max_model_len))
        serving.engine.check(prompt, params)
        return prompt, params, answers

    prompt, params, answers = await serving.texts.run(prepare)
    await check_structured(serving.engine, body, params)
    return Generation(identity, [prompt], [params], body.priority or 0, body.cache_salt or ""), answers


class ChatStyle:
    """Choices with a message, or with a delta of one."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, logprobs: bool, answers: AnswerFormat, include_reasoning: bool) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._answers = answers
        self._include_reasoning = include_reasoning
        self._parsers: dict[int, AnswerParser] = {}
        self._called: set[int] = set()  # choices with a tool call

    def whole(self, index: int, answer: Answer) -> Choice:
        """A complete choice."""
        choice: Choice = {
            "index": index,
            "message": self._message(self._events(index, answer.text, finished=True)),
            "logprobs": {"content": chat_logprob_rows(self._tokenizer, answer.logprobs)} if self._logprobs else None,
            "finish_reason": self._finish_reason(index, answer.finish_reason),
            "stop_reason": answer.stop_reason,
        }
        if answer.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, answer.prompt_logprobs)
        return choice

    def opening(self, index: int, delta: OutputDelta) -> Iterator[Choice]:
        """The role."""
        yield self._chunk(index, {"role": "assistant", "content": ""})

    def parts(self, index: int, delta: OutputDelta) -> list[Choice]:
        """What the text adds to the message, with the logprobs of the tokens that came with it."""
        events = self._events(index, delta.text, finished=delta.finish_reason is not None)
        choices = [self._chunk(index, self._delta(event)) for event in events]
        if delta.logprobs:
            choices = choices or [self._chunk(index, {"content": ""})]
            choices[0]["logprobs"] = {"content": chat_logprobs(self._tokenizer, delta.logprobs)}
        return choices

    def silent(self, index: int) -> Choice:
        """No text, for tokens that have none."""
        return self._chunk(index, {"content": ""})

    def closing(self, index: int, delta: OutputDelta) -> Choice:
        """Why the choice ended."""
        choice = self._chunk(index, {})
        finish_reason = self._finish_reason(index, delta.finish_reason)
        return {**choice, "finish_reason": finish_reason, "stop_reason": delta.stop_reason}

    def _events(self, index: int, text: str, finished: bool) -> list[Event]:
        if index not in self._parsers:
            self._parsers[index] = self._answers.parser()
        parser = self._parsers[index]
        events = parser.feed(text) + (parser.finish() if finished else [])
        if any(isinstance(event, CallStart) for event in events):
            self._called.add(index)
        return [event for event in events if self._include_reasoning or not isinstance(event, ReasoningDelta)]

    def _message(self, events: list[Event]) -> dict[str, Any]:
        parsed = ParsedAnswer()
        parsed.add(events)
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
        if not parsed.content and (parsed.calls or parsed.reasoning):
            message["content"] = None
        if parsed.reasoning:
            message |= _reasoning(parsed.reasoning)
        if parsed.calls:
            message["tool_calls"] = [
                self._call_begin(call.name) | {"function": {"name": call.name, "arguments": call.arguments}}
                for call in parsed.calls
            ]
        return message

    def _delta(self, event: Event) -> dict[str, Any]:
        match event:
            case ReasoningDelta(text):
                return _reasoning(text)
            case CallStart(index, name):
                return {"tool_calls": [{"index": index, **self._call_begin(name)}]}
            case ArgumentsDelta(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return {"content": event.text}

    def _call_begin(self, name: str) -> dict[str, Any]:
        return {"id": self._answers.call_id(), "type": "function", "function": {"name": name, "arguments": ""}}

    def _finish_reason(self, index: int, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and index in self._called else reason

    def _chunk(self, index: int, delta: dict[str, Any]) -> Choice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _reasoning(text: str) -> dict[str, str]:
    # vLLM's and OpenRouter's name, and that of DeepSeek and llama.cpp: clients read one of the two.
    return {"reasoning": text, "reasoning_content": text}


def _logprobs(body: ChatRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
    return None


def template_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """A conversation for the chat template. Raises RequestError."""
    if not messages:
        raise RequestError("messages is empty; give at least one", "messages")
    return [_to_template(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _to_template(message: Message, path: str) -> dict[str, Any]:
    """The message for the chat template; only text may be in it."""
    if message.content is None and message.role != "assistant":
        raise RequestError(f"{path}.content: is missing", f"{path}.content")
    parts = message.content if isinstance(message.content, list) else []
    for index, part in enumerate(parts):
        if part.type != "text" or part.text is None:
            name = f"{path}.content[{index}]"
            raise RequestError(f"{name}: this model reads parts of type text only, got {part.type!r}", name)
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return fields
