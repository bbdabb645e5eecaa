"""DeepSeek's models against transformers, in each way that their config.json can have it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from device.interface import CacheSpec
from model_plugins.architectures.deepseek_v2 import DeepseekV2Config
from model_plugins.architectures.deepseek_v3 import DeepseekV3Config
from sophserve.errors import CheckpointError
from sophserve.model.config import parse_config, unknown_keys
from sophserve.model.kv_memory import cached_layers
from sophserve.model.loading import RankOf
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


BIAS = "model.layers.{}.mlp.gate.e_score_correction_bias"
IDS = prompts()[-1]

# With the second, every expert comes after 0, which DeepSeek's first files masked groups with. With the third, a group
# of one good expert and a bad one is not as good as others, which have two.
BIASES = {
    "large": torch.randn(8, generator=torch.Generator().manual_seed(1)) * 3,
    "negative": torch.tensor([-2.0, -2.1, -3.0, -3.1, -2.2, -2.3, -3.0, -2.5]),
    "of two experts": torch.tensor([2.0, -2.0, 0.3, 0.3, 0.0, 0.0, -1.0, 2.5]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", BIASES)
def test_biases_choose_experts_and_count_in_no_weight(bias, dtype, changed, open_model):
    """transformers keeps them in float32 where it saves a model of bfloat16; other tools write that."""
    stored = BIASES[bias].to(dtype)
    directory = changed("deepseek_v3", {BIAS.format(layer): stored.clone() for layer in (1, 2)})
    expected = transformers_logprobs(transformers_model(directory), IDS)
    assert (open_model(directory).logprobs(IDS, 16) - expected).abs().max() < 2e-4


def test_a_bias_is_not_rounded_to_the_dtype_of_the_model(changed, open_model):
    exact = torch.tensor([0.1 + 1e-6 * expert for expert in range(8)])
    directory = changed("deepseek_v3", {BIAS.format(1): exact})
    router = open_model(directory, torch.bfloat16).model.layers[1].mlp.router
    assert torch.equal(router.e_score_correction_bias, exact)


def test_keys_that_say_nothing_of_latent_attention(changed, open_model):
    """Files have as many key/value heads as query heads, or 1, and call different things a head."""
    expected = open_model(changed("deepseek_v3")).logprobs(IDS, 90)
    for change in (
        {"num_key_value_heads": 1, "head_dim": 24, "qk_head_dim": 99},
        {"num_key_value_heads": 3, "head_dim": None, "ep_size": 8, "num_nextn_predict_layers": 0},
    ):
        assert torch.equal(open_model(changed("deepseek_v3", config=change)).logprobs(IDS, 90), expected)


def test_a_token_takes_one_latent_and_one_rotated_key_on_every_rank(make_checkpoint, open_model):
    for ranks in (1, 2, 4):
        model = open_model(make_checkpoint("deepseek_v3"), torch.bfloat16, communicator=RankOf(ranks)).model
        caches = [layer.cache for layer in cached_layers(model)]
        assert caches == [CacheSpec(1, (32, 8), torch.bfloat16, replicated=True, latent=True)] * 3
        assert caches[0].token_bytes == (32 + 8) * 2
        # For each of the rank's heads a score of 40 channels, and a sum of 32.
        assert cached_layers(model)[0].pair_flops == 4 // ranks * 2 * (40 + 32)


# --- what DeepSeek's own files and models say, and transformers leaves out --------------------------------------------


def test_layers_whose_index_is_no_multiple_have_no_experts(make_checkpoint, changed, open_model):
    """transformers ignores moe_layer_freq; models were trained with it."""
    model = open_model(make_checkpoint("deepseek_v3", first_k_dense_replace=0)).model
    assert [type(layer.mlp).__name__ for layer in model.layers] == ["SparseMLP"] * 3
    dense = changed("deepseek_v3", config={"moe_layer_freq": 2}, first_k_dense_replace=0)
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.1\.mlp\.gate_proj\.weight"):
        open_model(dense)


@pytest.mark.parametrize(
    ("kind", "config", "weights"),
    [
        ("deepseek_v2", {"norm_topk_prob": False, "routed_scaling_factor": 16.0}, (False, 16.0)),
        ("deepseek_v2", {"norm_topk_prob": True, "routed_scaling_factor": 16.0}, (True, 1.0)),
        ("deepseek_v3", {"norm_topk_prob": False, "routed_scaling_factor": 2.5}, (False, 2.5)),
        ("deepseek_v3", {"norm_topk_prob": True, "routed_scaling_factor": 2.5}, (True, 2.5)),
    ],
)
def test_v2_normalises_or_scales_where_v3_does_both(kind, config, weights, changed, open_model):
    """DeepSeek's modeling_deepseek.py of either model."""
    routing = open_model(changed(kind, config=config)).model.layers[1].mlp.router._routing
    assert (routing.renormalize, routing.scale) == weights


@pytest.mark.parametrize(
    ("given", "rotated", "scores"),
    [
        ({"mscale": 0.7, "mscale_all_dim": 1.4}, 0.7 / 1.4, 1.4),
        ({"mscale": 0.7}, 0.7, 0.0),
        ({"mscale_all_dim": 0.7}, None, 0.7),
        ({"mscale": 1.0, "mscale_all_dim": 0}, 1.0, 0.0),
        ({}, 1.0, 0.0),
    ],
)
def test_one_mscale_alone(given, rotated, scores):
    """DeepSeek's modeling_deepseek.py takes mscale 1 and mscale_all_dim 0 for what is not there."""
    yarn = {key: value for key, value in YARN.items() if not key.startswith("mscale")}
    config = parse_config(DeepseekV3Config, V3 | {"rope_scaling": yarn | given})

    def growth(mscale: float) -> float:
        return 0.1 * mscale * math.log(4) + 1

    factor = growth(given.get("mscale", 1.0)) / growth(given.get("mscale_all_dim", 0.0))
    assert float(config.rope(1).cos[0, 0]) == pytest.approx(factor)
    assert config.score_scale == pytest.approx((128 + 64) ** -0.5 * growth(scores) ** 2)


def test_the_first_spelling_of_greedy(changed, open_model):
    """DeepSeek's configuration_deepseek.py of V2 has it as its default."""
    directory = changed("deepseek_v2", topk_method="greedy")
    misspelt = changed("deepseek_v2", config={"topk_method": "gready"}, topk_method="greedy")
    assert torch.equal(open_model(misspelt).logprobs(IDS, 90), open_model(directory).logprobs(IDS, 90))


# --- layers that predict further tokens ------------------------------------------------------------------------------


def further_layer(layer: int) -> dict[str, torch.Tensor]:
    """Some tensors of such a layer as DeepSeek-V3 has it, one of them quantized."""
    name = f"model.layers.{layer}"
    return {
        f"{name}.embed_tokens.weight": torch.randn(512, 64),
        f"{name}.enorm.weight": torch.randn(64),
        f"{name}.hnorm.weight": torch.randn(64),
        f"{name}.eh_proj.weight": torch.randn(64, 128),
        f"{name}.shared_head.norm.weight": torch.randn(64),
        f"{name}.shared_head.head.weight": torch.randn(512, 64),
        f"{name}.self_attn.q_a_proj.weight": torch.randn(24, 64),
        f"{name}.mlp.gate.e_score_correction_bias": torch.randn(8),
        f"{name}.mlp.experts.7.down_proj.weight_scale_inv": torch.randn(1, 1),
        f"{name}.input_layernorm.weight": torch.randn(64),
    }


@pytest.mark.parametrize("layers", [[3], [3, 4]])
@pytest.mark.parametrize("said", [0, 1, None])
def test_layers_that_predict_further_tokens_are_left_out(layers, said, changed, open_model):
    plain = changed("deepseek_v3", config={"num_nextn_predict_layers": said})
    more = {name: tensor for layer in layers for name, tensor in further_layer(layer).items()}
    directory = changed("deepseek_v3", more, {"num_nextn_predict_layers": said})
    assert torch.equal(open_model(directory).logprobs(IDS, 90), open_model(plain).logprobs(IDS, 90))


@pytest.mark.parametrize(
    ("kind", "tensors", "words"),
    [
        # A layer too many, or a config.json that says too few, is not one that predicts.
        (
            "deepseek_v3",
            {name: tensor for name, tensor in further_layer(3).items() if ".self_attn." in name or "layernorm" in name},
            r"it has model\.layers\.3\.input_layernorm\.weight, model\.layers\.3\.self_attn\.q_a_proj\.weight",
        ),
        (
            "deepseek_v3",
            further_layer(3) | {"model.layers.4.input_layernorm.weight": torch.randn(64)},
            r"it has model\.layers\.4\.input_layernorm\.weight, which",
        ),
        ("deepseek_v3", {"model.layers.2.eh_proj.weight": torch.randn(64, 128)}, r"it has model\.layers\.2\.eh_proj"),
        ("deepseek_v3", {"model.layers.0.self_attn.indexer.wk.weight": torch.randn(8, 64)}, r"it has .*indexer\.wk"),
        ("deepseek_v2", further_layer(3), r"it has model\.layers\.3\.eh_proj\.weight"),
    ],
)
def test_other_tensors_are_refused(kind, tensors, words, changed, open_model):
    with pytest.raises(CheckpointError, match=words):
        open_model(changed(kind, tensors))


# --- config.json -----------------------------------------------------------------------------------------------------

# As it is published, without quantization_config.
V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
V2_LITE = V3 | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "aux_loss_alpha": 0.001,
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "rope_scaling": V3["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}


def test_published_files_have_no_key_that_is_not_known():
    for kind, config in ((DeepseekV3Config, V3), (DeepseekV2Config, V2_LITE)):
        assert unknown_keys(kind, config) == []
    v3, lite = parse_config(DeepseekV3Config, V3), parse_config(DeepseekV2Config, V2_LITE)
    assert (v3.groups, lite.groups, lite.q_lora_rank) == ((8, 4), (1, 1), None)
    assert v3.score_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert lite.score_scale == pytest.approx(192**-0.5 * (0.0707 * math.log(40) + 1) ** 2)
    for config in (v3, lite):
        assert float(config.rope(1).cos[0, 0]) == pytest.approx(1.0)
        assert config.rope_parameters.context_length(config.max_position_embeddings) == 163840


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"topk_method": "best"}, "topk_method 'best' is not supported; supported: greedy, "),
        ({"scoring_func": "tanh"}, "scoring_func 'tanh' is not supported; supported: softmax, sigmoid"),
        ({"n_group": 7}, "256 n_routed_experts cannot be chosen in 4 topk_group of 7 n_group"),
        ({"topk_group": 9}, "256 n_routed_experts cannot be chosen in 9 topk_group of 8 n_group"),
        ({"topk_group": 1, "num_experts_per_tok": 33}, "num_experts_per_tok is 33, but there are only 32 exp"),
        ({"kv_lora_rank": None}, "has no kv_lora_rank, which DeepseekV3ForCausalLM needs"),
        ({"n_routed_experts": None}, "has no n_routed_experts"),
        ({"moe_layer_freq": 0}, "moe_layer_freq"),
        ({"q_lora_rank": 0}, "q_lora_rank"),
        ({"n_shared_experts": -1}, "n_shared_experts"),
        ({"rope_interleave": "yes"}, "rope_interleave"),
        ({"index_topk": 2048}, "sets index_topk to 2048, which sophserve's DeepseekV3ForCausalLM does not implement"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"rope_scaling": {"type": "deepseek_yarn"}}, "rope_type 'deepseek_yarn' is not supported"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(change, words):
    with pytest.raises(CheckpointError, match=words):
        parse_config(DeepseekV3Config, V3 | change)
