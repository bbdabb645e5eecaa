"""An answer as the response object and the events of /v1/responses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec

from sophserve.api.events import Event
from sophserve.api.generation import Answer
from sophserve.api.logprobs import Entries, chat_logprobs
from sophserve.api.respond import Usage
from sophserve.api.response_input import ResponsesRequest
from sophserve.engine.output import OutputDelta
from sophserve.sampling import SamplingParams
from sophserve.text.tokenizer import Tokenizer


class ResponseWriter:
    """Words one answer: its events as it comes, and the whole object of what there is."""

    def __init__(
        self,
        identity: str,
        model: str,
        body: ResponsesRequest,
        params: SamplingParams,
        usage: Usage,
        tokenizer: Tokenizer,
    ) -> None:
        self.id = identity
        self.answer = Answer()
        self._model = model
        self._body = body
        self._params = params
        self._usage = usage
        self._tokenizer = tokenizer
        self._item_id = f"msg_{uuid4().hex}"
        self._created = int(time.time())
        self._number = 0

    def response(self) -> dict[str, Any]:
        """The response object."""
        body, reason = self._body, self.answer.finish_reason
        cut = reason == "length"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if reason is None else self._status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._model,
            "output": [self._item(self._status, [self._part()])] if reason is not None else [],
            "parallel_tool_calls": True,
            "previous_response_id": body.previous_response_id,
            "store": body.store is not False,
            "temperature": self._params.temperature,
            "text": msgspec.to_builtins(body.text) if body.text else {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": self._params.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None if reason is None else self._tokens(),
        }

    def events(self, delta: OutputDelta) -> Iterator[Event]:
        """The events that a delta makes."""
        if not self._number:
            yield self._event("response.created", response=self.response())
            yield self._event("response.in_progress", response=self.response())
            yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
            empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", **self._place, part=empty)
        self.answer.add(delta)
        if delta.text or delta.logprobs:
            logprobs = self._logprobs(delta.logprobs or [])
            yield self._event("response.output_text.delta", **self._place, delta=delta.text, logprobs=logprobs)
        if delta.finish_reason:
            part = self._part()
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **self._place, **done)
            yield self._event("response.content_part.done", **self._place, part=part)
            yield self._event("response.output_item.done", output_index=0, item=self._item(self._status, [part]))
            yield self._event(f"response.{self._status}", response=self.response())

    @property
    def _status(self) -> str:
        return "incomplete" if self.answer.finish_reason == "length" else "completed"

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self) -> dict[str, Any]:
        logprobs = self._logprobs(self.answer.logprobs)
        return {"type": "output_text", "text": self.answer.text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, entries: Entries) -> list[dict[str, Any]]:
        return chat_logprobs(self._tokenizer, entries)["content"] if self._body.wants_logprobs else []

    def _tokens(self) -> dict[str, Any]:
        used = self._usage
        return {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens},
            "output_tokens": used.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.prompt_tokens + used.output_tokens,
        }
