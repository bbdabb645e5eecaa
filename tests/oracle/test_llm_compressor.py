"""Checkpoints that llm-compressor itself writes. `pip install llmcompressor` first; run with `-m slow`."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from model_plugins.quantization.compressed_tensors import CompressedTensors
from tests.oracle.test_quantization import PROMPT, SHAPE, logprobs_of_ranks
from tests.oracle.test_rounded_activations import logprobs_of_each


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A16", "FP8_DYNAMIC", "FP8_BLOCK"])
def test_what_llm_compressor_writes(scheme, make_checkpoint, open_model, tmp_path):
    llmcompressor = pytest.importorskip("llmcompressor")
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    source = make_checkpoint("qwen2", **{**SHAPE, "hidden_size": 256})
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    llmcompressor.oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
    model.save_pretrained(tmp_path / "out", save_compressed=True)

    # Its own dequantized weights, in a plain model: nothing then rounds the activations.
    config = CompressedTensorsConfig(run_compressed=False)
    dequantized = AutoModelForCausalLM.from_pretrained(tmp_path / "out", quantization_config=config).state_dict()
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    before = plain.model.layers[0].mlp.up_proj.weight.clone()
    plain.load_state_dict({name: dequantized[name].float() for name in plain.state_dict()})
    assert not torch.equal(plain.model.layers[0].mlp.up_proj.weight, before)
    with torch.inference_mode():
        expected = plain(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    for ranks in (1, 2):
        logprobs = logprobs_of_ranks(open_model, tmp_path / "out", torch.float32, ranks)
        torch.testing.assert_close(logprobs, expected, atol=2e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W8A8", "W4A8"])
def test_activations_that_llm_compressor_rounds(scheme, make_checkpoint, open_model, tmp_path):
    """Against transformers' own run of the checkpoint, which rounds them as compressed-tensors does."""
    llmcompressor = pytest.importorskip("llmcompressor")
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    source = make_checkpoint("qwen2", **{**SHAPE, "hidden_size": 256})
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    llmcompressor.oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
    model.save_pretrained(tmp_path / "out", save_compressed=True)
    config = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", quantization_config=config, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor(PROMPT)[:, None]).logits[:, 0].log_softmax(-1)
    off = (logprobs_of_each(open_model, tmp_path / "out") - expected).abs().amax(-1)
    assert off.median() < 1e-5 and off.max() < 5e-2


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_compressed_tensors_reads_what_is_written(tied, make_checkpoint, tmp_path):
    """Each layer by its own decompressor, as the config's groups say."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    source = make_checkpoint("qwen2", **SHAPE, tie_word_embeddings=tied, dtype="bfloat16")
    CompressedTensors.convert(source, tmp_path / "out", lambda done, total: None, head_bits=8)
    given = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(given)
    head, layers = config.config_groups["group_0"], config.config_groups["group_1"]
    stored, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(source / "model.safetensors")
    packed = [name.removesuffix("_packed") for name in stored if name.endswith("weight_packed")]
    assert len(packed) == 15
    for name in packed:
        layer = name.removesuffix(".weight")
        tensors = {key.rpartition(".")[2]: value for key, value in stored.items() if key.startswith(f"{layer}.")}
        is_head = any(re.match(target.removeprefix("re:"), layer) for target in head.targets)
        scheme = head if is_head else layers
        read = BaseCompressor.get_value_from_registry("pack-quantized").decompress(tensors, scheme)["weight"]
        assert read.dtype == torch.bfloat16
        off = (read - before[name]).float().norm() / before[name].float().norm()
        assert off < (0.012 if is_head else 0.13), name
