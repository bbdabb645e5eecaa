"""The shapes of all answers, from which /openapi.json is made. Answers may hold further fields."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class Error(TypedDict):
    """What is wrong, and what to change. type is a class of errors, code the very one, param the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """Every answer that is an error. Those of status 503 say in status, stage, done and total how far loading is."""

    error: Error
    status: NotRequired[str]
    stage: NotRequired[str]
    done: NotRequired[int]
    total: NotRequired[int]


class AnthropicError(TypedDict):
    """What is wrong, and what to change."""

    type: str
    message: str


class AnthropicErrorBody(TypedDict):
    """Every answer of /v1/messages that is an error."""

    type: Literal["error"]
    error: AnthropicError


class Status(TypedDict):
    """All is well."""

    status: Literal["ok"]


class ProfileFolders(TypedDict):
    """Where the records of each rank are."""

    folders: list[str]
    problems: NotRequired[list[str]]


class Version(TypedDict):
    """The version of sophserve."""

    version: str


class ModelFacts(TypedDict):
    """The model as it was loaded."""

    names: list[str]
    max_model_len: int
    vocab_size: int
    dtype: str
    device: str


class MemoryTable(TypedDict):
    """Bytes of one rank, and how many tokens and blocks the KV cache holds."""

    weights: int
    kv_cache: int
    kv_cache_tokens: int
    kv_cache_blocks: int
    block_size: int
    free: int
    total: int


class ServerInfo(TypedDict):
    """How the server is set up; keys are left out."""

    version: str
    uptime: float
    model: ModelFacts
    memory: MemoryTable
    pooling: str
    sampling_defaults: dict[str, Any]
    engine_config: dict[str, Any]
    server_config: dict[str, Any]


class LiveRequest(TypedDict):
    """One answer that waits or is being generated, or that is complete and still being sent. unsent_bytes: what its
    connection holds for a client that does not read."""

    id: str
    index: int
    state: Literal["running", "waiting", "sending"]
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    generated_tokens: int
    max_tokens: int
    unsent_bytes: int
    age: float


class LiveRequests(TypedDict):
    """Oldest first."""

    requests: list[LiveRequest]


class Cancelled(TypedDict):
    """How many answers of the request were ended."""

    id: str
    cancelled: int


class Tokens(TypedDict):
    """A text as tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(TypedDict):
    """Tokens as a text, under vLLM's and llama.cpp's name."""

    prompt: str
    content: str


class Prompt(TypedDict):
    """A conversation as the model reads it."""

    prompt: str


class Model(TypedDict):
    """One name of the model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """Every name of the model."""

    object: Literal["list"]
    data: list[Model]


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


class PromptDetails(TypedDict):
    """Tokens that were in the prefix cache."""

    cached_tokens: int


class UsageBody(TypedDict):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Choice(TypedDict):
    """What the choices of texts and chats have in common."""

    index: int
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[list[dict[str, Any] | None]]


class TextLogprobs(TypedDict):
    """One entry a token in each list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Choice):
    """One continuation."""

    text: str
    logprobs: TextLogprobs | None


class Completion(TypedDict):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageBody


class TokenLogprobs(TypedDict):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: NotRequired[list[dict[str, Any]]]


class ChatLogprobs(TypedDict):
    """One entry a token."""

    content: list[TokenLogprobs]


class CalledFunction(TypedDict):
    """arguments: JSON in a text."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """What the model wants to be called."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(TypedDict):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(Choice):
    """One answer."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(TypedDict):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class Embedding(TypedDict):
    """A vector, as numbers or in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class InputUsage(TypedDict):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: InputUsage


class OutputItem(TypedDict):
    """A message, a call or reasoning."""

    type: str
    id: NotRequired[str]


class Response(TypedDict):
    """The answer of /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    status: str
    model: str
    output: list[OutputItem]
    usage: dict[str, Any] | None


class InputTokens(TypedDict):
    """How many tokens the prompt has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class Deleted(TypedDict):
    """It is gone."""

    id: str
    object: Literal["response"]
    deleted: bool


class ContentBlock(TypedDict):
    """Text, thinking or a call of a tool."""

    type: str


class MessageUsage(TypedDict):
    """Tokens used."""

    input_tokens: int
    output_tokens: int


class AnthropicMessage(TypedDict):
    """The answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(TypedDict):
    """How many tokens the prompt has."""

    input_tokens: int
