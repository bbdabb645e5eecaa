"""Checkpoints as exporters really write them, each a small change to a plain or quantized one.

Whatever is loaded gives the log-probabilities that transformers gives on the plain or dequantized weights.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sophserve.checkpoint import end_token_ids
from sophserve.errors import CheckpointError
from tests.oracle.test_quantization import (
    FLOAT8,
    FP8,
    LINEAR,
    PROMPT,
    SHAPE,
    compressed,
    compressed_config,
    float8,
    gptq,
    quantize,
    transformers_logprobs,
    words,
)

Tensors = dict[str, torch.Tensor]


def edit(directory: Path, change: Callable[[Tensors], Any] | None = None, **config: Any) -> Path:
    """Change a checkpoint's tensors, and keys of its config.json (None takes one out)."""
    if change:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    settings = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return directory


def off(open_model, directory: Path, exact: Path) -> float:
    """The largest difference of log-probabilities from transformers'."""
    expected = transformers_logprobs(exact, PROMPT)
    return float((open_model(directory).logprobs(PROMPT, 17) - expected).abs().max())


@pytest.fixture
def quantized(make_checkpoint, tmp_path) -> Callable[..., Path]:
    """`quantized(write, config)`: a quantized checkpoint, beside one with the same weights plain in `exact`."""

    def make(write, config, kind: str = "llama", is_quantized=LINEAR.fullmatch, **overrides: Any) -> Path:
        quantize(make_checkpoint(kind, **SHAPE, **overrides), tmp_path, write, config, is_quantized)
        return tmp_path / "quantized"

    return make


@pytest.fixture
def plain(make_checkpoint, tmp_path) -> Callable[..., Path]:
    """`plain(kind, **overrides)`: a checkpoint to change, beside the same unchanged in `exact`."""

    def make(kind: str = "llama", **overrides: Any) -> Path:
        for name in ("plain", "exact"):
            shutil.copytree(make_checkpoint(kind, **SHAPE, **overrides), tmp_path / name)
        return tmp_path / "plain"

    return make


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stored", [0x88888888, 0x80808080, 0x77777777, 0x7F7F7F7F, 0])
def test_symmetric_gptq_has_its_zero_points_in_the_middle(bits, stored, quantized, open_model, tmp_path):
    """Whatever qzeros hold, as in vLLM's and GPTQModel's Marlin kernels (vllm#38966)."""

    def fill(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("qzeros"):
                value = torch.tensor(stored - (1 << 32 if stored >> 31 else 0), dtype=torch.int32)
                tensors[name] = value.expand_as(tensors[name]).clone()

    write, config = gptq(bits=bits)
    directory = edit(quantized(write, config | {"checkpoint_format": "gptq"}), fill)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


def less(zeros, bits: int, by_word: bool) -> torch.Tensor:
    """Zero points `[groups, outputs]` in words, one less, taken from each word or from each field of it."""
    if not by_word:
        return words((zeros - 1) % (1 << bits), bits, 1)
    one = 0x11111111 if bits == 4 else 0x01010101
    return words(zeros, bits, 1) - torch.tensor(one, dtype=torch.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("quantizer", "by_word", "warns"),
    [("gptqmodel:5.0.0", True, False), ("autogptq:0.7.1", False, False), (None, False, True)],
)
def test_zero_points_of_zero_in_asymmetric_v1_files(
    bits, quantizer, by_word, warns, quantized, open_model, tmp_path, caplog
):
    """GPTQModel takes the one from a whole word, with borrow; AutoGPTQ from each field."""
    write_plain, config = gptq(bits=bits, symmetric=False)

    def write(name, weight):
        # Positive weights, whose zero point is 0, in every other output.
        weight = weight.clone()
        weight[::2] = weight[::2].abs() + 0.01
        tensors, _ = write_plain(name, weight)
        codes, scales, zeros, groups, _ = integers_with_zeros(weight, bits)
        tensors[f"{name}.qweight"] = words(codes.T, bits, 0)
        tensors[f"{name}.scales"] = scales.T.contiguous()
        tensors[f"{name}.qzeros"] = less(zeros.T, bits, by_word)
        exact = (torch.from_numpy(codes) - torch.from_numpy(zeros)[:, groups]) * scales.float()[:, groups]
        return tensors, exact

    meta = {"meta": {"quantizer": [quantizer]}} if quantizer else {}
    directory = quantized(write, config | meta)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3
    assert ("meta.quantizer does not tell" in caplog.text) == warns


def integers_with_zeros(weight: torch.Tensor, bits: int):
    """As `integers`, in groups of 64, with zero points that may be 0."""
    most = 2**bits - 1
    groups = torch.arange(weight.shape[1]) // 64
    parts = weight.unflatten(1, (-1, 64))
    low, high = parts.amin(2).clamp(max=0), parts.amax(2)
    scales = ((high - low) / most).half().float()
    zeros = (-low / scales).round().clamp(0, most).long()
    codes = ((parts / scales[:, :, None]).round() + zeros[:, :, None]).clamp(0, most).long().flatten(1)
    return codes.numpy(), scales.half(), zeros.numpy(), groups, None


@pytest.mark.parametrize("keys", [{"format": "gptq_v2"}, {"format": "GPTQ_V2", "checkpoint_format": "gptq_v2"}])
def test_gptq_v2_under_either_name(keys, quantized, open_model, tmp_path):
    write, config = gptq(symmetric=False, v2=True)
    directory = quantized(write, {k: v for k, v in config.items() if k != "checkpoint_format"} | keys)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


def test_a_head_that_is_tied_in_words_only(plain, open_model, tmp_path):
    """transformers takes the head that is stored where it differs from the embedding."""
    directory = plain("qwen2", tie_word_embeddings=True)
    head = 0.2 * torch.randn(512, SHAPE["hidden_size"], generator=torch.Generator().manual_seed(5))
    edit(directory, lambda tensors: tensors.update({"lm_head.weight": head}))
    edit(tmp_path / "exact", lambda tensors: tensors.update({"lm_head.weight": head}), tie_word_embeddings=False)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


def test_a_tied_model_with_a_quantized_head(quantized, open_model, tmp_path):
    def is_quantized(name):
        return LINEAR.fullmatch(name) or name == "lm_head.weight"

    directory = quantized(*gptq(), is_quantized=is_quantized)
    edit(directory, tie_word_embeddings=True)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


def zero_biases(tensors: Tensors) -> None:
    for name in list(tensors):
        if re.search(r"_proj\.(weight|qweight)$", name):
            outputs = tensors[name].shape[1 if name.endswith("qweight") else 0]
            tensors[name.rpartition(".")[0] + ".bias"] = torch.zeros(outputs, dtype=torch.float16)


def test_biases_of_zero_are_left_out(quantized, open_model, tmp_path):
    """Every GPTQ export of 2023 has them (AutoGPTQ#555)."""
    directory = edit(quantized(*gptq()), zero_biases)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


def test_biases_of_zero_in_a_plain_checkpoint(plain, open_model, tmp_path):
    directory = edit(plain(), zero_biases)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3
    edit(directory, lambda tensors: tensors["model.layers.1.mlp.up_proj.bias"].fill_(1e-3))
    with pytest.raises(CheckpointError, match=r"it has model\.layers\.1\.mlp\.up_proj\.bias, which the model"):
        open_model(directory)


def test_names_of_a_base_model(plain, open_model, tmp_path):
    """The official Qwen3-Embedding checkpoints have no `model.` (vllm#19250)."""

    def strip(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    directory = edit(plain("qwen3", tie_word_embeddings=True), strip)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


UNUSED = {
    "fp8": ["self_attn.kv_scale", "self_attn.k_scale", "self_attn.attn.v_scale", "self_attn.k_proj.k_scale"],
    "compressed": ["self_attn.k_proj.output_scale", "self_attn.v_proj.output_zero_point", "self_attn.q_scale"],
    "plain": ["self_attn.kv_cache_scale", "self_attn.rotary_emb.cos_cached", "self_attn.rotary_emb.sin_cached"],
}


@pytest.mark.parametrize("kind", UNUSED)
def test_scales_of_a_cache_and_tables_are_left_out(kind, quantized, plain, open_model, tmp_path):
    def add(tensors: Tensors) -> None:
        for name in UNUSED[kind]:
            tensors[f"model.layers.0.{name}"] = torch.ones(1)
        tensors["v_head.summary.weight"] = torch.ones(1, SHAPE["hidden_size"])

    if kind == "plain":
        directory = plain()
    else:
        write = float8(lambda w: w.max()[None], "weight_scale")
        config = FP8 if kind == "fp8" else compressed_config("float-quantized", {**FLOAT8, "strategy": "tensor"})
        directory = quantized(write, config)
    assert off(open_model, edit(directory, add), tmp_path / "exact") < 3e-3


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_an_order_of_minus_ones_is_none(dtype, quantized, open_model, tmp_path):
    """llm-compressor writes it where actorder is off (vllm#8135)."""

    def add(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("weight_packed")]:
            inputs = tensors[name].shape[1] * 8
            tensors[name.replace("weight_packed", "weight_g_idx")] = torch.full((inputs,), -1, dtype=dtype)

    directory = edit(quantized(*compressed()), add)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


def test_an_empty_order(quantized, open_model, tmp_path):
    def empty(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith("g_idx"):
                tensors[name] = torch.empty(0, dtype=torch.int32)

    directory = edit(quantized(*gptq()), empty)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


def test_groups_of_layers_with_other_widths(quantized, open_model, tmp_path):
    """Four bits in attention, eight in the MLPs."""
    write_four = compressed()[0]

    def write(name, weight):
        if "self_attn" in name:
            return write_four(name, weight)
        from tests.oracle.test_quantization import integers

        codes, scales, _, _, exact = integers(weight, 8, 64, True, scale_dtype=torch.bfloat16)
        tensors = {"weight_packed": words(codes, 8, 1), "weight_scale": scales, "weight_shape": torch.tensor([1, 1])}
        return {f"{name}.{key}": value for key, value in tensors.items()}, exact

    def group(target, bits):
        weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}
        return {"targets": [target], "weights": weights}

    config = compressed()[1] | {"config_groups": {"1": group("re:.*self_attn.*", 4), "2": group("re:.*mlp.*", 8)}}
    assert off(open_model, quantized(write, config), tmp_path / "exact") < 3e-3


def test_the_index_says_where_a_tensor_is(plain, open_model, tmp_path):
    directory = plain()
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    first, second = names[: len(names) // 2], names[len(names) // 2 :]
    stale = {names[0]: torch.zeros(3), "model.layers.0.mlp.old.weight": torch.zeros(3)}
    save_file({name: tensors[name] for name in first}, directory / "one.safetensors")
    save_file({name: tensors[name] for name in second} | stale, directory / "two.safetensors")
    weight_map = dict.fromkeys(first, "one.safetensors") | dict.fromkeys(second, "two.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


def test_whole_numbers_written_as_floats(plain, open_model, tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    directory = plain()
    edit(tmp_path / "exact", rope_parameters=rope)
    edit(directory, rope_parameters=rope | {"original_max_position_embeddings": 64.0}, num_attention_heads=4.0)
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


@pytest.mark.parametrize("place", ["hf_quant_config.json", "config.json", "config.json, nested"])
def test_modelopt_fp8(place, quantized, open_model, tmp_path):
    settings = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    write = float8(lambda w: w.max(), "weight_scale")
    directory = quantized(write, {"quant_method": "modelopt", **settings})
    nested = {"producer": {"name": "modelopt"}, "quantization": settings}
    if place == "hf_quant_config.json":
        edit(directory, quantization_config=None)
        (directory / place).write_text(json.dumps(nested))
    elif place != "config.json":
        edit(directory, quantization_config={"quant_method": "modelopt", **nested})
    assert off(open_model, directory, tmp_path / "exact") < 3e-3


REFUSED = [
    (gptq()[1] | {"checkpoint_format": "gptq", "format": "gptq_v2"}, "checkpoint_format 'gptq' and format 'gptq_v2'"),
    (gptq()[1] | {"is_marlin_format": True}, "layout is 'marlin'; supported: gptq, gptq_v2"),
    (gptq()[1] | {"group_size": "64"}, "quantization config cannot be used: Expected `int`, got `str` - at `$.group_"),
    (gptq()[1] | {"sym": 1}, "Expected `bool | null`, got `int` - at `$.sym`"),
    ({"quant_method": "awq", "bits": "4"}, "Expected `int`, got `str` - at `$.bits`"),
    ({"quant_method": "awq", "modules_to_not_convert": "lm_head"}, "Expected `array`, got `str`"),
    (FP8 | {"weight_block_size": "128"}, "Expected `array | null`, got `str`"),
    ({"quant_method": "compressed-tensors", "config_groups": [1]}, "Expected `object`, got `array`"),
    (compressed_config("pack-quantized", {"num_bits": "4"}), "Expected `int`, got `str`"),
    (
        compressed()[1] | {"transform_config": {"config_groups": {"u": {"type": "hadamard", "apply": []}}}},
        "transform_config",
    ),
    (compressed()[1] | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity format 'sparse-24-bitmask'"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo 'NVFP4'; supported: FP8"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_a_quantization_config_may_not_say(config, message, plain, open_model):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_model(edit(plain(), quantization_config=config))


@pytest.mark.parametrize(
    ("file", "given", "ids"),
    [("generation_config.json", "2", [2]), ("config.json", [2, "7"], [2, 7]), ("generation_config.json", 2.0, [2])],
)
def test_end_tokens(file, given, ids, plain):
    directory = plain()
    (directory / "generation_config.json").write_text("{}")
    settings = json.loads((directory / file).read_text()) | {"eos_token_id": given}
    (directory / file).write_text(json.dumps(settings))
    assert end_token_ids(directory, None) == ids


@pytest.mark.parametrize("given", ["<|im_end|>", 2.5, -1, {"id": 2}, [None], True, [[2]]])
def test_end_tokens_that_are_none(given, plain):
    directory = plain()
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id must be a token id"):
        end_token_ids(directory, None)
