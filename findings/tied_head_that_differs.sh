#!/usr/bin/env bash
# transformers 5.24.0: tie_word_embeddings: true does not tie the head where the files hold another one.
#
# One would expect the flag to decide, and a lm_head.weight beside it to be overwritten by the embedding. But the two are
# compared: where they are equal the head is tied and takes no memory of its own; where they differ, as in merged
# fine-tunes with a trained head, the head of the file is used, although the model's config goes on saying that it is
# tied. Only a warning tells.
#
# Output seen:
#     stored head used: True, tied to the embedding: False, config says tied: True
#     equal head: tied to the embedding: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 torch==2.13.0 safetensors==0.8.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

folder = f"{sys.argv[1]}/model"
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
config = Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
Qwen2ForCausalLM(config).save_pretrained(folder)
file = f"{folder}/model.safetensors"
tensors = load_file(file)
assert "lm_head.weight" not in tensors


def load_with_head(head):
    save_file(tensors | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder)
    tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    return model, tied


head = torch.randn(64, 32)
model, tied = load_with_head(head)
used = torch.equal(model.lm_head.weight, head)
said = model.config.tie_word_embeddings
print(f"stored head used: {used}, tied to the embedding: {tied}, config says tied: {said}")
assert used and not tied and said
_, tied = load_with_head(tensors["model.embed_tokens.weight"].clone())
print(f"equal head: tied to the embedding: {tied}")
assert tied
PYTHON
