"""From token ids to what the reader sees: text, stop conditions, logprobs, one delta a step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from sophserve.engine.output import FinishReason, OutputDelta, PromptLogprobTable
from sophserve.engine.request import Request
from sophserve.engine.stream import LOGPROB_BYTES, TOKEN_BYTES, DeltaStream
from sophserve.errors import RequestAborted, SophserveError
from sophserve.link.messages import PromptLogprobs, SampledTokens
from sophserve.text.detokenizer import IncrementalDetokenizer, StopTextBuffer
from sophserve.text.thought import ThoughtSplitter
from sophserve.text.tokenizer import Tokenizer


@dataclass
class Timeline:
    """When the milestones of one sequence were, by time.monotonic(); 0 for those still to come. prompt_tokens: of the
    prompt, once it is computed."""

    arrived: float = field(default_factory=time.monotonic)
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    prompt_tokens: int = 0

    @property
    def queued(self) -> float:
        """Seconds from arrival to the first step."""
        return max(0.0, self.scheduled - self.arrived)


class Watcher(Protocol):
    """Who wants to know when the engine takes a sequence and when it is done with it, read or not."""

    def begin_one(self, sequence: Sequence) -> None:
        """The sequence is queued."""

    def end_one(self, sequence: Sequence) -> None:
        """The engine has nothing to do for it any more."""


class Sequence:
    """A request together with its reader. request_id and index: which answer to which client's request it is.

    accepted, rejected: its tokens that were guessed, and guesses that were computed in vain.
    cause: why the engine aborted it, if it did. embedding: the result, where pooled hidden states are wanted.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, request_id: str = "", index: int = 0) -> None:
        params = request.params
        self.request = request
        self.request_id = request_id
        self.index = index
        self.cause: RequestAborted | None = None
        self.embedding = b""
        self.accepted = self.rejected = 0
        self.stream = DeltaStream()
        self._watcher: Watcher | None = None
        self.timeline = Timeline()
        self.finish_reason: FinishReason | None = None
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            params.skip_special_tokens,
            params.spaces_between_special_tokens,
            params.shown_token_ids,
            [] if params.begins_text else request.prompt,
        )
        self._stops = StopTextBuffer(params.stop, params.include_stop_str_in_output)
        thought = params.thought
        self._splitter = ThoughtSplitter(thought.opening, thought.closing, thought.inside) if thought else None
        self._undecided = 0  # tokens that may turn out to be a thought's first ones
        self._prompt_logprobs = None if params.prompt_logprobs is None else PromptLogprobTable(len(request.prompt))

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def answer_bytes(self) -> int:
        """About how much memory its whole answer takes with its reader."""
        request, params = self.request, self.request.params
        tokens, entries = len(request.output), 0
        if params.logprobs is not None:
            entries += tokens * (params.logprobs + 1)
        if params.prompt_logprobs is not None:
            entries += len(request.prompt) * (params.prompt_logprobs + 1)
        return TOKEN_BYTES * tokens + LOGPROB_BYTES * entries

    def watch(self, watcher: Watcher | None) -> None:
        """Tell this one when the engine is done, and that it has begun."""
        self._watcher = watcher
        if watcher:
            watcher.begin_one(self)

    def leave(self) -> None:
        if self._watcher:
            self._watcher.end_one(self)

    def add_prompt_logprobs(self, part: PromptLogprobs) -> None:
        """Keep what a prefill chunk gave until the first token goes out."""
        if self._prompt_logprobs is not None:
            self._prompt_logprobs.add(part.start, part.count, part.token_ids, part.logprobs, part.ranks)

    def add_tokens(self, sampled: SampledTokens) -> int:
        """Hand the reader what the newest tokens of request.output add, as far as the first that ends the sequence;
        those behind it are taken out of the output. Returns how many are left."""
        request, tokens, logprobs = self.request, sampled.tokens, sampled.logprobs
        before, held = len(request.output) - len(tokens), len(tokens) - 1
        delta = OutputDelta(
            token_ids=tokens,
            logprobs=logprobs,
            prompt_logprobs=None if before else self._prompt_logprobs,
            cached_tokens=request.cached_tokens,
            queue_time=self.timeline.queued,
        )
        left = self._add_texts(delta, before)
        del request.output[before + left :], tokens[left:]
        if logprobs:
            del logprobs[left:]
        delta.accepted_tokens = min(left, held, sampled.drafted)
        delta.rejected_tokens = sampled.drafted - delta.accepted_tokens
        self.accepted += delta.accepted_tokens
        self.rejected += delta.rejected_tokens
        self.finish_reason = delta.finish_reason
        self.stream.put(delta)
        return left

    def end(self, reason: FinishReason, error: SophserveError | None = None) -> None:
        """End the sequence from outside."""
        if not self.finished:
            self.finish_reason = reason
            self.stream.put(OutputDelta(finish_reason=reason, error=error))

    def _add_texts(self, delta: OutputDelta, before: int) -> int:
        """Add the texts of a delta's tokens, which come behind so many others, as far as the sequence goes; returns how
        many those are."""
        if self.request.params.max_tokens == 0:
            delta.finish_reason = "length"
            return 0
        for count, token_id in enumerate(delta.token_ids, 1):
            self._add_token(delta, token_id, before + count)
            if delta.finish_reason:
                return count
        return len(delta.token_ids)

    def _add_token(self, delta: OutputDelta, token_id: int, count: int) -> None:
        """Add the text of the output's count-th token, and see whether the sequence ends with it."""
        request, params = self.request, self.request.params
        if token_id in request.end_token_ids and count >= params.min_tokens:
            delta.finish_reason = "stop"
            if token_id in params.stop_token_ids:
                delta.stop_reason = token_id
        elif count >= request.max_tokens:
            delta.finish_reason = "length"
        text = ""
        if delta.finish_reason != "stop" or params.include_stop_str_in_output:
            text = self._detokenizer.push([token_id])
        if delta.finish_reason:
            text += self._detokenizer.finish()
        thought, text = self._split(delta, text)
        delta.text += thought
        if count < params.min_tokens:
            delta.text += text
            return
        text, matched = self._stops.push(text)
        delta.text += text
        if matched is not None:
            delta.finish_reason = "stop"
            delta.stop_reason = matched
        elif delta.finish_reason:
            delta.text += self._stops.finish()

    def _split(self, delta: OutputDelta, text: str) -> tuple[str, str]:
        """What one more token gives as a thought, which no stop text ends, and as the answer proper. Counts it."""
        splitter = self._splitter
        if splitter is None:
            return "", text
        before = splitter.place
        thought, text = splitter.push(text)
        if splitter.place == "before":
            self._undecided += 1
        elif splitter.place == "inside" or (thought and before != "closed"):
            delta.reasoning_tokens += self._undecided + 1
            self._undecided = 0
        if delta.finish_reason:
            text += splitter.finish()
        return thought, text
