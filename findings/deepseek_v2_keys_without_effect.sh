#!/usr/bin/env bash
# transformers 5.24.0: norm_topk_prob and moe_layer_freq of a DeepSeek-V2 config.json change nothing.
#
# Both are keys of DeepseekV2Config, files of the model have them, and DeepSeek's own code obeys them: the first makes the
# weights of a token's experts sum to one, the second gives experts to every second layer only. One would expect the class
# in transformers to do so too, as it does with routed_scaling_factor. But neither is read: the logits are the same to the
# last bit, and every layer has experts.
#
# Output seen:
#     norm_topk_prob=True: the same logits, 4 of 4 layers with experts
#     moe_layer_freq=2: the same logits, 4 of 4 layers with experts
#     routed_scaling_factor=2.0: other logits, 4 of 4 layers with experts
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "first_k_dense_replace": 0, "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
}


def run(**change):
    torch.manual_seed(0)
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**SIZES, **change)).eval()
    sparse = sum(hasattr(layer.mlp, "experts") for layer in model.model.layers)
    with torch.no_grad():
        return model(torch.arange(10)[None]).logits, sparse


plain, _ = run(norm_topk_prob=False, moe_layer_freq=1, routed_scaling_factor=1.0)
seen = {}
for key, value in (("norm_topk_prob", True), ("moe_layer_freq", 2), ("routed_scaling_factor", 2.0)):
    logits, sparse = run(**{key: value})
    seen[key] = torch.equal(logits, plain), sparse
    print(f"{key}={value}: {'the same' if seen[key][0] else 'other'} logits, {sparse} of 4 layers with experts")
assert seen == {"norm_topk_prob": (True, 4), "moe_layer_freq": (True, 4), "routed_scaling_factor": (False, 4)}
PYTHON
