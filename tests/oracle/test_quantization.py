"""Quantized checkpoints of every on-disk format against transformers with the dequantized weights.

The files are written here from the formats' definitions, word by word, independently of the plugins.
"""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sophserve.config import EngineConfig
from sophserve.errors import CheckpointError
from sophserve.link.messages import LoadModel
from sophserve.worker.model_runner import ModelRunner
from tests.oracle.test_tensor_parallel import Group, ThreadRank

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.04,
}
LINEAR = re.compile(r".*_proj\.weight")
PROMPT = torch.randint(3, 500, (40,), generator=torch.Generator().manual_seed(3)).tolist()


def words(codes, bits, axis, places=None):
    """Whole numbers packed along an axis into int32, code i of a word at bits * places[i]."""
    per_word = 32 // bits
    codes = np.moveaxis(codes, axis, -1).astype(np.uint64)
    packed = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // per_word)), dtype=np.uint64)
    for i in range(codes.shape[-1]):
        place = i % per_word if places is None else places[i % per_word]
        packed[..., i // per_word] |= codes[..., i] << np.uint64(bits * place)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(packed.astype(np.uint32).view(np.int32), -1, axis)))


def integers(weight, bits, group_size, symmetric, act_order=False, scale_dtype=torch.float16):
    """codes [out, in], scales and zeros [out, groups], the group of each input; and what they stand for."""
    outputs, inputs = weight.shape
    size = inputs if group_size == -1 else group_size
    groups = torch.arange(inputs) // size
    if act_order:
        groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
    count, most = int(groups.max()) + 1, 2**bits - 1
    codes = torch.zeros(outputs, inputs, dtype=torch.int64)
    scales, zeros = torch.zeros(outputs, count), torch.zeros(outputs, count, dtype=torch.int64)
    for group in range(count):
        part = weight[:, groups == group]
        low, high = part.amin(1).clamp(max=-1e-3), part.amax(1).clamp(min=1e-3)
        scale = 2 * torch.maximum(-low, high) / most if symmetric else (high - low) / most
        scale = scale.to(scale_dtype).float()
        zero = torch.full_like(scale, (most + 1) / 2) if symmetric else (-low / scale).round().clamp(1, most)
        codes[:, groups == group] = ((part / scale[:, None]).round() + zero[:, None]).clamp(0, most).long()
        scales[:, group], zeros[:, group] = scale, zero.long()
    exact = (codes - zeros[:, groups]) * scales[:, groups]
    return codes.numpy(), scales.to(scale_dtype), zeros.numpy(), groups, exact


def gptq(bits=4, group_size=64, symmetric=True, act_order=False, v2=False):
    def write(name, weight):
        codes, scales, zeros, groups, exact = integers(weight, bits, group_size, symmetric, act_order)
        tensors = {
            "qweight": words(codes.T, bits, 0),
            "qzeros": words(zeros.T - (0 if v2 else 1), bits, 1),
            "scales": scales.T.contiguous(),
            "g_idx": groups.int(),
        }
        return {f"{name}.{key}": value for key, value in tensors.items()}, exact

    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": act_order, "sym": symmetric}
    return write, config | ({"checkpoint_format": "gptq_v2"} if v2 else {})


def awq(group_size=64):
    def write(name, weight):
        codes, scales, zeros, _, exact = integers(weight, 4, group_size, symmetric=False)
        place = [0, 4, 1, 5, 2, 6, 3, 7]  # output i of eight, where the word holds outputs 0 2 4 6 1 3 5 7
        tensors = {
            "qweight": words(codes.T, 4, 1, place),
            "qzeros": words(zeros.T, 4, 1, place),
            "scales": scales.T.contiguous(),
        }
        return {f"{name}.{key}": value for key, value in tensors.items()}, exact

    return write, {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": "gemm", "zero_point": True}


def auto_round(write, symmetric=True):
    """As auto-round 0.16.1 writes: without an order of inputs, and with scales of either sign where it is symmetric."""

    def changed(name, weight):
        tensors, exact = write(name, -weight if symmetric else weight)
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith("g_idx")}
        if not symmetric:
            return tensors, exact
        return {key: -tensor if key.endswith("scales") else tensor for key, tensor in tensors.items()}, -exact

    packing = "auto_gptq" if symmetric else "auto_awq"
    config = {"packing_format": f"auto_round:{packing}", "bits": 4, "sym": symmetric, "data_type": "int"}
    return changed, {"quant_method": "auto-round", "group_size": 64, **config}


def float8(scale_of, scale_name, block=None):
    """scale_of: from a weight to the scales of its tensor, of its outputs, or of its blocks."""

    def write(name, weight):
        scale = scale_of(weight.abs()) / 448
        spread = scale
        if block:
            spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: len(weight), : weight.shape[1]]
        elif scale.numel() > 1:
            spread = scale.reshape(-1, 1)
        values = (weight / spread).to(torch.float8_e4m3fn)
        tensors = {"weight": values, scale_name: scale}
        if not block:
            tensors["input_scale"] = torch.tensor(0.02)
        return {f"{name}.{key}": value for key, value in tensors.items()}, values.float() * spread

    return write


def blocks(magnitudes, size=128):
    rows, columns = (-(-length // size) for length in magnitudes.shape)
    padded = torch.zeros(rows * size, columns * size)
    padded[: len(magnitudes), : magnitudes.shape[1]] = magnitudes
    return padded.unflatten(0, (rows, size)).unflatten(2, (columns, size)).amax((1, 3))


def compressed(group_size=64, symmetric=True, act_order=False, bits=4):
    def write(name, weight):
        codes, scales, zeros, groups, exact = integers(weight, bits, group_size, symmetric, act_order, torch.bfloat16)
        tensors = {
            "weight_packed": words(codes, bits, 1),
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros, bits, 0)
        if act_order:
            tensors["weight_g_idx"] = groups.int()
        return {f"{name}.{key}": value for key, value in tensors.items()}, exact

    strategy = "channel" if group_size == -1 else "group"
    weights = {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": symmetric}
    weights |= {"actorder": "group" if act_order else None}
    weights |= {"group_size": None if group_size == -1 else group_size}
    return write, compressed_config("pack-quantized", weights)


def compressed_bytes(group_size=-1, symmetric=True, bits=8, activations=None):
    """Each code in a byte, as llm-compressor stores what it quantizes the activations of, too."""

    def write(name, weight):
        codes, scales, zeros, _, exact = integers(weight, bits, group_size, symmetric, scale_dtype=torch.bfloat16)
        middle = 1 << (bits - 1)
        tensors = {"weight": torch.from_numpy(codes - middle).to(torch.int8), "weight_scale": scales}
        if not symmetric:
            tensors["weight_zero_point"] = torch.from_numpy(zeros - middle).to(torch.int8)
        return {f"{name}.{key}": value for key, value in tensors.items()}, exact

    strategy = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}
    return write, compressed_config("int-quantized", weights, activations)


def compressed_tensor(name, weight):
    """One scale for all of a weight."""
    scale = weight.abs().max()[None] / 127.5
    codes = (weight / scale).round().clamp(-128, 127)
    return {f"{name}.weight": codes.to(torch.int8), f"{name}.weight_scale": scale}, codes * scale


def compressed_config(name, weights, activations=None):
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}}
    return {"quant_method": "compressed-tensors", "format": name, "config_groups": groups, "ignore": ["lm_head"]}


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
FORMATS = {
    **{f"gptq groups of {size}": gptq(group_size=size) for size in (32, 64, 128, -1)},
    "gptq asymmetric": gptq(symmetric=False),
    "gptq asymmetric v2": gptq(symmetric=False, v2=True, group_size=32),
    "gptq v2": gptq(v2=True),
    "gptq act order": gptq(act_order=True),
    "gptq act order, asymmetric, groups of 32": gptq(act_order=True, symmetric=False, group_size=32),
    "gptq 8 bits": gptq(bits=8),
    "gptq 8 bits asymmetric": gptq(bits=8, symmetric=False, group_size=128),
    "gptq 8 bits act order": gptq(bits=8, act_order=True, v2=True),
    "gptq 8 bits act order, asymmetric, groups of 32": gptq(bits=8, act_order=True, symmetric=False, group_size=32),
    "gptq 8 bits channels": gptq(bits=8, group_size=-1, symmetric=False),
    "awq": awq(),
    "awq groups of 128": awq(128),
    "auto-round symmetric": auto_round(gptq()[0]),
    "auto-round asymmetric": auto_round(awq()[0], symmetric=False),
    "fp8 blocks": (float8(blocks, "weight_scale_inv", 128), {**FP8, "weight_block_size": [128, 128]}),
    "fp8 tensor": (float8(lambda w: w.max(), "weight_scale"), {**FP8, "activation_scheme": "static"}),
    "fp8 tensor of one": (float8(lambda w: w.max()[None], "weight_scale"), FP8),
    "fp8 channels": (float8(lambda w: w.amax(1, keepdim=True), "weight_scale"), FP8),
    "fp8 flat channels": (float8(lambda w: w.amax(1), "weight_scale"), FP8),
    "compressed int4": compressed(),
    "compressed int4 channels": compressed(-1),
    "compressed int4 asymmetric": compressed(symmetric=False, group_size=32),
    "compressed int4 act order": compressed(act_order=True),
    "compressed int8 bytes": compressed_bytes(),
    "compressed int8 bytes asymmetric": compressed_bytes(64, symmetric=False),
    "compressed int8 bytes of one scale": (
        compressed_tensor,
        compressed_config("int-quantized", {"num_bits": 8, "type": "int", "strategy": "tensor"}),
    ),
    "compressed int4 bytes": compressed_bytes(32, bits=4),
    "compressed float8 tensor": (
        float8(lambda w: w.max()[None], "weight_scale"),
        compressed_config("float-quantized", {**FLOAT8, "strategy": "tensor"}),
    ),
    "compressed float8 channels": (
        float8(lambda w: w.amax(1, keepdim=True).bfloat16().float(), "weight_scale"),
        compressed_config("float-quantized", {**FLOAT8, "strategy": "channel"}),
    ),
    "compressed float8 blocks": (
        float8(blocks, "weight_scale", 128),
        compressed_config("float-quantized", {**FLOAT8, "strategy": "block", "block_structure": [128, 128]}),
    ),
}


def quantize(source: Path, target: Path, write, config, is_quantized=LINEAR.fullmatch) -> None:
    """Write the checkpoint `source` with quantized layers to target / "quantized", and what they stand for to target /
    "exact"."""
    tensors, exact = {}, load_file(source / "model.safetensors")
    for name, value in sorted(exact.items()):
        if is_quantized(name):
            stored, exact[name] = write(name.removesuffix(".weight"), value)
            tensors |= stored
        else:
            tensors[name] = value
    for name, content in (("quantized", tensors), ("exact", exact)):
        shutil.copytree(source, target / name)
        save_file({key: value.contiguous() for key, value in content.items()}, target / name / "model.safetensors")
    settings = json.loads((source / "config.json").read_text())
    (target / "quantized" / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))


@torch.inference_mode()
def transformers_logprobs(directory, ids):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)(torch.tensor([ids])).logits[0].log_softmax(-1)


def logprobs_of_ranks(open_model, directory, dtype, ranks, **options):
    group = Group(ranks)

    def run(rank):
        model = open_model(directory, dtype=dtype, communicator=ThreadRank(group, rank), **options)
        return model.logprobs(PROMPT, 17)

    with ThreadPoolExecutor(ranks) as pool:
        return next(iter(pool.map(run, range(ranks))))


def check(open_model, target):
    expected = transformers_logprobs(target / "exact", PROMPT)
    for dtype, tolerance in ((torch.float32, 2e-3), (torch.bfloat16, 2e-2)):
        for ranks in (1, 2):
            logprobs = logprobs_of_ranks(open_model, target / "quantized", dtype, ranks)
            best = expected.topk(2).values
            sure = best[:, 0] - best[:, 1] > 0.05
            assert torch.equal(logprobs.argmax(-1)[sure], expected.argmax(-1)[sure]), (dtype, ranks)
            chosen = expected.argmax(-1, keepdim=True)
            worst = (logprobs.gather(1, chosen) - expected.gather(1, chosen)).abs().max()
            assert worst < tolerance, (dtype, ranks)


@pytest.mark.parametrize("case", FORMATS)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_quantized_layers_equal_their_dequantized_weights(case, kind, make_checkpoint, open_model, tmp_path):
    overrides = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    quantize(make_checkpoint(kind, **SHAPE, **overrides), tmp_path, *FORMATS[case])
    check(open_model, tmp_path)


@pytest.mark.parametrize("case", ["gptq act order", "awq", "compressed"])
def test_int8_activations_stay_near(case, make_checkpoint, open_model, tmp_path):
    # Rounding adds about half a percent to each product, many times the rounding to bfloat16.
    write, config = METHODS[case]
    quantize(make_checkpoint("llama", **SHAPE, attention_bias=True), tmp_path, write, config)
    chosen = transformers_logprobs(tmp_path / "exact", PROMPT).max(-1)
    for ranks in (1, 2):
        given = open_model, tmp_path / "quantized", torch.bfloat16, ranks
        by_bits = [logprobs_of_ranks(*given, activation_bits=bits) for bits in (8, 16)]
        worst = max(
            float((each.gather(1, chosen.indices[:, None])[:, 0] - chosen.values).abs().max()) for each in by_bits
        )
        assert worst < 5e-2, ranks
        assert not torch.equal(*by_bits)


BY_ROW = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}


@pytest.mark.parametrize(
    ("form", "asked", "reported"),
    [
        (gptq(), 8, 8),
        (gptq(), 16, 16),
        (FORMATS["fp8 blocks"], 8, 16),
        (FORMATS["fp8 blocks"], "auto", 16),
        (compressed_bytes(activations=BY_ROW), 16, 8),
    ],
)
def test_what_is_reported_of_activations(form, asked, reported, make_checkpoint, tmp_path, caplog):
    # Twice: weights from the reorder cache tell it as well.
    quantize(make_checkpoint("llama", **SHAPE), tmp_path, *form)
    directory = str(tmp_path / "quantized")
    config = EngineConfig(model=directory, kv_cache_memory="16MiB", activation_bits=asked, enforce_eager=True)
    for _ in range(2):
        caplog.clear()
        runner = ModelRunner(LoadModel(directory, config, 0, 1, 20), [-1], lambda: None, lambda _: None)
        assert runner.info.activation_bits == reported
        assert ("--activation-bits 8 changes nothing" in caplog.text) == (asked == 8 != reported)


ODD = {"hidden_size": 96, "intermediate_size": 416, "num_attention_heads": 6, "num_key_value_heads": 2}
PARTLY = {
    # Which weights are quantized, and how.
    "with the head": ("gptq symmetric", lambda name: LINEAR.fullmatch(name) or name == "lm_head.weight", {}),
    "one part of fused layers": ("gptq symmetric", lambda name: re.search(r"[qv]_proj|up_proj", name), {}),
    "one layer": ("awq", lambda name: "layers.1." in name and LINEAR.fullmatch(name), {}),
    "fp8 with the head": ("fp8 blocks", lambda name: LINEAR.fullmatch(name) or name == "lm_head.weight", {}),
    # Groups that a rank's share begins within, and blocks that the sizes do not fill.
    "gptq cut groups": ("gptq 128", LINEAR.fullmatch, ODD),
    "gptq cut act order": ("gptq act order", LINEAR.fullmatch, ODD),
    "gptq cut odd": ("gptq 128", LINEAR.fullmatch, {**ODD, "intermediate_size": 400}),
    "awq cut": ("awq", LINEAR.fullmatch, {**ODD, "intermediate_size": 400}),
    "gptq 8 bits cut": ("gptq 8 bits", LINEAR.fullmatch, {**ODD, "intermediate_size": 400}),
    "gptq 8 bits with the head": ("gptq 8 bits", lambda name: LINEAR.fullmatch(name) or name == "lm_head.weight", {}),
    "compressed cut": ("compressed", LINEAR.fullmatch, {**ODD, "intermediate_size": 400}),
    "compressed bytes cut": ("compressed bytes", LINEAR.fullmatch, {**ODD, "intermediate_size": 400}),
    "fp8 cut blocks": ("fp8 blocks", LINEAR.fullmatch, ODD),
    "fp8 cut odd": ("fp8 blocks", LINEAR.fullmatch, {**ODD, "intermediate_size": 404}),
}
METHODS = {
    "gptq symmetric": gptq(),
    "gptq 128": gptq(group_size=128, symmetric=False),
    "gptq act order": gptq(group_size=32, act_order=True),
    "awq": awq(32),
    "gptq 8 bits": gptq(bits=8, group_size=32, symmetric=False, act_order=True),
    "compressed": compressed(32, symmetric=False),
    "compressed bytes": compressed_bytes(32, symmetric=False),
    "fp8 blocks": FORMATS["fp8 blocks"],
}


@pytest.mark.parametrize("case", PARTLY)
def test_some_layers_and_cut_groups(case, make_checkpoint, open_model, tmp_path):
    method, is_quantized, overrides = PARTLY[case]
    write, config = METHODS[method]
    quantize(make_checkpoint("llama", **{**SHAPE, **overrides}), tmp_path, write, config, is_quantized)
    check(open_model, tmp_path)


def test_parts_of_a_fused_layer_with_other_groups(make_checkpoint, open_model, tmp_path):
    """GPTQ's `dynamic` may give each layer a group size of its own."""
    small, large = gptq(group_size=32)[0], gptq(group_size=128, symmetric=False)[0]

    def write(name, weight):
        return (small if re.search(r"[kv]_proj|gate_proj", name) else large)(name, weight)

    dynamic = {"dynamic": {r"+:.*\.(k|v|gate)_proj": {"group_size": 32, "sym": True}}}
    quantize(make_checkpoint("llama", **SHAPE), tmp_path, write, gptq(group_size=128, symmetric=False)[1] | dynamic)
    check(open_model, tmp_path)


def test_a_tied_head_stays_plain(make_checkpoint, open_model, tmp_path):
    quantize(make_checkpoint("qwen2", **SHAPE, tie_word_embeddings=True), tmp_path, *gptq())
    check(open_model, tmp_path)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_the_files_of_older_tools(name, make_checkpoint, open_model, tmp_path):
    write, config = gptq() if name == "quantize_config.json" else awq()
    quantize(make_checkpoint("llama", **SHAPE), tmp_path, write, config)
    settings = json.loads((tmp_path / "quantized" / "config.json").read_text())
    del settings["quantization_config"], config["quant_method"]
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "quantized" / name).write_text(json.dumps(config))
    check(open_model, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "'bitsandbytes', which is not supported; supported: auto-round, awq, compressed-tensors",
        ),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "layout is 'marlin'; supported: gptq, gptq_v2"),
        ({"quant_method": "awq", "version": "gemv"}, "version gemm, not 4 bits and gemv"),
        ({"quant_method": "awq", "bits": 3}, "not 3 bits and gemm"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:marlin"}, "supported: auto_round:auto_gptq"),
        ({"quant_method": "auto-round", "data_type": "mx_fp"}, "data_type int and plain activations, not mx_fp"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "'e5m2'; supported: e4m3"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size must be two sizes"),
        (compressed_config("marlin-24", {}), "format marlin-24 are not supported"),
        (compressed_config("pack-quantized", {"num_bits": 3, "type": "int"}), "weights of 3 bits"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config, message, make_checkpoint, open_model, tmp_path):
    quantize(make_checkpoint("llama", **SHAPE), tmp_path, gptq()[0], config)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_model(tmp_path / "quantized")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.scales"), "lacks model.layers.1.mlp.up_proj.scales"),
        (lambda t: t.update({"lm_head.qweight": torch.zeros(3, 512, dtype=torch.int32)}), "lm_head.qweight has 3 rows"),
        (
            lambda t: t["model.layers.0.mlp.up_proj.g_idx"].fill_(99),
            "model.layers.0.mlp.up_proj.g_idx names groups beyond the 2",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(16, 384)}),
            "up_proj.qweight in .* is stored as F32; what can be read there is I32",
        ),
    ],
)
def test_broken_files_are_refused(break_it, message, make_checkpoint, open_model, tmp_path):
    quantize(make_checkpoint("llama", **SHAPE), tmp_path, *gptq())
    file = tmp_path / "quantized" / "model.safetensors"
    tensors = load_file(file)
    break_it(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message):
        open_model(tmp_path / "quantized")
