"""Every architecture against transformers: logprobs of all positions and greedy tokens."""

from __future__ import annotations

import pytest
import torch

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
WINDOW = {"use_sliding_window": True, "sliding_window": 8}

CASES = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama one kv head": ("llama", {"num_key_value_heads": 1}),
    "llama no gqa": ("llama", {"num_key_value_heads": 4}),
    "llama wide heads": ("llama", {"head_dim": 32}),
    "llama gelu": ("llama", {"hidden_act": "gelu"}),
    "llama gelu tanh": ("llama", {"hidden_act": "gelu_pytorch_tanh", "mlp_bias": True}),
    "llama eps": ("llama", {"rms_norm_eps": 0.1}),
    "llama linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama llama3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "llama yarn": ("llama", {"rope_scaling": YARN, "rope_theta": 1000000.0}),
    "llama yarn details": (
        "llama",
        {"rope_scaling": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.4}},
    ),
    "llama dynamic": (
        "llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 100},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 8, "head_dim": 24}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2 window": ("qwen2", {**WINDOW, "max_window_layers": 1}),
    "qwen2 window unused": ("qwen2", {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}),
    "qwen2 yarn": ("qwen2", {"rope_scaling": YARN, "rope_theta": 1000000.0}),
    "qwen2 moe": ("qwen2_moe", {}),
    "qwen2 moe normalised": ("qwen2_moe", {"norm_topk_prob": True, "num_experts_per_tok": 4}),
    "qwen2 moe some layers": (
        "qwen2_moe",
        {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3], "tie_word_embeddings": True},
    ),
    "qwen2 moe window": ("qwen2_moe", {**WINDOW, "num_hidden_layers": 4, "max_window_layers": 2}),
    "qwen2 moe no biases": ("qwen2_moe", {"qkv_bias": False, "hidden_act": "gelu"}),
    "qwen3 moe": ("qwen3_moe", {"use_qk_norm": True, "shared_expert_intermediate_size": 0, "qkv_bias": False}),
    "qwen3 moe not normalised": ("qwen3_moe", {"norm_topk_prob": False, "attention_bias": True}),
    "qwen3 moe some layers": (
        "qwen3_moe",
        {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1], "head_dim": 32},
    ),
    "qwen3 moe window": ("qwen3_moe", {**WINDOW, "num_experts": 6, "num_experts_per_tok": 6}),
    "qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3 biases": ("qwen3", {"head_dim": 16, "attention_bias": True, "use_qk_norm": True}),
    "qwen3 window": (
        "qwen3",
        {**WINDOW, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}

COUNT = 32


def prompts():
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 512, (length,), generator=generator).tolist() for length in (1, 6, 17, 40, 90)]


def transformers_model(directory, **options):
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", **options)
    model.generation_config = GenerationConfig(max_new_tokens=COUNT, do_sample=False, pad_token_id=0)
    return model


@torch.inference_mode()
def transformers_logprobs(model, ids, one_by_one=False):
    tokens = torch.tensor([ids])
    if not one_by_one:
        return model(tokens).logits[0].float().log_softmax(-1)
    rows, cache = [], None
    for position in range(len(ids)):
        out = model(tokens[:, position : position + 1], past_key_values=cache, use_cache=True)
        rows.append(out.logits[0, 0].log_softmax(-1))
        cache = out.past_key_values
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_transformers(case, make_checkpoint, open_model):
    kind, overrides = CASES[case]
    directory = make_checkpoint(kind, **overrides)
    theirs, ours = transformers_model(directory), open_model(directory)
    dynamic = overrides.get("rope_scaling", {}).get("rope_type") == "dynamic"
    sequences = []
    for prompt, answer in zip(prompts(), ours.generate(prompts(), COUNT, chunk=25), strict=True):
        generated = theirs.generate(torch.tensor([prompt]))[0].tolist()
        assert prompt + answer == generated
        sequences.append(generated)
    longest = sequences[-1]
    assert len(longest) == 90 + COUNT
    expected = transformers_logprobs(theirs, longest, one_by_one=dynamic)
    for chunk in (len(longest), 13):
        assert (ours.logprobs(longest, chunk) - expected).abs().max() < 2e-4
    # A test of logits that are all alike would prove nothing.
    assert expected.exp().max(-1).values.mean() > 0.03


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_sharded_checkpoint_gives_the_same(kind, make_checkpoint, open_model):
    single, sharded = make_checkpoint(kind), make_checkpoint(kind, max_shard_size="100KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    ids = prompts()[-1]
    assert torch.equal(open_model(single).logprobs(ids, 90), open_model(sharded).logprobs(ids, 90))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "kind", ["deepseek_v2", "deepseek_v3", "llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"]
)
def test_half_precision_is_as_good_as_transformers(kind, dtype, make_checkpoint, open_model):
    """Both round in places of their own, so each is compared with the float32 result of the rounded weights."""
    directory = make_checkpoint(kind, dtype=str(dtype).removeprefix("torch."), num_hidden_layers=2)
    ids = prompts()[-1]
    exact = transformers_logprobs(transformers_model(directory, dtype=torch.float32), ids)
    theirs = (transformers_logprobs(transformers_model(directory, dtype=dtype), ids) - exact).abs().mean()
    ours = (open_model(directory, dtype).logprobs(ids, 32) - exact).abs().mean()
    assert ours < 1.25 * theirs


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("run", [torch.float32, torch.bfloat16, torch.float16])
def test_any_dtype_runs_from_any_checkpoint(stored, run, make_checkpoint, open_model):
    directory = make_checkpoint("qwen3", dtype=stored, num_hidden_layers=2)
    ids = prompts()[2]
    exact = transformers_logprobs(transformers_model(directory, dtype=torch.float32), ids)
    ours = open_model(directory, run)
    assert ours.model.embedding.weight.values.dtype == run
    assert (ours.logprobs(ids, 32) - exact).abs().mean() < (1e-5 if run == torch.float32 else 0.1)
