"""Checkpoints that llm-compressor itself writes. `pip install llmcompressor` first; run with `-m slow`."""

from __future__ import annotations

import pytest
import torch

from tests.oracle.test_quantization import PROMPT, SHAPE, logprobs_of_ranks


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
