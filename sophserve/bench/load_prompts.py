"""The prompts of a load: random ones of a length in tokens, ones that begin alike, ones about random images, those of a
file."""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from sophserve.bench.load_client import Client, Prompt
from sophserve.bench.random_images import random_image
from sophserve.errors import ConfigError

IMAGE_FORMATS = ("jpeg", "png")


def read_text(name: str) -> str:
    """A text that ships with this package."""
    return (resources.files("sophserve.bench") / "texts" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Vocabulary:
    """What random prompts are made of: token ids where the server takes them, else words of about so many tokens."""

    words: list[str]
    tokens_per_word: float
    ids: list[int] | None

    @classmethod
    async def of(cls, client: Client) -> Vocabulary:
        """As the server counts: by its tokenizer, else by the usage of two requests. Raises LoadError."""
        words = read_text("words.txt").split()
        ids = await client.tokenize(" ".join(words))
        if ids is not None:
            return cls(words, len(ids) / len(words), ids if client.target.endpoint == "completions" else None)
        lengths = [20, 80]
        counts = [await client.prompt_tokens(Prompt(" ".join(words[:length]), 1)) for length in lengths]
        if counts[0] is None or counts[1] is None or counts[1] <= counts[0]:
            return cls(words, 1.0, None)
        return cls(words, (counts[1] - counts[0]) / (lengths[1] - lengths[0]), None)

    def draw(self, tokens: int, chance: random.Random) -> list[int] | list[str]:
        """A random prompt of that length: exact with ids, about right with words."""
        if self.ids is not None:
            return chance.choices(self.ids, k=tokens)
        return chance.choices(self.words, k=max(1, round(tokens / self.tokens_per_word)))

    def prompt(self, parts: list[Any], max_tokens: int) -> Prompt:
        return Prompt(parts if self.ids is not None else " ".join(parts), max_tokens)


def random_prompts(
    vocabulary: Vocabulary, chance: random.Random, prefix_length: int, input_length: int, output_length: int
) -> Iterator[Prompt]:
    """Endlessly many prompts of `input_length` tokens of their own, after `prefix_length` that they all share."""
    prefix = vocabulary.draw(prefix_length, chance) if prefix_length else []
    while True:
        yield vocabulary.prompt([*prefix, *vocabulary.draw(input_length, chance)], output_length)


def with_images(prompts: Iterator[Prompt], chance: random.Random, size: tuple[int, int], kind: str) -> Iterator[Prompt]:
    """The prompts, each about a random image of its own, of that size and one of IMAGE_FORMATS."""
    for prompt in prompts:
        data = b64encode(random_image(chance, size, kind)).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
        content = [image, {"type": "text", "text": prompt.content}]
        yield replace(prompt, content=[{"role": "user", "content": content}])


class _Line(msgspec.Struct):
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    max_tokens: int | None = None


def read_prompts(path: str, endpoint: str, output_length: int) -> list[Prompt]:
    """Those of a JSONL file, a line each with `prompt` or `messages`, and `max_tokens` where it is not
    `output_length`. Raises ConfigError."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read --dataset-path {path}: {error.strerror}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        content = entry.prompt if entry.messages is None else entry.messages
        if content is None or (entry.prompt is not None and entry.messages is not None):
            raise ConfigError(f"{path}, line {number}: give one of prompt and messages")
        if endpoint == "completions" and entry.messages is not None:
            raise ConfigError(f"{path}, line {number} has messages: use --endpoint chat")
        if endpoint == "chat" and isinstance(entry.prompt, list):
            raise ConfigError(f"{path}, line {number} has token ids: use --endpoint completions")
        prompts.append(Prompt(content, entry.max_tokens or output_length))
    if not prompts:
        raise ConfigError(f"--dataset-path {path} holds no prompts")
    return prompts
