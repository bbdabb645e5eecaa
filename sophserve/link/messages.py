"""The messages between the engine and its workers. A step plan carries only what changed."""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate, pairwise
from typing import Any, Literal

import msgspec

from sophserve.config import EngineConfig
from sophserve.link.images import EncodeImage, PlacedImage
from sophserve.profile_format import ProfileOptions
from sophserve.sampling import SamplingParams, StructuredOutput

# What becomes of a prompt's hidden states: that of its last token, their mean, or the logits of these tokens to be the
# next one.
Pooling = Literal["last", "mean"] | tuple[int, ...]


class Places(msgspec.Struct, array_like=True, frozen=True):
    """Where the ranks of a group on several hosts are. counts: the ranks of each host, in order. addresses: where each
    rank takes connections of other hosts', which `token` tells from any other."""

    counts: list[int]
    addresses: list[tuple[str, int]]
    token: bytes

    def host_of(self, rank: int) -> int:
        """The number of a rank's host."""
        return bisect(list(accumulate(self.counts)), rank)

    def ranks(self, host: int) -> range:
        """Those of a host."""
        first = sum(self.counts[:host])
        return range(first, first + self.counts[host])


class LoadModel(msgspec.Struct, array_like=True, tag="load"):
    """The first message: what to load. num_blocks: how many KV blocks to make, where the scheduler counts on them.
    places: where there are several hosts."""

    directory: str
    config: EngineConfig
    rank: int
    world_size: int
    log_level: int
    log_json: bool = False
    num_blocks: int | None = None
    places: Places | None = None

    @property
    def stage(self) -> int:
        """The number of this rank's stage."""
        return self.rank // self.config.tensor_parallel_size

    @property
    def answering(self) -> int:
        """The rank that samples and gives the results: the first of the last stage."""
        return self.world_size - self.config.tensor_parallel_size

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The ranks of each group that does something together: every stage; the first rank of each stage, which passes
        on what it computed, with all of the next one; all of them. For one stage the first and the last are the same.
        """
        size = self.config.tensor_parallel_size
        stages = [tuple(range(first, first + size)) for first in range(0, self.world_size, size)]
        if len(stages) == 1:
            return stages
        edges = [(before[0], *behind) for before, behind in pairwise(stages)]
        return [*stages, *edges, tuple(range(self.world_size))]

    @property
    def ranks_here(self) -> range:
        """Those on this rank's host."""
        return self.places.ranks(self.places.host_of(self.rank)) if self.places else range(self.world_size)

    @property
    def local_rank(self) -> int:
        """This rank's number on its host."""
        return self.rank - self.ranks_here.start


class AddedRequest(msgspec.Struct, array_like=True):
    """A request that the worker does not hold yet, or holds no more because it was preempted.

    token_ids: int32 little-endian, prompt and what has been generated. computed: how many of them are in the KV cache.
    end_token_ids: the tokens that may not be chosen before params.min_tokens are there. bad_word_ids: token sequences
    that the answer must not contain. allowed: params.allowed_token_ids as bits. pooling: no token is wanted, but one
    vector of the prompt's hidden states. images: in the order of their places. owner: whose other answers this one may
    be like. prediction: int32 little-endian, what the answer is thought to be.
    """

    id: int
    token_ids: bytes
    prompt_length: int
    computed: int
    seed: int
    params: SamplingParams
    end_token_ids: list[int]
    bad_word_ids: list[list[int]]
    allowed: bytes | None = None
    pooling: Pooling | None = None
    images: list[PlacedImage] = []
    owner: bytes = b""
    prediction: bytes = b""


class ScheduledRequest(msgspec.Struct, array_like=True):
    """Compute `count` more tokens of a request. new_blocks are appended to its block table. A request whose last token
    is computed by this is sampled. Behind that token the worker may compute up to `drafts` more, which it guesses: it
    gives as many of them as are what is sampled in their places, and one more."""

    id: int
    count: int
    new_blocks: list[int]
    drafts: int = 0


class StepPlan(msgspec.Struct, array_like=True, tag="step"):
    """One step: forget `dropped`, take `added`, forget the images with the digests in `forgotten`, encode `encoded`,
    compute `scheduled`, those with one token first."""

    step: int
    dropped: list[int]
    added: list[AddedRequest]
    scheduled: list[ScheduledRequest]
    encoded: list[EncodeImage] = []
    forgotten: list[bytes] = []


class CompileGrammar(msgspec.Struct, array_like=True, tag="grammar"):
    """A request with this grammar is on its way: compile it beside the steps until it comes."""

    structured: StructuredOutput


class StartProfile(msgspec.Struct, array_like=True, tag="start_profile"):
    """Record every step from now on, in a folder of `directory` with `index` in its name."""

    directory: str
    index: int
    options: ProfileOptions


class StopProfile(msgspec.Struct, array_like=True, tag="stop_profile"):
    """Record no more steps."""


class TokenLogprob(msgspec.Struct, array_like=True, gc=False):
    """One token's log-probability under the model, and its rank among the vocabulary (1 = most probable)."""

    token_id: int
    logprob: float
    rank: int


class SampledTokens(msgspec.Struct, array_like=True):
    """The next tokens of a request; with logprobs for each of them the token itself first, then the most probable ones.
    drafted: how many guesses were computed for it, of which all tokens but the last came true.

    There are none while it is not known what the grammar allows: a later step gives them and computes nothing else of
    the request, whose last token does not count as computed until then. With an error the tokens mean nothing, and the
    request cannot go on for that reason.
    """

    id: int
    tokens: list[int]
    logprobs: list[list[TokenLogprob]] | None = None
    error: str | None = None
    drafted: int = 0


class PromptLogprobs(msgspec.Struct, array_like=True):
    """Logprobs of the prompt tokens from position `start` on, little-endian: for each of them the token itself and then
    the `count` most probable ones, token_ids int32 and logprobs float32 `[tokens, 1 + count]`; and its rank, int32
    `[tokens]`."""

    id: int
    start: int
    count: int
    token_ids: bytes
    logprobs: bytes
    ranks: bytes


class Embedding(msgspec.Struct, array_like=True):
    """What became of the hidden states of a prompt (see Pooling): float32 little-endian, not normalized."""

    id: int
    values: bytes


class StepResult(msgspec.Struct, array_like=True, tag="result"):
    """What a step gave. All that it computed of requests that were not to be sampled holds."""

    step: int
    sampled: list[SampledTokens]
    prompt_logprobs: list[PromptLogprobs]
    embeddings: list[Embedding] = []


class Progress(msgspec.Struct, array_like=True, tag="progress"):
    """How far loading is; done and total in bytes, 0 where unknown."""

    stage: str
    done: int = 0
    total: int = 0


class EncoderInfo(msgspec.Struct, array_like=True):
    """What encodes images. pieces: in which an image is encoded. cost: how many prompt tokens take as long as all
    pieces of an image, for each of its placeholders. cache_tokens: placeholders whose embeddings are kept."""

    pieces: int
    cost: float
    cache_tokens: int


class ModelInfo(msgspec.Struct, array_like=True, tag="ready"):
    """The model is loaded; what the engine must know about it. Sizes in bytes; memory is that of rank 0's device, once
    the weights and the KV cache are there. prompt_logprobs_cost: how many prompt tokens take as long as one whose
    logprobs are asked for. generates: whether it has a head, without which it only makes embeddings. encoder: of a
    model that sees. activation_bits: 8 where activations meet some weights in int8."""

    max_model_len: int
    vocab_size: int
    dtype: str
    device: str
    block_size: int
    num_blocks: int
    kv_cache_bytes: int
    weight_bytes: int = 0
    free_memory: int = 0
    total_memory: int = 0
    prompt_logprobs_cost: float = 1.0
    generates: bool = True
    encoder: EncoderInfo | None = None
    activation_bits: int = 16


class LoadFailed(msgspec.Struct, array_like=True, tag="failed"):
    """Loading failed for a reason that the user can change."""

    message: str


class Profiled(msgspec.Struct, array_like=True, tag="profiled"):
    """A rank's answer to StartProfile, with the folder that it records in or why it cannot, and to StopProfile."""

    folder: str = ""
    error: str = ""


ToWorker = LoadModel | StepPlan | CompileGrammar | StartProfile | StopProfile
FromWorker = Progress | ModelInfo | LoadFailed | StepResult | Profiled

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_to_worker: Any = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker: Any = msgspec.msgpack.Decoder(FromWorker).decode
