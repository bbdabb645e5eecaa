"""Heads of 8 bits, and embeddings that are tied to them: rounded on loading, written, and read as other tools write
them, against transformers with the values that the codes stand for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from device.cmodel.device import CmodelDevice
from model_plugins.quantization.compressed_tensors import CompressedTensors
from tests.oracle.test_quantization import (
    LINEAR,
    PROMPT,
    SHAPE,
    compressed,
    gptq,
    logprobs_of_ranks,
    quantize,
    transformers_logprobs,
)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ODD = {"hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 511}


def rounded(values: torch.Tensor, group: int) -> torch.Tensor:
    """By the definition: of each group the largest magnitude / 127 is a step."""
    groups = values.unflatten(1, (-1, group))
    steps = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return ((groups / steps).round() * steps).flatten(1)


def edited(source: Path, target: Path, changes: dict[str, torch.Tensor | None], **config: object) -> Path:
    """A copy with other tensors, None being none, and other keys of config.json."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors") | changes
    found = {name: value.contiguous() for name, value in tensors.items() if value is not None}
    save_file(found, target / "model.safetensors", {"format": "pt"})
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


def check(open_model, directory, exact, **options):
    """Against transformers in float32, and in bfloat16 beside the error of the plain weights."""
    expected = transformers_logprobs(exact, PROMPT)
    for ranks in (1, 2):
        found = logprobs_of_ranks(open_model, directory, torch.float32, ranks, **options)
        assert (found - expected).abs().max() < 2e-3, ranks
    plain = (open_model(exact, dtype=torch.bfloat16).logprobs(PROMPT, 17) - expected).abs()
    found = (open_model(directory, dtype=torch.bfloat16, **options).logprobs(PROMPT, 17) - expected).abs()
    assert found.mean() < 1.2 * plain.mean() and found.max() < 1.5 * plain.max()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("shape", "group"), [(SHAPE, 128), (ODD, 72)])
def test_rounded_on_loading(tied, shape, group, make_checkpoint, open_model, tmp_path):
    source = edited(make_checkpoint("qwen2", **shape, tie_word_embeddings=tied), tmp_path / "plain", {})
    name = EMBEDDING if tied else HEAD
    exact = {name: rounded(load_file(source / "model.safetensors")[name], group)}
    check(open_model, source, edited(source, tmp_path / "exact", exact), head_bits=8)
    plain, eight = (open_model(source, head_bits=bits).logprobs(PROMPT, 17) for bits in (16, 8))
    assert (plain - eight).abs().max() > 1e-3


def test_the_bytes_are_there_once(make_checkpoint, open_model, tmp_path):
    source = edited(make_checkpoint("qwen2", **SHAPE, tie_word_embeddings=True), tmp_path / "plain", {})
    plain, eight = (open_model(source, head_bits=bits).model for bits in (16, 8))
    assert eight.embedding.nbytes == 0
    assert plain.nbytes - eight.nbytes == 512 * 128 * (4 - 1) - 512 * 4  # codes, and a scale for each group


def test_what_is_quantized_already_stays_as_it_is(make_checkpoint, open_model, tmp_path):
    def is_quantized(name):
        return LINEAR.fullmatch(name) or name == HEAD

    quantize(make_checkpoint("llama", **SHAPE), tmp_path, *gptq(bits=4), is_quantized)
    found, eight = (open_model(tmp_path / "quantized", head_bits=bits).logprobs(PROMPT, 17) for bits in (16, 8))
    assert torch.equal(found, eight)


def test_each_number_of_bits_is_kept_by_itself(make_checkpoint, open_model, tmp_path, monkeypatch):
    quantize(make_checkpoint("qwen2", **SHAPE, tie_word_embeddings=True), tmp_path, *gptq())
    directory = tmp_path / "quantized"
    first = [open_model(directory, head_bits=bits).logprobs(PROMPT, 17) for bits in (8, 16)]
    kept = sorted(path.name.rpartition("-")[0] for path in (tmp_path / ".reorder_cache" / "quantized").glob("*.packed"))
    assert kept == ["cmodel-stored-0of1", "cmodel-stored-head8-0of1"]
    packed = CmodelDevice.pack

    def pack_dense(self, weight, role="other"):
        assert type(weight).__name__ == "DenseWeight", "a quantized weight was packed again"
        return packed(self, weight, role)

    monkeypatch.setattr(CmodelDevice, "pack", pack_dense)
    again = [open_model(directory, head_bits=bits).logprobs(PROMPT, 17) for bits in (8, 16)]
    assert all(map(torch.equal, first, again)) and not torch.equal(*first)


def dequantized(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The plain tensors that those of `pack-quantized` stand for, by the format's definition."""
    exact = {name: value for name, value in tensors.items() if not re.search(r"weight_(packed|scale|shape)$", name)}
    for name, words in tensors.items():
        if name.endswith(".weight_packed"):
            layer = name.removesuffix("_packed")
            inputs, scales = int(tensors[f"{layer}_shape"][1]), tensors[f"{layer}_scale"].float()
            bits = next(bits for bits in (4, 8) if words.shape[1] == -(-inputs * bits // 32))
            codes = torch.stack([words >> shift & (1 << bits) - 1 for shift in range(0, 32, bits)], -1).flatten(1)
            codes = codes[:, :inputs] - (1 << (bits - 1))
            exact[layer] = codes * scales.repeat_interleave(inputs // scales.shape[1], 1)
    return exact


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, {**ODD, "hidden_size": 96}])
def test_written(tied, shape, make_checkpoint, open_model, tmp_path):
    # float16, so that the scales are those of --quantization gptq.
    source = make_checkpoint("qwen2", **shape, dtype="float16", tie_word_embeddings=tied)
    target = tmp_path / "out"
    CompressedTensors.convert(source, target, lambda done, total: None, head_bits=8)
    tensors = load_file(target / "model.safetensors")
    assert f"{EMBEDDING if tied else HEAD}_packed" in tensors and (EMBEDDING in tensors) == (not tied)
    exact = edited(source, tmp_path / "exact", dict.fromkeys(load_file(source / "model.safetensors")))
    save_file(dequantized(tensors), exact / "model.safetensors", {"format": "pt"})
    check(open_model, target, edited(exact, tmp_path / "float32", {}, dtype="float32"))
    plain = edited(source, tmp_path / "plain", {})
    on_loading = open_model(plain, quantization="gptq", head_bits=8).logprobs(PROMPT, 17)
    assert torch.equal(on_loading, open_model(target).logprobs(PROMPT, 17))


def test_a_written_config_names_what_is_left_plain(make_checkpoint, tmp_path):
    CompressedTensors.convert(make_checkpoint("qwen2", **SHAPE), tmp_path / "out", lambda done, total: None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"][0] == "lm_head" and list(config["config_groups"]) == ["group_0"]
    source = make_checkpoint("qwen2_moe", shared_expert_intermediate_size=64)
    CompressedTensors.convert(source, tmp_path / "sparse", lambda done, total: None, head_bits=8)
    config = json.loads((tmp_path / "sparse" / "config.json").read_text())["quantization_config"]
    assert [group["targets"] for group in config["config_groups"].values()] == [["re:.*lm_head$"], ["Linear"]]
    assert [re.sub(r"[\\^$]|re:", "", name) for name in config["ignore"]] == [
        "model.layers.d+.mlp.gate",
        "model.layers.d+.mlp.shared_expert_gate",
    ]


@pytest.mark.parametrize("group", [32, 24, -1])
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_as_llm_compressor_writes_them(tied, group, make_checkpoint, open_model, tmp_path):
    """0.14: with a tied head there is one tensor, by the embedding's name; otherwise both may be quantized, or one."""
    write, config = compressed(group, bits=8, symmetric=False)
    source = make_checkpoint("qwen2", **{**ODD, "hidden_size": 96}, tie_word_embeddings=tied)
    group_0 = config["config_groups"]["group_0"]
    config |= {"config_groups": {"group_0": {**group_0, "targets": ["Embedding"]}}}
    quantize(source, tmp_path, write, config, lambda name: name == EMBEDDING)
    check(open_model, tmp_path / "quantized", tmp_path / "exact")
