"""An answer as the response object and the events of /v1/responses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec

from sophserve.api.generation.answer_parts import Named, Part, PartWriter, encoded
from sophserve.api.generation.answer_pump import Event
from sophserve.api.generation.chat import Chat
from sophserve.api.generation.logprobs import chat_logprob_rows, chat_logprobs
from sophserve.api.generation.run import Generation
from sophserve.api.http.json_pieces import pieces
from sophserve.api.http.request_record import current_record
from sophserve.api.openai.kept_items import Items
from sophserve.api.openai.response_input import ResponsesRequest, TextOptions, custom_names
from sophserve.engine.output import OutputDelta
from sophserve.link.messages import TokenLogprob
from sophserve.text.answer_events import ContentDelta
from sophserve.text.tokenizer import Tokenizer

Item = dict[str, Any]


class ResponseWriter(PartWriter):
    """Words one answer: its events as it comes, and the whole object of what there is; each part is an item.

    given: the items that it answers, where they are kept.
    """

    def __init__(
        self, chat: Chat, model: str, body: ResponsesRequest, given: Items, generation: Generation, tokenizer: Tokenizer
    ) -> None:
        super().__init__(chat, "call_")
        # An id of our own, as it is all that a client needs to read what is stored.
        self.id = f"resp_{uuid4().hex}"
        self.given = given
        self._model = model
        self._body = body
        self._custom = custom_names(body.tools)
        self._params = chat.params
        self._generation = generation
        self._tokenizer = tokenizer
        self._finish_reason: str | None = None
        self._error: str | None = None
        self._logprobs: dict[str, list[list[TokenLogprob]]] = {}  # of texts, by the ids of their parts
        self._untold: list[list[TokenLogprob]] = []  # of tokens whose text has not come yet
        self._created = int(time.time())
        self._number = 0
        self._record = current_record.get()

    def whole(self) -> dict[str, Any]:
        body, reason = self._body, self._finish_reason
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": self.status,
            "background": body.background is True,
            "conversation": {"id": body.conversation_id} if body.conversation_id else None,
            "error": {"code": "server_error", "message": self._error} if self._error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if reason == "length" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._model,
            "output": self._items() if reason is not None else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": msgspec.to_builtins(body.reasoning) if body.reasoning else {"effort": None, "summary": None},
            "store": body.store is not False,
            "temperature": self._params.temperature,
            "text": _text(body.text),
            "tool_choice": body.tool_choice or "auto",
            "tools": list(map(_tool, body.tools or [])),
            "top_p": self._params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None if reason is None else self._tokens(),
        }

    @property
    def status(self) -> str:
        """What became of it by now."""
        if self._finish_reason is None:
            return "in_progress" if self._number or not self._body.background else "queued"
        return {"length": "incomplete", "cancelled": "cancelled", "error": "failed"}.get(
            self._finish_reason, "completed"
        )

    def said(self) -> Items:
        """The answer as items of the conversation that it ends, without logprobs."""
        items = self._items()
        for item in items:
            if item["type"] == "message":
                item["content"][0]["logprobs"] = []
        return {item["id"]: b"".join(pieces(item)) for item in items}

    def opening(self) -> Iterator[Event]:
        """The events of one that begins, for whom they should not wait for its first token."""
        return map(encoded, self._opening())

    def break_off(self, message: str | None) -> Iterator[Event]:
        """The events of an end before the end: why it failed, or None where the client cancelled it."""
        self._finish_reason, self._error = "error" if message else "cancelled", message
        yield from map(encoded, self._end_last())
        # There is no event of its own for what is cancelled.
        yield encoded(self._event(f"response.{'failed' if message else 'incomplete'}", response=self.whole()))

    def named_events(self, delta: OutputDelta) -> Iterator[Named]:
        if not self._number:
            yield from self._opening()
        self._untold += delta.logprobs or []
        for event in self._parsed(delta):
            yield from self._take(event)
        if delta.finish_reason:
            if not self.parts:
                yield from self._take(ContentDelta(""))
            elif self._untold and self.parts[-1].kind == "text":
                yield from self._gain(self.parts[-1], "")
            self._finish_reason = delta.finish_reason
            yield from self._end_last()
            yield self._event(f"response.{self.status}", response=self.whole())

    def _opening(self) -> Iterator[Named]:
        yield self._event("response.created", response=self.whole())
        yield self._event("response.in_progress", response=self.whole())

    def _begin(self, part: Part) -> Iterator[Named]:
        item = self._item(part, "in_progress")
        if part.kind == "call":
            yield self._event("response.output_item.added", output_index=self._index, item=item)
            return
        item, [empty] = item | {"content": []}, item["content"]
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        yield self._event("response.content_part.added", **self._place(part), content_index=0, part=empty)

    def _gain(self, part: Part, text: str) -> Iterator[Named]:
        untold, self._untold = self._untold, []
        match part.kind:
            case "call" if part.name not in self._custom:
                yield self._event("response.function_call_arguments.delta", **self._place(part), delta=text)
            case "reasoning":
                place = {**self._place(part), "content_index": 0}
                yield self._event("response.reasoning_text.delta", **place, delta=text)
            case "text" if text or untold:
                self._logprobs.setdefault(part.id, []).extend(untold)
                place = {**self._place(part), "content_index": 0}
                shown = untold if self._body.wants_logprobs else []
                yield self._event(
                    "response.output_text.delta", **place, delta=text, logprobs=chat_logprobs(self._tokenizer, shown)
                )

    def _end(self, part: Part) -> Iterator[Named]:
        item, place = self._item(part, self._status_of(part)), self._place(part)
        if part.kind == "call" and part.name in self._custom:
            if part.broken is None:  # only whole arguments are sure to be those of such a tool
                yield self._event("response.custom_tool_call_input.delta", **place, delta=item["input"])
                yield self._event("response.custom_tool_call_input.done", **place, input=item["input"])
        elif part.kind == "call":
            done = {"name": part.name, "arguments": part.text}
            yield self._event("response.function_call_arguments.done", **place, **done)
        else:
            [content] = item["content"]
            place["content_index"] = 0
            fields = {name: value for name, value in content.items() if name in ("text", "logprobs")}
            kind = "reasoning_text" if part.kind == "reasoning" else "output_text"
            yield self._event(f"response.{kind}.done", **place, **fields)
            yield self._event("response.content_part.done", **place, part=content)
        yield self._event("response.output_item.done", output_index=self._index, item=item)

    @property
    def _index(self) -> int:
        return len(self.parts) - 1

    def _place(self, part: Part) -> dict[str, Any]:
        return {"item_id": self._id(part), "output_index": self._index}

    def _id(self, part: Part) -> str:
        return _PREFIXES["custom" if part.name in self._custom else part.kind] + part.id

    def _event(self, kind: str, **fields: Any) -> Named:
        self._number += 1
        self._record.events = self._number  # for the event of an error
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _items(self) -> list[Item]:
        return [self._item(part, self._status_of(part)) for part in self.parts]

    def _status_of(self, part: Part) -> str:
        """Of an item that is done: a call may have been broken off, and of the others the last one."""
        ends = {"cancelled", "failed"} if part.kind == "call" else {"cancelled", "failed", "incomplete"}
        cut = part is self.parts[-1] and self.status in ends
        return "incomplete" if cut or part.broken is not None else "completed"

    def _item(self, part: Part, status: str) -> Item:
        item: Item = {"id": self._id(part), "status": status}
        match part.kind:
            case "call" if part.name in self._custom:
                call = {"call_id": part.call_id, "name": part.name, "input": _input(part.text)}
                return {**item, "type": "custom_tool_call", **call}
            case "call":
                call = {"call_id": part.call_id, "name": part.name, "arguments": part.text}
                return {**item, "type": "function_call", **call}
            case "reasoning":
                thought = {"type": "reasoning_text", "text": part.text}
                return {**item, "type": "reasoning", "summary": [], "content": [thought], "encrypted_content": None}
        entries = self._logprobs.get(part.id, []) if self._body.wants_logprobs else []
        logprobs = chat_logprob_rows(self._tokenizer, entries)
        content = {"type": "output_text", "text": part.text, "annotations": [], "logprobs": logprobs}
        return {**item, "type": "message", "role": "assistant", "content": [content]}

    def _tokens(self) -> dict[str, Any]:
        used = self._generation
        return {
            "input_tokens": used.prompt_tokens,
            # Every prompt is kept in the cache as it is computed; none is written for its own sake, and paid for.
            "input_tokens_details": {
                "cached_tokens": used.cached_tokens,
                "cache_write_tokens": 0,
                **used.image_details(),
            },
            "output_tokens": used.output_tokens,
            "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
            "total_tokens": used.prompt_tokens + used.output_tokens,
        }


def _text(options: TextOptions | None) -> dict[str, Any]:
    """What was asked of the text, as the schema has it: without what was not."""
    asked = msgspec.to_builtins(options) if options else {}
    given = {name: value for name, value in asked.items() if value is not None}
    form = given.get("format") or {"type": "text"}
    return given | {"format": {name: value for name, value in form.items() if value is not None}}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as the schema has it in answers, where a function tells also what a request may leave out."""
    return {"strict": None, "parameters": None} | tool if tool.get("type") == "function" else tool


_PREFIXES = {"reasoning": "rs_", "text": "msg_", "call": "fc_", "custom": "ctc_"}


def _input(arguments: str) -> str:
    """The text that a custom tool is called with, which is the argument of its function."""
    try:
        match json.loads(arguments):
            case {"input": str(text)}:
                return text
    except (ValueError, RecursionError):
        pass
    return arguments
