"""What kernels.py measures: the cmodel's operators beside torch's, at the shapes of real models."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from device.cmodel.device import CmodelDevice
from device.interface import (
    AttentionMeta,
    CacheSpec,
    CanonicalWeight,
    DenseWeight,
    ExpertsWeight,
    Float8Weight,
    IntWeight,
    PackedWeight,
    Rotation,
    UnsupportedOperator,
)
from device.sample_params import SampleParams

# out_features, in_features
SHAPES = {
    "0.5b qkv": (1152, 896),
    "0.5b gate_up": (9728, 896),
    "0.5b down": (896, 4864),
    "0.5b head": (151936, 896),
    "7b qkv": (4608, 3584),
    "7b gate_up": (37888, 3584),
    "7b down": (3584, 18944),
}
# Experts, inner features, hidden size, experts of a token
EXPERTS = {"32 of 512": (32, 512, 1024, 4), "64 of 768": (64, 768, 2048, 6)}
# Segments of equal length, heads, their size, and whether q and k are rotated
TOWERS = {
    "CLIP-L, 5 x 577": ([577] * 5, 16, 64, False),
    "Qwen2.5-VL, 64 x 64": ([64] * 64, 16, 80, True),
    "Qwen2.5-VL, 1024": ([1024], 16, 80, True),
    "Qwen2.5-VL, 4096": ([4096], 16, 80, True),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
HEADS, KV_HEADS, HEAD_DIM, BLOCK = 14, 2, 64, 16
VOCAB = 151936
WORKING_SET = 256 * 2**20
GROUP = 128

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One measurement. ours, torchs: calls that take the next copy of the operands; bytes and operations of one."""

    operator: str
    size: str
    dtype: str
    ours: Call
    torchs: Call | None
    bytes: float
    operations: float


def copies(size: float) -> int:
    """How many operands of so many bytes exceed the caches together."""
    return max(1, min(1024, round(WORKING_SET / size)))


def rotate(call: Callable[..., object], operands: list[tuple[object, ...]]) -> Call:
    """A call on the next operands each time."""
    following = itertools.cycle(operands)
    return lambda: call(*next(following))


def linear_cases(
    device: CmodelDevice, shapes: dict[str, tuple[int, int]], rows: list[int], dtypes: list[str]
) -> Iterator[Case]:
    """Dense weights."""
    for (name, (out, depth)), dtype_name in itertools.product(shapes.items(), dtypes):
        dtype = DTYPES[dtype_name]
        size = out * depth * dtype.itemsize
        weights = [torch.randn(out, depth, dtype=dtype) for _ in range(copies(size))]
        packed = [device.pack(DenseWeight(weight)) for weight in weights]
        for count in rows:
            x = torch.randn(count, depth, dtype=dtype)
            ours = rotate(device.ops.linear, [(x, each) for each in packed])
            torchs = rotate(F.linear, [(x, each) for each in weights])
            yield Case("linear", f"{name}, {count} rows", dtype_name, ours, torchs, size, 2.0 * count * out * depth)


def gated_mlp_cases(device: CmodelDevice, shapes: dict[str, tuple[int, int]], rows: list[int]) -> Iterator[Case]:
    """The whole MLP in bfloat16."""

    def torch_mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = F.linear(x, gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, down)

    for model in ("0.5b", "7b"):
        if f"{model} down" not in shapes:
            continue
        hidden, inner = shapes[f"{model} down"]
        elements = 3 * hidden * inner
        pairs = [
            (torch.randn(2 * inner, hidden).bfloat16() / 30, torch.randn(hidden, inner).bfloat16() / 30)
            for _ in range(copies(2 * elements))
        ]
        packed = [tuple(device.pack(DenseWeight(weight)) for weight in pair) for pair in pairs]
        for count in rows:
            x = torch.randn(count, hidden).bfloat16()
            ours = rotate(device.ops.gated_mlp, [(x, *pair, "silu") for pair in packed])
            torchs = rotate(torch_mlp, [(x, *pair) for pair in pairs])
            yield Case(
                "gated_mlp", f"{model}, {count} rows", "bfloat16", ours, torchs, 2 * elements, 2.0 * count * elements
            )


def bfloat16_weight(out: int, depth: int) -> DenseWeight:
    """Random values."""
    return DenseWeight(torch.randn(out, depth).bfloat16() / 30)


def int4_weight(out: int, depth: int) -> IntWeight:
    """Random codes, groups of 128."""
    values = torch.randint(256, (out, depth // 2), dtype=torch.uint8)
    zeros = torch.full((out, depth // GROUP), 8, dtype=torch.uint8)
    return IntWeight(values, torch.rand(out, depth // GROUP).bfloat16() / 100, zeros, GROUP)


def int4_weight_on_int8(out: int, depth: int) -> IntWeight:
    """The same, which takes activations rounded to int8."""
    return replace(int4_weight(out, depth), activations="blocks")


def float8_weight(out: int, depth: int) -> Float8Weight:
    """Random values, groups of 128."""
    scales = torch.rand(out, -(-depth // 128)) / 100
    return Float8Weight(torch.randn(out, depth).to(torch.float8_e4m3fn), scales)


def torch_int4(out: int, depth: int, count: int) -> list[Callable[[Tensor], object]] | None:
    """torch's own int4 linear over random weights of this shape; None where this torch or shape has none."""
    try:
        weights = [
            torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(16, (out, depth), dtype=torch.int32), 2)
            for _ in range(count)
        ]
        scales = torch.rand(depth // GROUP, out, 2).bfloat16() / 100
        calls = [
            lambda x, weight=weight: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, GROUP, scales)
            for weight in weights
        ]
        calls[0](torch.randn(1, depth).bfloat16())
    except (AttributeError, RuntimeError):
        return None
    return calls


def quantized_cases(device: CmodelDevice, shapes: dict[str, tuple[int, int]], rows: list[int]) -> Iterator[Case]:
    """int4 and float8 linears on bfloat16 activations, which one of them rounds to int8, where the device has them."""
    kinds: dict[str, tuple[Callable[[int, int], CanonicalWeight], float]] = {
        "int4": (int4_weight, 0.5 + 2.5 / GROUP),
        "int4 on int8": (int4_weight_on_int8, 0.5 + 2.5 / GROUP),
        "float8": (float8_weight, 1.0),
    }
    for kind, (make, bytes_each) in kinds.items():
        for name, (out, depth) in shapes.items():
            size = out * depth * bytes_each
            try:
                packed: list[PackedWeight] = [device.pack(make(out, depth)) for _ in range(copies(size))]
            except UnsupportedOperator as error:
                print(f"skipped {kind}: {error}", file=sys.stderr)
                break
            peers = torch_int4(out, depth, len(packed)) if kind == "int4" else None
            for count in rows:
                x = torch.randn(count, depth).bfloat16()
                ours = rotate(device.ops.linear, [(x, each) for each in packed])
                torchs = rotate(lambda call, x: call(x), [(call, x) for call in peers]) if peers else None
                yield Case(
                    f"linear {kind}", f"{name}, {count} rows", "bfloat16", ours, torchs, size, 2.0 * count * out * depth
                )


def expert_cases(device: CmodelDevice, rows: list[int]) -> Iterator[Case]:
    """The experts of a layer, each token with its own. Of bytes and operations those of experts that have rows."""

    def torch_experts(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            token, slot = torch.where(ids == expert)
            gate, up = F.linear(x[token], gate_up[expert]).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, down[expert])
            out.index_add_(0, token, y * weights[token, slot, None].to(x.dtype))
        return out

    makers: dict[str, Callable[[int, int], CanonicalWeight]] = {
        "bfloat16": bfloat16_weight,
        "int4": int4_weight,
        "int4 on int8": int4_weight_on_int8,
        "float8": float8_weight,
    }
    for (name, (count, inner, hidden, top_k)), (kind, make) in itertools.product(EXPERTS.items(), makers.items()):
        weight = ExpertsWeight([make(2 * inner, hidden)] * count, [make(hidden, inner)] * count)
        packed = [device.pack(weight, "experts") for _ in range(copies(6 * count * inner * hidden))]
        dense = [torch.randn(count, *shape).bfloat16() / 30 for shape in ((2 * inner, hidden), (hidden, inner))]
        for tokens in rows:
            x, weights = torch.randn(tokens, hidden).bfloat16(), torch.rand(tokens, top_k)
            ids = [torch.rand(tokens, count).topk(top_k, -1).indices.int() for _ in range(32)]
            calls = [(x, packed[i % len(packed)], each, weights, "silu") for i, each in enumerate(ids)]
            ours, torchs = rotate(device.ops.fused_experts, calls), None
            if kind == "bfloat16":
                torchs = rotate(torch_experts, [(x, *dense, each, weights) for each in ids])
            size = sum(len(each.unique()) for each in ids) / len(ids) * packed[0].nbytes / count
            operations = 6.0 * tokens * top_k * inner * hidden
            yield Case(f"experts {kind}", f"{name}, {tokens} rows", "bfloat16", ours, torchs, size, operations)


def attention_case(device: CmodelDevice, batch: int, new: int, cached: int) -> Case:
    """`batch` sequences with so many new and cached tokens; torch's has its keys and values contiguous already."""
    context = new + cached
    blocks = -(-context // BLOCK)
    size = 2.0 * batch * context * KV_HEADS * HEAD_DIM * 2
    count = copies(size)
    caches = []
    for _ in range(count):
        kv = device.make_kv_cache(batch * blocks, BLOCK, CacheSpec(KV_HEADS, (HEAD_DIM, HEAD_DIM), torch.bfloat16))
        kv.keys.copy_(torch.randn(kv.keys.shape))
        kv.values.copy_(torch.randn(kv.values.shape))
        caches.append(kv)
    tables = torch.randperm(batch * blocks, dtype=torch.int32).view(batch, blocks)
    positions = torch.arange(cached, context)
    slots = (tables[:, positions // BLOCK] * BLOCK + positions % BLOCK).int().flatten()
    lengths = torch.full((batch,), new, dtype=torch.int32), torch.full((batch,), cached, dtype=torch.int32)
    meta = AttentionMeta(*lengths, tables, slots, context)
    q = torch.randn(batch * new, HEADS, HEAD_DIM).bfloat16()
    k, v = (torch.randn(batch * new, KV_HEADS, HEAD_DIM).bfloat16() for _ in range(2))
    scale = HEAD_DIM**-0.5
    ours = rotate(device.ops.paged_attention, [(q, k, v, kv, meta, None, scale) for kv in caches])

    def sdpa(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, keys, values, is_causal=new > 1, enable_gqa=new > 1)

    # At decode the heads that share keys stand as queries beside each other, which torch computes many times faster.
    if new == 1:
        dense_q = q.view(batch, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    else:
        dense_q = q.view(batch, new, HEADS, HEAD_DIM).transpose(1, 2)
    shape = (batch, KV_HEADS, context, HEAD_DIM)
    dense = [tuple(torch.randn(shape).bfloat16() for _ in range(2)) for _ in range(count)]
    torchs = rotate(sdpa, [(dense_q, *pair) for pair in dense])
    pairs = batch * (new * cached + new * (new + 1) / 2)
    name = f"decode {batch} @ {context}" if new == 1 else f"prefill {new}"
    return Case("attention", name, "bfloat16", ours, torchs, size, pairs * HEADS * HEAD_DIM * 4)


def attention_cases(device: CmodelDevice) -> Iterator[Case]:
    """The 0.5B shape: 14 heads and 2 KV heads of 64."""
    for context, batch in itertools.product((128, 1024, 8192), (1, 8)):
        yield attention_case(device, batch, 1, context - 1)
    for new in (512, 2048, 8192):
        yield attention_case(device, 1, new, 0)


def tower_cases(device: CmodelDevice) -> Iterator[Case]:
    """Attention of vision towers: CLIP-L over an image in five tiles, and Qwen2.5-VL over windows and whole images."""
    for name, (segments, heads, dim, rotated) in TOWERS.items():
        tokens, shape = sum(segments), (len(segments), segments[0], heads, dim)
        size = 4.0 * tokens * heads * dim * 2
        qkvs = [torch.randn(tokens, 3, heads, dim).bfloat16().unbind(1) for _ in range(copies(size))]
        angles = torch.rand(tokens, dim // 2) * 100
        rotation = Rotation(angles.cos(), angles.sin()) if rotated else None
        ours = rotate(device.ops.dense_attention, [(*qkv, segments, dim**-0.5, rotation) for qkv in qkvs])
        # Torch's are rotated already.
        dense = [tuple(x.reshape(shape).transpose(1, 2).contiguous() for x in qkv) for qkv in qkvs]
        torchs = rotate(F.scaled_dot_product_attention, dense)
        operations = 4.0 * heads * dim * sum(length * length for length in segments)
        yield Case("dense_attention", name, "bfloat16", ours, torchs, size, operations)


def norm_cases(device: CmodelDevice) -> Iterator[Case]:
    """Rows that exceed the caches together; one read and one write of each."""
    for hidden, rows in itertools.product((896, 3584), (1, 16, 1024)):
        weight = torch.randn(hidden).bfloat16()
        size = 2.0 * rows * hidden
        xs = [torch.randn(rows, hidden).bfloat16() for _ in range(copies(size))]
        ours = rotate(device.ops.rms_norm, [(x, weight, 1e-6) for x in xs])
        torchs = rotate(F.rms_norm, [(x, (hidden,), weight, 1e-6) for x in xs])
        yield Case("rms_norm", f"{rows} x {hidden}", "bfloat16", ours, torchs, 2 * size, 4.0 * rows * hidden)


def sample_params(rows: int, greedy: bool) -> SampleParams:
    """Greedy, or temperature 0.8, top_k 50, top_p 0.9."""
    temperature, top_k, top_p = (0.0, 0, 1.0) if greedy else (0.8, 50, 0.9)
    return SampleParams(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k, dtype=torch.int32),
        top_p=torch.full((rows,), top_p),
        min_p=torch.zeros(rows),
        seeds=torch.arange(rows),
        positions=torch.arange(rows),
    )


def torch_sample(logits: Tensor) -> Tensor:
    """topk, softmax, cut at top_p and draw: what a plain sampler on torch does."""
    values, ids = torch.topk(logits.float() / 0.8, 50)
    probabilities = values.softmax(-1)
    probabilities[probabilities.cumsum(-1) - probabilities > 0.9] = 0
    return ids.gather(1, torch.multinomial(probabilities, 1))


def sample_cases(device: CmodelDevice) -> Iterator[Case]:
    """Qwen2's vocabulary."""
    for rows, greedy in itertools.product((1, 8, 64), (True, False)):
        size = 2.0 * rows * VOCAB
        logits = [torch.randn(rows, VOCAB).bfloat16() for _ in range(copies(size))]
        ours = rotate(device.ops.sample, [(each, sample_params(rows, greedy)) for each in logits])
        torchs = rotate(lambda each: each.argmax(-1), [(each,) for each in logits])
        if not greedy:
            torchs = rotate(torch_sample, [(each,) for each in logits])
        kind = "greedy" if greedy else "top_k 50, top_p 0.9"
        yield Case("sample", f"{rows} rows, {kind}", "bfloat16", ours, torchs, size, rows * VOCAB)
