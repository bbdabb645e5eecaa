"""Qwen2.5-VL in the files of every version of transformers, flat and nested, and quantized."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_plugins.architectures.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from sophserve.checkpoint import read_config
from sophserve.config import EngineConfig
from sophserve.errors import CheckpointError
from sophserve.measure.footprint import FootprintRequest
from sophserve.measure.footprint_process import footprint
from sophserve.model.config import unknown_keys
from sophserve.plugins import quantizations
from tests.oracle.qwen2_5_vl import Seer, their_logprobs, transformers_model
from tests.oracle.test_quantization import FORMATS, awq, compressed, gptq, quantize

PARTS = [4, (97, 89), 6]


def logprobs(directory, open_model, **options):
    seer = Seer(directory, open_model, **options)
    return seer.logprobs(seer.prompt(*PARTS))


def flat(config, **changes):
    """A config.json as Qwen wrote it."""
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    vision = config["vision_config"] | {"in_chans": 3, "spatial_patch_size": 14, "tokens_per_second": 2}
    for key in ("in_channels", "rope_parameters", "model_type"):
        del vision[key]
    own = {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "vision_config": vision, "vision_token_id": 9}
    return text | config | own | changes


@pytest.mark.parametrize("text", ["model.", "model.language_model."])
@pytest.mark.parametrize("tower", ["visual.", "model.visual."])
def test_names_of_every_version(text, tower, make_checkpoint, renamed, open_model):
    def rename(name):
        return name.replace("visual.", tower, 1) if name.startswith("visual.") else name.replace("model.", text, 1)

    for tied in (False, True):
        directory = make_checkpoint("qwen2_5_vl", tie_word_embeddings=tied)
        copy = renamed(directory, rename)
        assert torch.equal(logprobs(copy, open_model), logprobs(directory, open_model))


@pytest.mark.parametrize("tied", [False, True])
def test_a_flat_config_is_the_nested_one(tied, make_checkpoint, renamed, open_model, caplog):
    directory = make_checkpoint("qwen2_5_vl", tie_word_embeddings=tied)
    copy = renamed(directory, lambda name: name)
    nested = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(flat(nested)))
    assert torch.equal(logprobs(copy, open_model), logprobs(directory, open_model))
    assert not caplog.records
    theirs, seer = transformers_model(copy), Seer(copy, open_model)
    prompt = seer.prompt(*PARTS)
    assert (their_logprobs(theirs, prompt) - seer.logprobs(prompt)).abs().max() < 2e-4


def test_the_real_config_is_obeyed():
    """Qwen2.5-VL-3B-Instruct's config.json."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {"depth": 32, "hidden_size": 1280, "out_hidden_size": 2048},
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 151936,
    }
    seen = Qwen2_5_VLForConditionalGeneration
    assert unknown_keys(seen.config_class, config) == []
    parsed = seen.parse(config)
    assert parsed.rope(8).sections == (16, 24, 24) and parsed.window(0) is None
    assert seen.max_model_len(config) == 128000
    del config["rope_theta"]
    assert seen.parse(config).rope_parameters.rope_theta == 1e6


def test_texts_are_those_of_plain_qwen2(make_checkpoint, open_model, tmp_path):
    directory = make_checkpoint("qwen2_5_vl", num_key_value_heads=1)
    text = read_config(directory)["text_config"]
    del text["rope_parameters"]["mrope_section"]
    plain = text | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("visual.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = torch.randint(9, 512, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    seeing, blind = open_model(directory), open_model(tmp_path)
    assert torch.equal(seeing.logprobs(ids, 64), blind.logprobs(ids, 64))
    assert seeing.model.token_flops == blind.model.token_flops


def test_tensors_without_a_place_are_named(make_checkpoint, renamed, open_model):
    directory = make_checkpoint("qwen2_5_vl")
    stray = renamed(directory, lambda name: name, {"visual.blocks.3.norm1.weight": torch.ones(64)})
    with pytest.raises(CheckpointError, match=r"it has visual.blocks.3.norm1.weight, which the model does not know"):
        open_model(stray)
    lacking = renamed(directory, lambda name: name.replace("merger.mlp.2", "merger.mlp.1"))
    with pytest.raises(CheckpointError, match=r"lacks visual.merger.mlp.2.weight.* has visual.merger.mlp.1.bias"):
        open_model(lacking)


TO_SHARE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "initializer_range": 0.05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}
QUANTIZED = {
    "gptq": gptq(),
    "awq": (awq()[0], awq()[1] | {"modules_to_not_convert": ["visual"]}),
    "fp8": FORMATS["fp8 blocks"],
    "compressed": (compressed()[0], compressed()[1] | {"ignore": ["lm_head", "re:visual.*"]}),
}


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantized_text(method, make_checkpoint, open_model, tmp_path):
    """The tower stays as it is, as AutoAWQ, GPTQModel and llm-compressor leave it, and `plan` knows it."""
    source = make_checkpoint("qwen2_5_vl", **TO_SHARE)
    quantize(source, tmp_path, *QUANTIZED[method], re.compile(r"model\.layers\..*_proj\.weight").fullmatch)
    exact, quantized = Seer(tmp_path / "exact", open_model), Seer(tmp_path / "quantized", open_model)
    prompt = exact.prompt(*PARTS)
    expected = exact.logprobs(prompt)
    assert (quantized.logprobs(prompt) - expected).abs().max() < 2e-3
    assert (their_logprobs(transformers_model(tmp_path / "exact"), prompt) - expected).abs().max() < 2e-3
    config = EngineConfig(model="x", device="cmodel", dtype="float32")
    found = footprint(FootprintRequest(directory=str(tmp_path / "quantized"), config=config))
    assert found.encoding.weight_bytes == quantized.ours.model.encoder.nbytes


@pytest.mark.parametrize("method", ["fp8", "gptq"])
def test_quantizing_leaves_the_tower_plain(method, make_checkpoint, open_model, tmp_path):
    source = make_checkpoint("qwen2_5_vl", **TO_SHARE)
    shutil.copytree(source, tmp_path / "plain")
    quantizations()[method].value.convert(source, tmp_path / "converted", lambda done, total: None)
    plain, converted = Seer(source, open_model), Seer(tmp_path / "converted", open_model)
    loaded = Seer(tmp_path / "plain", open_model, quantization=method)
    prompt = plain.prompt(*PARTS)
    [(_, seen)] = prompt.images
    for each in (converted, loaded):
        rows = (one.ours.encode(seen.pixels, seen.shape.grid) for one in (each, plain))
        assert torch.equal(*rows)
        assert each.ours.model.layers[0].mlp.down.nbytes < plain.ours.model.layers[0].mlp.down.nbytes / 2
    assert torch.equal(converted.logprobs(prompt), loaded.logprobs(prompt))
