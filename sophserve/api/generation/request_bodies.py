"""The bodies of generation requests. None, which clients send freely, is the same as leaving a field out."""

from __future__ import annotations

from typing import Any

import msgspec

from sophserve.api.generation.content import ContentPart
from sophserve.errors import RequestError


class StreamOptions(msgspec.Struct):
    """Where a stream reports how many tokens were used: in a last chunk, or in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class NamedSchema(msgspec.Struct):
    """A JSON schema as OpenAI's API wraps it. It is always kept to; strict: that it has a keyword which no grammar can
    keep to is an error."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """type "text", "json_object" or "json_schema", the last one with its schema. schema: llama.cpp's place for it."""

    type: str
    json_schema: NamedSchema | None = None
    schema: dict[str, Any] | None = None

    @property
    def strict(self) -> bool:
        """Whether all that the schema says must be kept to."""
        return bool(self.json_schema and self.json_schema.strict)


class OutputFormat(msgspec.Struct):
    """What form the text must have: `text`, `json_object`, or `json_schema` with the schema."""

    type: str
    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None

    def response_format(self) -> ResponseFormat:
        """The same as chat completions have it."""
        nested = {"json_schema": msgspec.to_builtins(self)} if self.schema is not None else {}
        return msgspec.convert({"type": self.type, **nested}, ResponseFormat)


class StructuredOutputs(msgspec.Struct):
    """vLLM's form of a constraint: one of these."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None


class GenerationRequest(msgspec.Struct, kw_only=True):
    """What chat and text completions have in common. The meanings are those of SamplingParams and Engine.generate.

    timeout: seconds that the whole answer may take.
    """

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_new_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    seed: int | None = None
    speculative_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    timeout: float | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_decoding: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    """One turn. Which roles there are is up to the chat template. function_call is OpenAI's older form of tool_calls,
    audio names a recording that only OpenAI's servers have."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None
    refusal: str | None = None
    function_call: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None


class Prediction(msgspec.Struct):
    """What the answer is thought to be: OpenAI's predicted output."""

    type: str
    content: str | list[ContentPart]


class ChatRequest(GenerationRequest, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: str | None = None
    documents: list[dict[str, Any]] | None = None
    prediction: Prediction | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None


def required(entry: msgspec.Struct, name: str, path: str) -> str:
    """A field that such an entry must have. Raises RequestError."""
    value: str | None = getattr(entry, name)
    if value is None:
        raise RequestError(f"{path}.{name}: is missing", f"{path}.{name}")
    return value
