"""The contract that every device fulfils.

Operators have the granularity of the chip: one call is one fused command. Shapes are written `[tokens, hidden]`;
activations are float16, bfloat16 or float32; accumulation is float32. `device/reference.py` defines each operator
in plain torch and is the oracle that every device is tested against.

A result, and the views of it, live until the next step is prepared, for a device may use its memory again; what a
recording returns lives until it is replayed again. Who needs one longer copies it. An argument may come back as the
result (`rms_norm` without a residual) or be overwritten by it where that is said (collectives).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from device.collectives.interface import Communicator, Hosts
from device.sample_params import SampleParams, SampleResult
from device.step_inputs import AttentionMeta as AttentionMeta
from device.step_inputs import CacheSpec as CacheSpec
from device.step_inputs import GivenEmbeddings as GivenEmbeddings
from device.step_inputs import KVCache as KVCache
from device.step_inputs import Rope as Rope
from device.step_inputs import Rotation as Rotation
from device.step_inputs import StepInputs as StepInputs
from device.weight_forms import CanonicalWeight as CanonicalWeight
from device.weight_forms import DenseWeight as DenseWeight
from device.weight_forms import ExpertsWeight as ExpertsWeight
from device.weight_forms import Float8Weight as Float8Weight
from device.weight_forms import IntWeight as IntWeight
from device.weight_forms import LatentUpWeight as LatentUpWeight
from device.weight_forms import PackedExperts as PackedExperts
from device.weight_forms import PackedLatentUp as PackedLatentUp
from device.weight_forms import PackedWeight as PackedWeight

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu"]
Role = Literal[
    "qkv",
    "attention_output",
    "gate_up",
    "down",
    "head",
    "tied_head",
    "embedding",
    "router",
    "experts",
    "latent_up",
    "other",
]
"""What a weight is in a model, since chips lay out and split the same weight differently. tied_head: the head that is
the embedding, too."""


class UnsupportedOperator(ValueError):
    """A device was asked for an operator, or a form of one, that it does not have."""


class OutOfDeviceMemory(RuntimeError):
    """An allocation did not fit in the device's memory."""


# --- the device ----------------------------------------------------------------------------------------------------


class Ops(Protocol):
    """The operators of a device. Every tensor is on that device unless stated. Shapes that do not fit raise
    ValueError; a form that the device lacks raises UnsupportedOperator."""

    def embedding(
        self,
        ids: Tensor,
        table: Tensor | PackedWeight,
        first: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Rows of table `[vocab, hidden]`, which may be a packed weight, for ids int32 `[tokens]`; returns `[tokens,
        hidden]`. With first, the table is a part of a larger one and first the id of its first row: ids beyond it give
        rows of 0. dtype: that of the rows, which only a quantized table needs to be told: its values are computed in
        float32 and rounded once.
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension (https://arxiv.org/abs/1910.07467).

        With residual, of x's shape, x + residual is rounded to x's dtype and normalised. Returns the result and the
        new residual (x itself without one).
        """

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension
        (https://arxiv.org/abs/1607.06450); weight and bias `[hidden]`."""

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: Activation | None = None
    ) -> Tensor:
        """`activation(x @ weight.T + bias)`: x `[tokens, in]`, bias `[out]`, returns `[tokens, out]` in x's dtype."""

    def gated_mlp(
        self,
        x: Tensor,
        gate_up: PackedWeight,
        down: PackedWeight,
        activation: Activation,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> Tensor:
        """`down(activation(gate) * up) + down_bias`; gate_up stacks gate over up, `[2 * intermediate, hidden]`, and so
        does its bias."""

    def paged_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: KVCache,
        step: AttentionMeta,
        rope: Rope | None,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Rotate q and k, write k and v into their slots, causal attention over the block table.

        q `[tokens, heads, head_dim]`, k, v `[tokens, kv_heads, head_dim]`; heads is a multiple of kv_heads. Decode
        rows and prefill rows in one call. With a window, a token sees itself and the window - 1 tokens before it.
        Returns `[tokens, heads, head_dim]`.
        """

    def paged_latent_attention(
        self,
        q: Tensor,
        latent: Tensor,
        k_rope: Tensor,
        kv: KVCache,
        kv_up: PackedWeight,
        step: AttentionMeta,
        rope: Rope,
        scale: float,
        q_up: PackedWeight | None = None,
    ) -> Tensor:
        """Multi-head latent attention (https://arxiv.org/abs/2405.04434), keys and values kept compressed.

        q `[tokens, heads * (nope_dim + rope_dim)]`, or what q_up makes that of; latent, normalised, `[tokens,
        latent_dim]`; k_rope, one for all heads, `[tokens, rope_dim]`; kv_up a packed LatentUpWeight. Rotates the rope
        parts, caches latent and rotated k_rope, and attends among latents, for any number of new tokens alike. Returns
        `[tokens, heads, v_dim]`.
        """

    def route_experts(
        self,
        x: Tensor,
        router: PackedWeight,
        top_k: int,
        scoring: Literal["softmax", "sigmoid"],
        *,
        renormalize: bool,
        scale: float = 1.0,
        groups: int = 1,
        top_groups: int = 1,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Choose top_k experts for each row of x `[tokens, hidden]` by its products with the router, `[experts,
        hidden]` of float32 or x's dtype; they stay float32.

        The top_k of softmax or sigmoid of them, within the top_groups groups whose best is largest. With bias, float32
        `[experts]` (noaux_tc, https://arxiv.org/abs/2412.19437), experts are chosen by score + bias, groups by the sum
        of their two best; the weights are the plain scores. renormalize: the weights sum to 1. scale: they are
        multiplied with it, after that. Returns ids int32 and weights float32 `[tokens, top_k]`, the best first and of
        equal ones that of the lower id.
        """

    def fused_experts(
        self,
        x: Tensor,
        experts: PackedWeight,
        ids: Tensor,
        weights: Tensor,
        activation: Activation,
        shared: Tensor | None = None,
        shared_logits: Tensor | None = None,
    ) -> Tensor:
        """Sum over a row's experts of `weight * gated_mlp(row)`, in the order of ids; `[tokens, hidden]`.

        experts is a packed ExpertsWeight, ids int32 and weights float32 `[tokens, top_k]`. Each gated_mlp is rounded to
        x's dtype, the sum is float32. shared `[tokens, hidden]` is added last, times the sigmoid of shared_logits
        `[tokens, 1]` where they are given.
        """

    def dense_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Sequence[int],
        scale: float,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Attention in both directions within consecutive segments of the given lengths (vision towers).

        q, k, v `[tokens, heads, head_dim]`; the lengths sum to tokens. q and k are rotated first, channel i paired with
        i + rotary_dim / 2. Returns q's shape.
        """

    def sample(self, logits: Tensor, params: SampleParams) -> SampleResult:
        """Choose one token for each row of float logits `[rows, vocab]`, all rows in one call."""


class CommandRecord(NamedTuple):
    """One command as a profile knows it: when it ran, by the host's monotonic clock, and what it had to do at least.

    operator: its name, and for a product the shape of the weight after a space, as in `linear 1152x896`. bytes: read
    from and written to memory, everything once. operations: multiplications and additions. detail: for people.
    """

    operator: str
    start_ns: int
    duration_ns: int
    bytes: int
    operations: int
    detail: str = ""


@dataclass(frozen=True)
class AvailableDevice:
    """A device of this machine: its number among those of its kind, what it calls itself, its memory in bytes, and
    whether it is emulated, which `--device auto` never chooses."""

    index: int
    name: str
    memory: int
    emulated: bool = False


class Device(Protocol):
    """One accelerator, or the host as one. Registered by name: `register("cmodel", CmodelDevice)`.

    Constructed as `DeviceClass(index)`; index is the rank's entry of CHIP_MAP. A class may also have a static method
    `available()`, which returns a list of AvailableDevice without keeping any of them, and raises RuntimeError where
    there is something that cannot be used. Of a class without it there is always a device.
    """

    name: str
    ops: Ops
    operators: frozenset[str]
    """The names of the operators of Ops that this device has."""
    layout: str
    """Names how quantized weights are packed, and changes whenever that does; empty where they are not kept."""
    uses_host_memory: bool
    """Whether its memory is the host's, which the devices of all ranks then share."""
    fast_in_int8: bool
    """Whether its products with weights of whole numbers are faster on activations in int8 than in 16 bits."""
    is_emulated: bool
    """Whether it imitates another device, so that what it takes says nothing about that one."""

    def describe(self) -> str:
        """One line for the log: what this device is and how it will compute."""

    def memory(self) -> tuple[int, int]:
        """Bytes of memory (free, in all)."""

    def synchronize(self) -> None:
        """Wait until every queued operator has run."""

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the host as operators take it: a copy in the device's memory, or itself."""

    def shard(self, count: int, role: Role, rank: int, ranks: int, *, replicate: bool = False) -> slice | None:
        """Which of `count` things in a weight of this role a rank holds; None where so many ranks cannot share them.

        Things are heads, channels, or tokens of the vocabulary (head and embedding, of which no rank has more than
        rank 0). The same count is shared alike by qkv and attention_output, gate_up and down, head, tied_head and
        embedding. With
        replicate several ranks may hold the same one (heads of keys and values).
        """

    def communicator(self, memory: int, rank: int, ranks: int, hosts: Hosts | None = None) -> Communicator:
        """One rank's end of a group. memory: the descriptor of a file of zeros that all ranks of this host have. hosts:
        where there are several. Raises RuntimeError."""

    def pack(self, weight: CanonicalWeight | ExpertsWeight | LatentUpWeight, role: Role = "other") -> PackedWeight:
        """Put a canonical weight into this device's layout. Raises UnsupportedOperator for a kind it lacks.

        Of an ExpertsWeight it is a PackedExperts, of a LatentUpWeight a PackedLatentUp. The operator `embedding` takes
        an embedding and a tied head, of any kind that is not refused here.

        A weight whose values are on torch's meta device, which has shapes only, gives one that has its sizes only.
        """

    def state_of(self, weight: PackedWeight) -> tuple[dict[str, int], dict[str, Tensor]] | None:
        """Numbers and tensors from which restore makes the packed weight; None for one that is packed quickly."""

    def restore(self, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]) -> PackedWeight:
        """The packed weight of a state. It may read the tensors for as long as it lives."""

    def prepare(self, inputs: StepInputs, ropes: Sequence[Rope]) -> StepInputs:
        """The inputs of a step in the device's own form, with the rotations of these ropes. Called once a step, before
        its first operator; a recording holds what it does as it holds operators."""

    def make_kv_cache(self, blocks: int, block_size: int, spec: CacheSpec) -> KVCache:
        """An uninitialised cache for a layer. Raises OutOfDeviceMemory."""

    def read_blocks(self, kv: KVCache, blocks: Sequence[int]) -> Tensor:
        """A copy on the host of some blocks, uint8 `[blocks, bytes of a block]`, in the device's own layout."""

    def write_blocks(self, kv: KVCache, blocks: Sequence[int], content: Tensor) -> None:
        """Put what read_blocks gave, of a cache with blocks of the same sizes, into some blocks."""

    def capture(self, fn: Callable[[], Tensor], rows: int) -> Callable[[int], Tensor] | None:
        """Record what fn prepares and the operators that it calls on `rows` rows, each by itself, and run nothing.

        Returns a function that runs them on what the same tensors hold then, for their first n rows, and gives n rows
        of the result. None where the device cannot record, or fn computes with more than the device's operators.
        """

    def start_profile(self, max_records: int, mode: int) -> None:
        """Begin to note every command; mode 2 asks for more about each of them than modes 0 and 1.

        A device with a profiler of its own starts it with both numbers. `device.operator_profile.OperatorProfile` has
        this and the next two for any device.
        """

    def profile_records(self) -> list[CommandRecord]:
        """The commands since the last call, in the order in which they ran; they do not overlap. Call it after each
        step: what a recording works on is only known until its next replay."""

    def stop_profile(self) -> None:
        """Note nothing any more."""
