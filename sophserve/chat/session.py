"""The conversation: what was said, how answers are sampled, and the commands that change either."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sophserve.chat.client import ChatError, Client, Message
from sophserve.chat.markup import DIM, RESET, Markup, printable
from sophserve.options import did_you_mean

PARAMETERS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


@dataclass
class Stats:
    """What one answer took."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    first: float = 0.0  # seconds to the first token
    rest: float = 0.0  # and from there to the end

    def __str__(self) -> str:
        speed = f", {(self.output_tokens - 1) / self.rest:.1f} tokens/s" if self.rest and self.output_tokens > 1 else ""
        return (
            f"prompt {self.prompt_tokens} tokens ({self.cached_tokens} cached), answer {self.output_tokens} tokens, "
            f"first after {self.first:.2f} s{speed}, ended by {self.finish_reason or 'you'}"
        )


@dataclass
class Session:
    """One conversation. Answers go to out, coloured and with their reasoning if styled."""

    client: Client
    out: TextIO
    styled: bool
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)

    async def ask(self, question: str) -> None:
        """Ask, and write the answer while it comes. Raises ChatError; the question is then taken back."""
        self.messages.append({"role": "user", "content": question})
        writer = _Writer(self.out, self.styled)
        stats, begun = Stats(), time.monotonic()
        self.stats.append(stats)
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            async with aclosing(self.client.stream(system + self.messages, self.parameters)) as pieces:
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
                self.messages.append({"role": "assistant", "content": writer.content})
            else:
                self.messages.pop()

    def run(self, line: str) -> str:
        """Do what a /command other than /retry says; returns what to tell. Raises ChatError, and EOFError to end."""
        name, _, argument = line.partition(" ")
        if name not in COMMANDS:
            raise ChatError(f"there is no command {name}{did_you_mean(name, list(COMMANDS)) or '; see /help'}")
        return COMMANDS[name].run(self, argument.strip())

    def clear(self, _: str) -> str:
        """Begin anew."""
        self.messages.clear()
        return "a new conversation"

    def set_system(self, text: str) -> str:
        """Set or show the system prompt."""
        if text:
            self.system = "" if text == "none" else text
        return f"system prompt: {self.system or 'none'}"

    def set_parameter(self, argument: str) -> str:
        """Set, reset or show sampling parameters."""
        name, _, text = argument.partition(" ")
        if name and name not in PARAMETERS:
            raise ChatError(
                f"there is no parameter {name}{did_you_mean(name, PARAMETERS) or ': ' + ', '.join(PARAMETERS)}"
            )
        if text.strip() == "default":
            self.parameters.pop(name, None)
        elif text:
            try:
                self.parameters[name] = json.loads(text)
            except ValueError:
                raise ChatError(f'{text} is no value; write a number, a "text" or a list [...]') from None
        shown = {name: self.parameters.get(name, "default")} if name else self.parameters
        return "\n".join(f"{key} = {value}" for key, value in shown.items()) or "all as the server has them"

    def save(self, path: str) -> str:
        """Write the conversation to a file."""
        kept = {"system": self.system, "parameters": self.parameters, "messages": self.messages}
        try:
            _file(path).write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ChatError(f"cannot write {path}: {error.strerror}") from None
        return f"saved {len(self.messages)} messages"

    def load(self, path: str) -> str:
        """Go on with a conversation from a file."""
        try:
            kept = json.loads(_file(path).read_text(encoding="utf-8"))
            messages = [{"role": str(each["role"]), "content": str(each["content"])} for each in kept["messages"]]
            parameters = {name: kept["parameters"][name] for name in kept["parameters"] if name in PARAMETERS}
            self.system, self.parameters, self.messages = str(kept["system"]), parameters, messages
        except OSError as error:
            raise ChatError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise ChatError(f"{path} was not written by /save") from None
        return f"loaded {len(messages)} messages"

    def undo(self, _: str) -> str:
        """Take back the last question and its answer."""
        self.take_back()
        return f"{len(self.messages)} messages are left"

    def show_stats(self, _: str) -> str:
        """Show what the last answer took, and all of them."""
        if not self.stats:
            return "nothing was asked yet"
        tokens = sum(each.output_tokens for each in self.stats)
        return f"{self.stats[-1]}\n{len(self.stats)} answers, {tokens} tokens in all"

    def help(self, _: str) -> str:
        """List the commands."""
        rows = [f"{f'{name} {command.argument}':<20}{command.help}" for name, command in COMMANDS.items()]
        keys = 'A line that ends with \\ goes on in the next; """ begins and ends several lines.\n'
        return "\n".join(rows) + f"\n{keys}Ctrl-C stops an answer, Ctrl-D ends the chat."

    def end(self, _: str) -> str:
        """End the chat."""
        raise EOFError

    def take_back(self, _: str = "") -> str:
        """Forget the last question and all behind it, and return it."""
        for index in reversed(range(len(self.messages))):
            if self.messages[index]["role"] == "user":
                question = self.messages[index]["content"]
                del self.messages[index:]
                return question
        raise ChatError("there is no question to go back to")


class _Writer:
    """Puts an answer on the terminal, or plainly into a pipe."""

    def __init__(self, out: TextIO, styled: bool) -> None:
        self.content = ""
        self._out = out
        self._styled = styled
        self._markup = Markup()
        self._thinking = False

    def write(self, reasoning: str, content: str) -> None:
        """Show more of the answer."""
        self.content += content
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
        """End the line."""
        self._put((self._markup.finish() if self._styled else "") + "\n")

    def _put(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _file(path: str) -> Path:
    if not path:
        raise ChatError("name a file")
    return Path(path).expanduser()


@dataclass(frozen=True)
class Command:
    """What one /command does with its argument; it returns what to tell."""

    argument: str
    help: str
    run: Callable[[Session, str], str]


COMMANDS = {
    "/help": Command("", "this list", Session.help),
    "/clear": Command("", "begin a new conversation", Session.clear),
    "/system": Command("[TEXT]", "set the system prompt, none for none, or show it", Session.set_system),
    "/set": Command(
        "[NAME VALUE]", "set a sampling parameter, default to reset it; or show all", Session.set_parameter
    ),
    "/retry": Command("", "have the last question answered again", Session.take_back),
    "/undo": Command("", "take back the last question and its answer", Session.undo),
    "/save": Command("FILE", "write the conversation as JSON", Session.save),
    "/load": Command("FILE", "go on with a saved conversation", Session.load),
    "/stats": Command("", "tokens and times", Session.show_stats),
    "/exit": Command("", "end the chat", Session.end),
}
