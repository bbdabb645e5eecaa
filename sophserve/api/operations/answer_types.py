"""The shapes of what operators are told. Answers may hold further fields."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


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
    """The model as it was loaded. activation_bits: 8 where some meet weights in int8."""

    names: list[str]
    max_model_len: int
    vocab_size: int
    dtype: str
    activation_bits: int
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


class Limits(TypedDict):
    """What clients may send: the size of a request's body, and how many images in it of what size each."""

    request_bytes: int
    images: int
    image_bytes: int


class ServerInfo(TypedDict):
    """How the server is set up; keys are left out."""

    version: str
    uptime: float
    model: ModelFacts
    memory: MemoryTable
    limits: Limits
    pooling: str
    sampling_defaults: dict[str, Any]
    engine_config: dict[str, Any]
    server_config: dict[str, Any]


class LiveRequest(TypedDict):
    """One answer that waits or is being generated, or that is complete and still being sent. accepted_tokens,
    rejected_tokens: guesses of its tokens that came true, and that did not. unsent_bytes: what its connection holds for
    a client that does not read."""

    id: str
    index: int
    state: Literal["running", "waiting", "sending"]
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    generated_tokens: int
    accepted_tokens: int
    rejected_tokens: int
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
