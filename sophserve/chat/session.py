"""The chat: what was said, how answers are sampled, and how they are asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TextIO

from sophserve.chat.client import ChatError, Client
from sophserve.chat.conversation import Conversation, Message
from sophserve.chat.markup import DIM, RESET, Markup, printable
from sophserve.chat.pictures import Picture, as_content
from sophserve.chat.store import Store, StoreError


@dataclass
class Stats:
    """What one answer took."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    first: float = 0.0  # seconds to the first token
    rest: float = 0.0  # and from there to the end

    @property
    def speed(self) -> float:
        """Tokens a second behind the first one."""
        return (self.output_tokens - 1) / self.rest if self.rest and self.output_tokens > 1 else 0.0

    def kept(self) -> dict[str, float]:
        """What is kept with the answer, as the playground has it."""
        times = {"first": round(self.first, 4), "speed": round(self.speed, 2)}
        return {"tokens": self.output_tokens, "cached": self.cached_tokens, **times}

    def short(self) -> str:
        """In a few words, as below an answer in the playground."""
        parts = [f"{self.output_tokens} tokens"] if self.output_tokens else []
        parts += [f"{self.speed:.1f} tokens/s"] if self.speed else []
        parts += [f"first after {self.first:.2f} s"] if self.first else []
        parts += [f"{self.cached_tokens} cached"] if self.cached_tokens else []
        parts += ["cut at the token limit"] if self.finish_reason == "length" else []
        return " · ".join(parts + ([] if self.finish_reason else ["stopped"]))

    def __str__(self) -> str:
        speed = f", {self.speed:.1f} tokens/s" if self.speed else ""
        return (
            f"prompt {self.prompt_tokens} tokens ({self.cached_tokens} cached), answer {self.output_tokens} tokens, "
            f"first after {self.first:.2f} s{speed}, ended by {self.finish_reason or 'you'}"
        )


@dataclass
class Session:
    """A chat. Answers go to out, coloured and with their reasoning if styled; conversations go to the store. images: go
    with the next question."""

    client: Client
    out: TextIO
    styled: bool
    conversation: Conversation = field(default_factory=Conversation)
    store: Store | None = None
    stats: list[Stats] = field(default_factory=list)
    shows_stats: bool = True
    images: list[Picture] = field(default_factory=list)

    async def ask(self, question: str) -> None:
        """Ask, and write the answer while it comes. Raises ChatError; the question is then taken back."""
        await self._ask(self.conversation.leaf, question, self.images)

    async def ask_again(self) -> None:
        """Have the last question answered again: a branch beside the last answer. Raises ChatError."""
        await self._ask(self.last_question().id)

    async def ask_instead(self, text: str) -> None:
        """Ask something in place of the last question, about its pictures as well: a branch beside it. Raises
        ChatError."""
        last = self.last_question()
        await self._ask(last.parent or None, text, last.images + self.images)

    async def _ask(self, leaf: str | None, question: str | None = None, images: Sequence[Picture] = ()) -> None:
        """Answer the leaf, or a question below it. Without an answer everything is as it was before."""
        conversation = self.conversation
        before, count = conversation.leaf, len(conversation.messages)
        conversation.leaf = leaf
        if question is not None:
            leaf = conversation.add("user", question, images).id
        try:
            await self._answer()
        finally:
            if conversation.leaf == leaf:
                conversation.leaf = before
                del conversation.messages[count:]
            elif question is not None:
                self.images = []

    def last_question(self) -> Message:
        """What was asked last. Raises ChatError."""
        for message in reversed(self.conversation.path()):
            if message.role == "user":
                return message
        raise ChatError("there is no question to go back to")

    def keep(self) -> None:
        """Keep the conversation. Raises StoreError, once: what cannot be kept now is not tried again."""
        if self.store and self.conversation.messages:
            try:
                self.store.keep(self.conversation)
            except StoreError as error:
                self.store = None
                raise StoreError(f"conversations are not kept: {error}") from None

    async def _answer(self) -> None:
        conversation = self.conversation
        writer = _Writer(self.out, self.styled)
        stats, begun = Stats(), time.monotonic()
        self.stats.append(stats)
        messages: list[dict[str, Any]] = []
        if conversation.system:
            messages.append({"role": "system", "content": conversation.system})
        for each in conversation.path():
            messages.append({"role": each.role, "content": as_content(each.content, each.images)})
        try:
            async with aclosing(self.client.stream(messages, conversation.parameters)) as pieces:
                async for piece in pieces:
                    if (piece.content or piece.reasoning) and not stats.first:
                        stats.first = time.monotonic() - begun
                    stats.finish_reason = piece.finish_reason or stats.finish_reason
                    stats.prompt_tokens = piece.prompt_tokens or stats.prompt_tokens
                    stats.output_tokens = piece.output_tokens or stats.output_tokens
                    stats.cached_tokens = piece.cached_tokens or stats.cached_tokens
                    writer.write(piece.reasoning, piece.content)
        finally:
            stats.rest = time.monotonic() - begun - stats.first
            writer.finish()
            if writer.content or stats.finish_reason:
                message = conversation.add("assistant", writer.content)
                message.reasoning, message.model = writer.reasoning, self.client.model
                message.finish, message.stopped = stats.finish_reason, not stats.finish_reason
                message.stats = stats.kept()
                if self.styled and self.shows_stats:
                    writer.note(stats.short())


class _Writer:
    """Puts an answer on the terminal, or plainly into a pipe."""

    def __init__(self, out: TextIO, styled: bool) -> None:
        self.content = self.reasoning = ""
        self._out = out
        self._styled = styled
        self._markup = Markup()
        self._thinking = False

    def write(self, reasoning: str, content: str) -> None:
        self.content += content
        self.reasoning += reasoning
        if not self._styled:
            self._put(content)
            return
        if reasoning:
            self._thinking = True
            self._put(DIM + printable(reasoning) + RESET)
        if content and self._thinking:
            self._thinking = False
            self._put("\n\n")
        self._put(self._markup.feed(content))

    def finish(self) -> None:
        self._put((self._markup.finish() if self._styled else "") + "\n")

    def note(self, text: str) -> None:
        self._put(f"{DIM}{text}{RESET}\n")

    def _put(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
