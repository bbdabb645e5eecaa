#!/usr/bin/env bash
# transformers 5.24.0: after a prompt that ends with an image, generate() of Qwen2.5-VL counts positions otherwise than
# its own forward.
#
# M-RoPE gives a token three positions, and text after an image begins, on all three axes, behind the largest position
# that the image used; get_rope_index and the model's forward over the whole sequence do so. generate() keeps the three
# positions of the last token and adds one to each. Where text follows the image, as in every chat template, all three
# are equal there and nothing shows. Where the prompt's last token belongs to the image, the time axis stands at its
# beginning, and the answer gets positions that differ from each other: its first token, chosen by the prompt alone, agrees,
# all later ones are computed from elsewhere. Who takes generate() as the oracle of a raw prompt sees
# differences that are not his; a forward over prompt and answer is the oracle there.
#
# Output seen:
#     image, then text: generate 8 8 8, forward 8 8 8, largest difference of logits 0.000
#     image at the end: generate 3 6 6, forward 6 6 6, largest difference of logits above 0.1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging

logging.set_verbosity_error()
IMAGE, START, END = 150, 151, 152
torch.manual_seed(0)
text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 200, "max_position_embeddings": 512,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
          "window_size": 56, "fullatt_block_indexes": [1]}
model = Qwen2_5_VLForConditionalGeneration(
    Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=START,
                     vision_end_token_id=END, video_token_id=153)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.3)
pixels, grid = torch.randn(64, 3 * 2 * 14 * 14), torch.tensor([[1, 8, 8]])  # 16 placeholders: 4 rows of 4
seen = []
model.model.language_model.rotary_emb.register_forward_pre_hook(
    lambda _module, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])), with_kwargs=True)


def compare(prompt):
    """Positions of the answer's first token, by both, and how far the logits behind it are apart."""
    ids = torch.tensor([prompt])
    inputs = {"pixel_values": pixels, "image_grid_thw": grid}
    seen.clear()
    answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == IMAGE).int(),
                            max_new_tokens=3, min_new_tokens=3, do_sample=False, output_logits=True,
                            return_dict_in_generate=True, **inputs)
    generated = seen[1][-3:, 0, -1].tolist()
    whole = answer.sequences
    seen.clear()
    with torch.no_grad():
        logits = model(input_ids=whole, mm_token_type_ids=(whole == IMAGE).int(), **inputs).logits[0, len(prompt)]
    return generated, seen[0][-3:, 0, len(prompt)].tolist(), (answer.logits[1][0] - logits).abs().max().item()


for name, prompt in (("image, then text", [5, START, *[IMAGE] * 16, END, 7]), ("image at the end", [5, START, *[IMAGE] * 16])):
    generated, forward, apart = compare(prompt)
    far = "0.000" if apart < 1e-3 else "above 0.1" if apart > 0.1 else f"{apart:.3f}"
    print(f"{name}: generate {' '.join(map(str, generated))}, forward {' '.join(map(str, forward))}, "
          f"largest difference of logits {far}")
    same = name == "image, then text"
    assert (generated == forward) is same and (apart < 1e-3) is same and len(set(forward)) == 1
PYTHON
