#!/usr/bin/env bash
# auto-round 0.16.1: one quant_method and one export name, and two layouts on disk that share no tensor shape.
#
# Exported as "auto_round", a model says quant_method "auto-round" whatever it is. One would expect one layout behind it.
# But symmetric layers are packed as GPTQ's (eight inputs in a word of qweight), asymmetric ones as AWQ's (eight outputs in
# a word), and only packing_format tells. Neither has a g_idx, which GPTQ's files usually have. And scales of symmetric
# layers may be negative: the value of largest magnitude in a group is given the code 0, the one code more that there is on
# that side.
#
# Output seen:
#     symmetric: auto-round auto_round:auto_gptq [8, 128] of [128, 64], g_idx False, negative scales True
#     asymmetric: auto-round auto_round:auto_awq [64, 16] of [128, 64], g_idx False, negative scales False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q auto-round==0.16.1 torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3
"$folder/venv/bin/python" - "$folder" 2> "$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import json
import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
name = "model.layers.0.mlp.gate_proj"
seen = {}
for kind, symmetric in (("symmetric", True), ("asymmetric", False)):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1))
    words = {f"w{number}": number for number in range(64)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), unk_token="w0")
    target = Path(sys.argv[1]) / kind
    options = {"bits": 4, "group_size": 32, "iters": 0, "disable_opt_rtn": True, "device_map": "cpu"}
    AutoRound(model, tokenizer, sym=symmetric, **options).quantize_and_save(str(target), format="auto_round")
    [file] = target.rglob("*.safetensors")
    config = json.loads((file.parent / "config.json").read_text())["quantization_config"]
    tensors = load_file(file)
    shape = list(tensors[f"{name}.qweight"].shape)
    ordered, negative = f"{name}.g_idx" in tensors, bool((tensors[f"{name}.scales"] < 0).any())
    seen[kind] = (config["quant_method"], config["packing_format"], shape, ordered, negative)
    print(
        f"{kind}: {config['quant_method']} {config['packing_format']} {shape} of [128, 64], g_idx {ordered}, "
        f"negative scales {negative}"
    )
assert seen["symmetric"] == ("auto-round", "auto_round:auto_gptq", [8, 128], False, True)
assert seen["asymmetric"] == ("auto-round", "auto_round:auto_awq", [64, 16], False, False)
PYTHON
