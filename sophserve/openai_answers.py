"""What OpenAI-compatible servers answer, as clients read it: what they need not send may be missing."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Tokens = Annotated[int, msgspec.Meta(ge=0)]


class Part(msgspec.Struct):
    """The new part of an answer in chat's form, or all of it."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Part | None = None
    message: Part | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: Tokens | None = None


class CompletionDetails(msgspec.Struct):
    accepted_prediction_tokens: Tokens | None = None
    rejected_prediction_tokens: Tokens | None = None


class Usage(msgspec.Struct):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Answer(msgspec.Struct):
    """A whole answer, or one event of its stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


class Architecture(msgspec.Struct):
    input_modalities: list[str] | None = None


class Model(msgspec.Struct):
    id: str
    architecture: Architecture | None = None

    @property
    def sees(self) -> bool:
        """Whether it takes pictures, as far as the server tells."""
        modalities = self.architecture and self.architecture.input_modalities
        return not modalities or "image" in modalities


class Models(msgspec.Struct):
    data: list[Model]


decode_answer = msgspec.json.Decoder(Answer).decode


def error_message(error: Any) -> str:
    """The message of an error in any of the envelopes that servers use; empty where there is none."""
    while isinstance(error, dict):
        error = error.get("error") or error.get("message") or error.get("detail")
    return "" if error is None else str(error)
