"""The shapes of Anthropic's answers. Answers may hold further fields."""

from __future__ import annotations

from typing import Literal, TypedDict


class AnthropicError(TypedDict):
    """What is wrong, and what to change."""

    type: str
    message: str


class AnthropicErrorBody(TypedDict):
    """Every answer of /v1/messages that is an error."""

    type: Literal["error"]
    error: AnthropicError
    request_id: str


class AnthropicModel(TypedDict):
    """One name of the model, for clients of Anthropic's API."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    deprecated_at: None
    retires_at: None
    line: None
    capabilities: None
    max_input_tokens: int
    max_tokens: int


class AnthropicModelList(TypedDict):
    """A page of names of the model, for clients of Anthropic's API."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ContentBlock(TypedDict):
    """Text, thinking or a call of a tool."""

    type: str


class OutputDetails(TypedDict):
    """Tokens in which the model thought."""

    thinking_tokens: int


class MessageUsage(TypedDict):
    """Tokens used."""

    input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails


class AnthropicMessage(TypedDict):
    """The answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: str | None
    stop_sequence: str | None
    stop_details: None
    usage: MessageUsage


class TokenCount(TypedDict):
    """How many tokens the prompt has."""

    input_tokens: int
