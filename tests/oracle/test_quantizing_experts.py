"""Sparse and latent models quantized here, on loading or by `sophserve quantize`, and packed weights that are kept."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from device.cmodel.device import CmodelDevice
from device.interface import DenseWeight, LatentUpWeight
from model_plugins.quantization.fp8 import FP8
from model_plugins.quantization.gptq import GPTQ
from tests.oracle.test_quantization import FORMATS, PROMPT, gptq, logprobs_of_ranks, quantize, transformers_logprobs
from tests.oracle.test_quantized_experts import LINEAR, SHAPES

METHODS = {"gptq": GPTQ, "fp8": FP8}
PLAIN = re.compile(r".*(norm|embed_tokens|lm_head|mlp\.gate|shared_expert_gate|kv_b_proj)\.weight|.*bias")


def written(method, source, target):
    """What `sophserve quantize` writes: the tensors and the quantization config."""
    METHODS[method].convert(source, target, lambda done, total: None)
    config = json.loads((target / "config.json").read_text())["quantization_config"]
    return load_file(target / "model.safetensors"), config


def dequantized(tensors):
    """The weights that the tensors of a file stand for, by the formats' definitions."""
    exact = {}
    for name, value in tensors.items():
        layer, _, last = name.rpartition(".")
        if last == "qweight":
            codes = torch.stack([value >> shift & 15 for shift in range(0, 32, 4)], 1).flatten(0, 1)
            groups = tensors[f"{layer}.g_idx"].long()
            exact[f"{layer}.weight"] = ((codes - 8) * tensors[f"{layer}.scales"].float()[groups]).T
        elif last == "weight" and f"{layer}.weight_scale_inv" in tensors:
            scales = tensors[f"{layer}.weight_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            exact[name] = value.float() * scales[: len(value), : value.shape[1]]
        elif last in ("weight", "bias", "e_score_correction_bias"):
            exact[name] = value
    return exact


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v3"])
def test_a_model_quantized_here(method, kind, make_checkpoint, open_model, tmp_path):
    # Groups of 128 divide every layer, so that all of a file have them, too.
    latent = {"q_lora_rank": 128, "kv_lora_rank": 128} if kind == "deepseek_v3" else {}
    source = make_checkpoint(kind, **{**SHAPES[kind], **latent})
    tensors, _ = written(method, source, tmp_path / "out")
    before = load_file(source / "model.safetensors")
    for name, value in before.items():
        layer = name.removesuffix(".weight")
        kept = name in tensors and torch.equal(tensors[name].float(), value)
        assert kept == bool(PLAIN.fullmatch(name)), name
        assert kept or tensors[f"{layer}.qweight" if method == "gptq" else name].dtype != torch.float32
    shutil.copytree(tmp_path / "out", tmp_path / "exact")
    exact = {name: each.contiguous() for name, each in dequantized(tensors).items()}
    save_file(exact, tmp_path / "exact" / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path / "exact")
    expected = transformers_logprobs(tmp_path / "exact", PROMPT)
    for ranks in (1, 2):
        assert (logprobs_of_ranks(open_model, tmp_path / "out", torch.float32, ranks) - expected).abs().max() < 2e-3
    on_loading = open_model(source, quantization=method).logprobs(PROMPT, 17)
    assert torch.equal(on_loading, open_model(tmp_path / "out").logprobs(PROMPT, 17))


def test_the_configs_name_what_is_left_plain(make_checkpoint, tmp_path):
    """As vLLM 0.33 reads them: names of whole layers in FP8's, rules of GPTQModel's `dynamic`."""
    for kind in ("qwen2_moe", "deepseek_v3"):
        source = make_checkpoint(kind, **SHAPES[kind])
        names = [name.removesuffix(".weight") for name in load_file(source / "model.safetensors")]
        linear = [name for name in names if re.search(r"(proj|proj_with_mqa|gate)$", name)]
        plain = {name for name in linear if re.search(r"(mlp\.gate|shared_expert_gate|kv_b_proj)$", name)}
        assert plain
        _, config = written("fp8", source, tmp_path / f"{kind}-fp8")
        assert set(config["modules_to_not_convert"]) == {"lm_head", *plain}
        _, config = written("gptq", source, tmp_path / f"{kind}-gptq")
        rules = [rule.removeprefix("-:") for rule in config["dynamic"]]
        assert {name for name in linear if any(re.match(rule, name) for rule in rules)} == plain
        assert len(rules) <= 3


@pytest.mark.parametrize("method", METHODS)
def test_stacked_experts_are_written_as_those_of_each(method, make_checkpoint, open_model, tmp_path):
    source = make_checkpoint("qwen3_moe", **SHAPES["qwen3_moe"])
    shutil.copytree(source, tmp_path / "stacked")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "stacked", save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "stacked" / "model.safetensors")
    of_each, config = written(method, source, tmp_path / "of each")
    of_stacked, other = written(method, tmp_path / "stacked", tmp_path / "of stacked")
    assert config == other and of_each.keys() == of_stacked.keys()
    assert all(torch.equal(of_each[name].view(torch.uint8), of_stacked[name].view(torch.uint8)) for name in of_each)
    expected = open_model(source, quantization=method).logprobs(PROMPT, 17)
    assert torch.equal(open_model(tmp_path / "stacked", quantization=method).logprobs(PROMPT, 17), expected)


def test_layers_that_predict_further_tokens_keep_embedding_and_head(make_checkpoint, tmp_path):
    """Layer 61 of DeepSeek V3 has them under its own name; their files leave them in bfloat16."""
    shutil.copytree(make_checkpoint("deepseek_v3", **SHAPES["deepseek_v3"]), tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    own = {
        f"model.layers.2.{name}.weight": torch.randn(128, 256)
        for name in ("eh_proj", "embed_tokens", "shared_head.head")
    }
    save_file(tensors | own, file)
    for method in METHODS:
        found, _ = written(method, tmp_path / "source", tmp_path / method)
        assert all(torch.equal(found[name], value) for name, value in own.items())


@pytest.fixture
def never_packed_again(monkeypatch):
    """Nothing but plain weights is packed from now on, and those of latents, which are plain once packed."""
    packed = CmodelDevice.pack

    def pack(self, weight, role="other"):
        assert isinstance(weight, DenseWeight | LatentUpWeight), f"{role} was packed again"
        return packed(self, weight, role)

    return lambda: monkeypatch.setattr(CmodelDevice, "pack", pack)


KEPT = {
    "act order": ("qwen2_moe", gptq(act_order=True, symmetric=False, group_size=32)),
    "float8 blocks": ("deepseek_v3", FORMATS["fp8 blocks"]),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", KEPT)
def test_packed_experts_come_from_the_reorder_cache(
    case, ranks, make_checkpoint, open_model, tmp_path, never_packed_again
):
    kind, form = KEPT[case]
    quantize(make_checkpoint(kind, **SHAPES[kind]), tmp_path, *form, LINEAR.fullmatch)
    first = logprobs_of_ranks(open_model, tmp_path / "quantized", torch.float32, ranks)
    never_packed_again()
    assert torch.equal(logprobs_of_ranks(open_model, tmp_path / "quantized", torch.float32, ranks), first)


@pytest.mark.parametrize("tear", ["cut", "wrong bit"])
def test_torn_experts_are_packed_anew(tear, make_checkpoint, open_model, tmp_path, caplog):
    kind, form = KEPT["act order"]
    quantize(make_checkpoint(kind, **SHAPES[kind]), tmp_path, *form, LINEAR.fullmatch)
    first = open_model(tmp_path / "quantized").logprobs(PROMPT, 17)
    (path,) = (tmp_path / ".reorder_cache" / "quantized").glob("*.packed")
    whole = path.read_bytes()
    if tear == "cut":
        os.truncate(path, len(whole) // 2)
    else:
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert torch.equal(open_model(tmp_path / "quantized").logprobs(PROMPT, 17), first)
    assert "is not used" in caplog.text and path.read_bytes() == whole


def test_experts_quantized_on_loading_are_kept(make_checkpoint, open_model, tmp_path, never_packed_again):
    source = tmp_path / "model"
    shutil.copytree(make_checkpoint("qwen3_moe", **SHAPES["qwen3_moe"]), source)
    first = open_model(source, quantization="gptq").logprobs(PROMPT, 17)
    never_packed_again()
    assert torch.equal(open_model(source, quantization="gptq").logprobs(PROMPT, 17), first)


def test_errors_of_experts_are_logged_where_they_are_new(make_checkpoint, open_model, tmp_path, caplog):
    """A model of 256 experts in 58 layers has more than 44000 projections of experts."""
    shutil.copytree(make_checkpoint("qwen3_moe", **SHAPES["qwen3_moe"]), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    # Few large values among small ones are rounded badly.
    odd = "model.layers.1.mlp.experts.5.up_proj"
    save_file(tensors | {f"{odd}.weight": tensors[f"{odd}.weight"] ** 3 * 1000}, file)
    with caplog.at_level(logging.INFO):
        open_model(tmp_path / "model", quantization="gptq")
    logged = [match[1] for text in caplog.messages if (match := re.match(r"(\S+): .* relative error", text))]
    first = {f"model.layers.{layer}.mlp.experts.0.{part}_proj" for layer in (0, 1) for part in ("gate", "up", "down")}
    assert {name for name in logged if ".experts." in name} == {*first, odd}
    assert sum("self_attn" in name for name in logged) == 8
