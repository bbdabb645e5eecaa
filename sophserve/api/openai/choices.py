"""Answers that are split into choices, as chat and text completions have them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from sophserve.api.generation.answer_pump import Event, Writer
from sophserve.api.generation.request_bodies import GenerationRequest, StreamOptions
from sophserve.api.generation.run import Generation
from sophserve.engine.output import OutputDelta
from sophserve.link.messages import TokenLogprob

Choice = dict[str, Any]


@dataclass
class Answer:
    """One complete choice."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    prompt_logprobs: Sequence[list[TokenLogprob] | None] | None = None
    cached_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    _logprob: float = 0.0

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, where their logprobs were asked for."""
        return self._logprob / max(1, len(self.logprobs))

    def add(self, delta: OutputDelta) -> None:
        """Append what came."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or []
        self._logprob += sum(chosen.logprob for chosen, *_ in delta.logprobs or [])
        self.prompt_logprobs = self.prompt_logprobs or delta.prompt_logprobs
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


class ChoicesWriter(Writer):
    """Words choices. kind, chunk_kind: `object` of a whole answer and of an event. keep: how many answers to a prompt
    to show, the most probable ones, which needs their logprobs; None for all."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, body: GenerationRequest, model: str, generation: Generation, keep: int | None = None) -> None:
        self._generation = generation
        self._common = {"id": generation.id, "created": int(time.time()), "model": model}
        self._options = body.stream_options or StreamOptions()
        self._shows_ids = bool(body.return_token_ids)
        self._keep = keep
        self._answers = [Answer() for _ in range(len(generation.prompts) * generation.n)]
        self._opened: set[int] = set()
        self._untold: dict[int, dict[str, list[int]]] = {}  # token ids for the next chunk of a choice

    @abstractmethod
    def _whole(self, index: int, answer: Answer) -> Choice:
        """A complete choice."""

    @abstractmethod
    def _opening(self, index: int, delta: OutputDelta) -> Iterator[Choice]:
        """What comes before a choice's first text; delta is its first one."""

    @abstractmethod
    def _parts(self, index: int, delta: OutputDelta) -> list[Choice]:
        """What a choice gains, in one chunk or several; none for nothing to show."""

    @abstractmethod
    def _silent(self, index: int) -> Choice:
        """What stands for tokens that add nothing."""

    @abstractmethod
    def _closing(self, index: int, delta: OutputDelta) -> Choice:
        """The last chunk of a choice, with its finish_reason."""

    def add(self, index: int, delta: OutputDelta) -> None:
        self._answers[index].add(delta)

    def whole(self) -> dict[str, Any]:
        choices: list[Choice] = []
        for index, answer in self._shown():
            choice = {**self._whole(index, answer), "index": len(choices)}
            if self._shows_ids:
                choice |= {"token_ids": answer.token_ids, "prompt_token_ids": self._prompt(index)}
            choices.append(choice)
        return {**self._common, "object": self.kind, "choices": choices, "usage": self._generation.usage()}

    def events(self, index: int, delta: OutputDelta) -> Iterator[Event]:
        """A chunk for each thing that a choice gained. The last one tells the token ids."""
        held: Choice | None = None
        for choice in self._choices(index, delta):
            if held:
                yield (self._chunk([held]),)
            held = choice
        if self._shows_ids:
            ids = self._untold.setdefault(index, {"prompt_token_ids": self._prompt(index)})
            ids["token_ids"] = ids.get("token_ids", []) + delta.token_ids
            if held:
                held |= ids
                self._untold[index] = {}
        if held:
            yield (self._chunk([held]),)

    def ending(self) -> bytes:
        """The usage, where it is asked for, and the mark that ends the stream."""
        usage = self._chunk([], with_usage=True) if self._options.include_usage else b""
        return usage + b"data: [DONE]\n\n"

    def _choices(self, index: int, delta: OutputDelta) -> Iterator[Choice]:
        if index not in self._opened:
            self._opened.add(index)
            yield from self._opening(index, delta)
        shown = False
        for choice in self._parts(index, delta):
            shown = True
            yield choice
        # Those who measure count chunks, and ask for a fixed length.
        if not shown and delta.token_ids and self._generation.params[0].ignore_eos:
            yield self._silent(index)
        if delta.finish_reason:
            yield self._closing(index, delta)

    def _chunk(self, choices: list[Choice], with_usage: bool = False) -> bytes:
        chunk = {**self._common, "object": self.chunk_kind}
        if with_usage or self._options.continuous_usage_stats:
            chunk["usage"] = self._generation.usage()
        elif self._options.include_usage:
            chunk["usage"] = None
        return b"data: %b\n\n" % msgspec.json.encode({**chunk, "choices": choices})

    def _prompt(self, index: int) -> list[int]:
        """The prompt of a choice."""
        return self._generation.prompts[index // self._generation.n]

    def _shown(self) -> list[tuple[int, Answer]]:
        """The answers to show, with the numbers of their choices."""
        numbered, n = list(enumerate(self._answers)), self._generation.n
        if self._keep is None:
            return numbered
        groups = [numbered[start : start + n] for start in range(0, len(numbered), n)]
        return [
            entry
            for group in groups
            for entry in sorted(group, key=lambda entry: entry[1].mean_logprob, reverse=True)[: self._keep]
        ]
