"""/v1/chat/completions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from sophserve.api.generation.answer_pump import Reply, send_answer
from sophserve.api.generation.chat import Chat, parsed
from sophserve.api.generation.logprobs import chat_logprob_rows, chat_logprobs, prompt_logprobs
from sophserve.api.generation.request_bodies import ChatRequest
from sophserve.api.generation.run import Generation
from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.http.body import read_body, warn_unknown
from sophserve.api.openai.choices import Answer, Choice, ChoicesWriter
from sophserve.engine.output import OutputDelta
from sophserve.text.answer_events import (
    AnswerParser,
    ArgumentsDelta,
    CallBroken,
    CallStart,
    Event,
    ParsedAnswer,
    ReasoningDelta,
)
from sophserve.text.tokenizer import Tokenizer

# Characters of a whole answer that are parsed at once.
_PARSED = 4096


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    body, unknown = await read_body(request, ChatRequest)
    async with chat_answer(request.app, body) as reply:
        return await send_answer(request, reply, body.stream, warn_unknown(unknown))


@asynccontextmanager
async def chat_answer(app: web.Application, body: ChatRequest) -> AsyncIterator[Reply]:
    """The answer to a conversation. See Begin."""
    served = app[SERVED_MODEL]
    model = served.check_model(body.model)
    chat = await served.texts.run(lambda: Chat(served, body))
    async with served.admitted(chat.params.n, body.timeout):
        generation = await chat.generation("chatcmpl-")
        yield Reply(generation, ChatWriter(chat, model, generation, served.tokenizer))


class ChatWriter(ChoicesWriter):
    """Choices with a message, or with a delta of one."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, chat: Chat, model: str, generation: Generation, tokenizer: Tokenizer) -> None:
        super().__init__(chat.body, model, generation)
        self._chat = chat
        self._tokenizer = tokenizer
        self._logprobs = chat.params.logprobs is not None
        self._include_reasoning = chat.body.include_reasoning is not False
        self._parsers: defaultdict[int, AnswerParser] = defaultdict(chat.parser)
        self._called: set[int] = set()  # choices with a tool call
        self._broken: set[int] = set()  # choices with one that the model broke off
        self._parsed: defaultdict[int, ParsedAnswer] = defaultdict(ParsedAnswer)

    def add(self, index: int, delta: OutputDelta) -> None:
        """Take what a choice gained. A long text is parsed a part at a time, for no step may take long."""
        super().add(index, delta)
        answer = self._answers[index]
        if delta.finish_reason or len(answer.text) > _PARSED:
            self._parsed[index].add(self._events(index, answer.text, delta.finish_reason))
            answer.text = ""

    def _whole(self, index: int, answer: Answer) -> Choice:
        choice: Choice = {
            "index": index,
            "message": self._message(self._parsed[index]),
            "logprobs": _logprobs(chat_logprob_rows(self._tokenizer, answer.logprobs)) if self._logprobs else None,
            "finish_reason": self._finish_reason(index, answer.finish_reason),
            "stop_reason": answer.stop_reason,
        }
        if answer.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._tokenizer, answer.prompt_logprobs)
        return choice

    def _opening(self, index: int, delta: OutputDelta) -> Iterator[Choice]:
        yield self._delta_of(index, {"role": "assistant", "content": ""})

    def _parts(self, index: int, delta: OutputDelta) -> list[Choice]:
        """What the text adds to the message, with the logprobs of the tokens that came with it."""
        events = self._events(index, delta.text, delta.finish_reason)
        choices = [self._delta_of(index, self._delta(event)) for event in events if not isinstance(event, CallBroken)]
        if delta.logprobs:
            choices = choices or [self._delta_of(index, {"content": ""})]
            choices[0]["logprobs"] = _logprobs(chat_logprobs(self._tokenizer, delta.logprobs))
        return choices

    def _silent(self, index: int) -> Choice:
        return self._delta_of(index, {"content": ""})

    def _closing(self, index: int, delta: OutputDelta) -> Choice:
        finish_reason = self._finish_reason(index, delta.finish_reason)
        return self._delta_of(index, {}) | {"finish_reason": finish_reason, "stop_reason": delta.stop_reason}

    def _events(self, index: int, text: str, finish_reason: str | None) -> list[Event]:
        events = parsed(self._parsers[index], text, finish_reason)
        for kind, choices in ((CallStart, self._called), (CallBroken, self._broken)):
            if any(isinstance(event, kind) for event in events):
                choices.add(index)
        return [event for event in events if self._include_reasoning or not isinstance(event, ReasoningDelta)]

    def _message(self, parsed: ParsedAnswer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content, "refusal": None}
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
        return {"id": self._chat.call_id(), "type": "function", "function": {"name": name, "arguments": ""}}

    def _finish_reason(self, index: int, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and index in self._called - self._broken else reason

    def _delta_of(self, index: int, delta: dict[str, Any]) -> Choice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _logprobs(content: Any) -> dict[str, Any]:
    # The schema has both: models of OpenAI say in a field of its own that they refuse.
    return {"content": content, "refusal": None}


def _reasoning(text: str) -> dict[str, str]:
    # vLLM's and OpenRouter's name, and that of DeepSeek and llama.cpp: clients read one of the two.
    return {"reasoning": text, "reasoning_content": text}
