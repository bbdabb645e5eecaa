"""What a model takes and costs on a device, by its config.json alone: what `plan` and `bench` reckon with.

It is measured in a process of its own, sophserve.measure.footprint_process, since that needs torch.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, SophserveError


class FootprintRequest(msgspec.Struct, kw_only=True):
    """What to measure.

    directory: holds config.json; smaller: that of the model that guesses. memory: bytes of each device; None for what
    this machine's has now. search: with how much memory devices are looked for, see Footprint.fewest_devices.
    """

    directory: str
    config: EngineConfig
    smaller: str | None = None
    memory: int | None = None
    search: list[int] = []


class Attention(msgspec.Struct, kw_only=True):
    """The attention layers with one sliding window, of one rank.

    token_bytes: of keys and values that a cached token takes, and that a new token reads of it. pair_flops: operations
    for each pair of a new token and one that it sees.
    """

    window: int | None
    token_bytes: int
    pair_flops: int


class ExpertLayers(msgspec.Struct):
    """The layers with experts, of one rank.

    count: the experts of each, of which a token goes through top_k. intermediate_size: inner features of an expert;
    held: those of them on this rank. weight_bytes: of all of them.
    """

    layers: int
    count: int
    top_k: int
    intermediate_size: int
    held: int
    weight_bytes: int

    def read_bytes(self, rows: int) -> int:
        """Those of the experts that so many rows are expected to go through, where each is as likely as any other."""
        return round(self.weight_bytes * (1 - (1 - self.top_k / self.count) ** rows))


class ImageEncoding(msgspec.Struct):
    """What encodes images, on one rank.

    parameters: numbers of all ranks. weight_bytes: of this one. token_flops: operations for each placeholder of an
    image of 1,024. cache_tokens: placeholders whose embeddings are kept, of token_bytes each.
    """

    parameters: int
    weight_bytes: int
    token_flops: int
    token_bytes: int
    cache_tokens: int


class Stage(msgspec.Struct):
    """What a rank of one stage takes: its layers, the bytes of its weights, and of a cached token."""

    layers: int
    weight_bytes: int
    kv_token_bytes: int


class Layout(msgspec.Struct):
    """Ranks as --tensor-parallel-size and --pipeline-parallel-size lay them out. kv_budget: what the KV cache of each
    may take at most. num_blocks: the KV blocks that all have room for, 0 if there is none."""

    tensor_parallel_size: int
    pipeline_parallel_size: int
    stages: list[Stage]
    kv_budget: int
    num_blocks: int

    @property
    def weight_bytes(self) -> int:
        """Of the stage that has the most."""
        return max(stage.weight_bytes for stage in self.stages)

    @property
    def kv_token_bytes(self) -> int:
        """Of the stage that has the most."""
        return max(stage.kv_token_bytes for stage in self.stages)


class SmallerModel(msgspec.Struct):
    """A model that guesses what another says, whole on one rank. parameters: its numbers. weight_bytes, kv_token_bytes:
    what it takes, which the footprint of the other counts, too."""

    parameters: int
    weight_bytes: int
    kv_token_bytes: int


class Footprint(msgspec.Struct, kw_only=True):
    """What rank 0 takes and does. Sizes in bytes; its products in operations, two for each multiplication.

    Of several stages, weight_bytes and kv_token_bytes are of the one that has the most of each; what a step reads and
    computes is of one rank of every stage together, which a token passes one after the other. layouts: then, the ways
    to split the model over as many devices.

    parameters: numbers of the whole model, of all ranks; active_parameters: those that a token is multiplied with.
    step_bytes: weights that every step reads, which those of experts and of what encodes images are not. product_flops:
    of the layers, for each token; head_flops: of the head, for each row of logits. kv_budget: what the KV cache may
    take. num_blocks: its blocks, 0 if there is no room. fewest_devices: by their memory, how many hold the weights and
    one sequence of max_model_len tokens. smaller: a model that guesses; it takes memory, and no part of what is done.
    """

    architecture: str
    dtype: str
    quantization: str | None
    layout: str
    context_length: int
    max_model_len: int
    parameters: int
    active_parameters: int
    weight_bytes: int
    step_bytes: int
    kv_token_bytes: int
    kv_budget: int
    num_blocks: int
    product_flops: int
    head_flops: int
    attention: list[Attention]
    experts: list[ExpertLayers] = []
    encoding: ImageEncoding | None = None
    smaller: SmallerModel | None = None
    layouts: list[Layout] = []
    device_memory: int
    fewest_devices: dict[int, int] = {}

    def read_bytes(self, rows: int) -> int:
        """Weights that a step of so many tokens reads."""
        return self.step_bytes + sum(each.read_bytes(rows) for each in self.experts)

    def decode_bytes(self, batch: int, length: int) -> int:
        """Bytes that a step of `batch` decoding sequences of `length` tokens reads."""
        return self.read_bytes(batch) + batch * sum(each.token_bytes * _seen(length, each) for each in self.attention)

    def decode_flops(self, batch: int, length: int) -> int:
        """Operations of that step."""
        seen = sum(each.pair_flops * _seen(length, each) for each in self.attention)
        return batch * (self.product_flops + self.head_flops + seen)

    def prefill_flops(self, length: int) -> int:
        """Operations that a prompt of `length` tokens takes, with the logits of its last."""
        pairs = sum(each.pair_flops * _pairs(length, each) for each in self.attention)
        return length * self.product_flops + self.head_flops + pairs


def measure(request: FootprintRequest) -> Footprint:
    """Measure it. Raises SophserveError."""
    done = subprocess.run(
        [sys.executable, "-m", "sophserve.measure.footprint_process"],
        input=msgspec.json.encode(request),
        capture_output=True,
    )
    if done.returncode == 2:
        raise ConfigError(done.stdout.decode())
    if done.returncode:
        raise SophserveError(f"the model could not be measured: {done.stderr.decode().strip()}")
    return msgspec.json.decode(done.stdout, type=Footprint)


def _seen(length: int, attention: Attention) -> int:
    return length if attention.window is None else min(length, attention.window)


def _pairs(length: int, attention: Attention) -> int:
    """Of new tokens and tokens seen, in a prompt."""
    full = _seen(length, attention)
    return full * (full + 1) // 2 + (length - full) * full
