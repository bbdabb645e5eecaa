"""The shapes of OpenAI's answers. Answers may hold further fields."""

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


class Architecture(TypedDict):
    """What a model reads, in the form of OpenRouter and llama.cpp."""

    input_modalities: list[Literal["text", "image"]]


class Model(TypedDict):
    """One name of the model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    architecture: Architecture


class ModelList(TypedDict):
    """Every name of the model."""

    object: Literal["list"]
    data: list[Model]


class PromptDetails(TypedDict):
    """Tokens that were in the prefix cache. Of a prompt with images, those of texts and of images."""

    cached_tokens: int
    text_tokens: NotRequired[int]
    image_tokens: NotRequired[int]


class CompletionDetails(TypedDict):
    """Tokens in which the model thought; those that were guessed, and guesses that were computed in vain."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UsageBody(TypedDict):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


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
    refusal: None


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
    refusal: None
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


class RankedDocument(TypedDict):
    """index: its place in the request. relevance_score: from 0 to 1."""

    index: int
    relevance_score: float
    document: NotRequired[dict[str, str]]


class Ranking(TypedDict):
    """The answer of /v1/rerank."""

    id: str
    model: str
    usage: InputUsage
    results: list[RankedDocument]


class Score(TypedDict):
    """From 0 to 1."""

    index: int
    object: Literal["score"]
    score: float


class ScoreList(TypedDict):
    """The answer of /v1/score."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
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


class ItemList(TypedDict):
    """A page of a list of items. first_id and last_id are empty where it is."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class Conversation(TypedDict):
    """A conversation, without its items."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class DeletedConversation(TypedDict):
    """It is gone."""

    id: str
    object: Literal["conversation.deleted"]
    deleted: bool
