"""DeepSeek's models against transformers, in each way that their config.json can have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.oracle.test_architectures import COUNT, prompts, transformers_logprobs, transformers_model

# 64 tokens are trained with, and sequences of 122 are tested. mscale and mscale_all_dim differ: where they do not, one
# that counts in the rotation and one that counts in the scores could be exchanged.
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 0.7,
    "mscale_all_dim": 1.4,
    "beta_fast": 32,
    "beta_slow": 1,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "v2": ("deepseek_v2", {}),
    "v2 greedy": ("deepseek_v2", {"topk_method": "greedy"}),
    "v2 one group": ("deepseek_v2", {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 4}),
    "v2 yarn": ("deepseek_v2", {"rope_scaling": YARN}),
    "v2-lite": (
        "deepseek_v2",
        {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "rope_scaling": YARN},
    ),
    "v2 biases": ("deepseek_v2", {"attention_bias": True}),
    "v3": ("deepseek_v3", {}),
    "v3 yarn": ("deepseek_v3", {"rope_scaling": YARN}),
    "v3 yarn without mscale": (
        "deepseek_v3",
        {"rope_scaling": {key: value for key, value in YARN.items() if not key.startswith("mscale")}},
    ),
    "v3 halves": ("deepseek_v3", {"rope_interleave": False, "rope_scaling": YARN}),
    "v3 without q_lora": ("deepseek_v3", {"q_lora_rank": None, "attention_bias": True}),
    "v3 eps": ("deepseek_v3", {"rms_norm_eps": 0.1}),
    "v3 not normalised": ("deepseek_v3", {"norm_topk_prob": False}),
    "v3 all groups": ("deepseek_v3", {"topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 0}),
    "v3 dense": ("deepseek_v3", {"first_k_dense_replace": 3, "tie_word_embeddings": True}),
    "v3 odd sizes": (
        "deepseek_v3",
        {
            "hidden_size": 76,
            "kv_lora_rank": 20,
            "q_lora_rank": 28,
            "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 6,
            "v_head_dim": 10,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_transformers(case, make_checkpoint, open_model):
    kind, overrides = CASES[case]
    directory = make_checkpoint(kind, **overrides)
    theirs, ours = transformers_model(directory), open_model(directory)
    sequences = []
    for prompt, answer in zip(prompts(), ours.generate(prompts(), COUNT, chunk=25), strict=True):
        generated = theirs.generate(torch.tensor([prompt]))[0].tolist()
        assert prompt + answer == generated
        sequences.append(generated)
    longest = sequences[-1]
    assert len(longest) == 90 + COUNT
    expected = transformers_logprobs(theirs, longest)
    for chunk in (len(longest), 100, 16):
        assert (ours.logprobs(longest, chunk) - expected).abs().max() < 2e-4
    # A test of logits that are all alike would prove nothing.
    assert expected.exp().max(-1).values.mean() > 0.03
