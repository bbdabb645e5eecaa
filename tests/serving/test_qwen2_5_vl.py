"""Qwen2.5-VL as it is served, with positions of three axes: the whole way of an image, against transformers."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from sophserve import LLM, SamplingParams

PICTURES = [Image.effect_noise(size, 90).convert("RGB") for size in ((97, 211), (300, 40), (200, 190))]
TEXT = ["Which of", "and", "or", "?"]
COUNT = 8


@pytest.fixture(scope="module")
def directory(make_checkpoint):
    return make_checkpoint("qwen2_5_vl", max_position_embeddings=1024, num_hidden_layers=2)


@pytest.fixture(scope="module")
@torch.inference_mode()
def theirs(directory):
    """The prompt's ids, the greedy answer's, and the logprobs of all, of transformers."""
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil.from_pretrained(directory)(PICTURES, return_tensors="pt")
    said = TEXT[0]
    for grid, text in zip(images["image_grid_thw"], TEXT[1:], strict=True):
        said += f"<|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>{text}"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode(f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n").ids
    pad = tokenizer.token_to_id("<|image_pad|>")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, attn_implementation="eager").eval()
    tokens, rows = torch.tensor([ids]), []
    while len(rows) < COUNT:
        out = model(input_ids=tokens, mm_token_type_ids=(tokens == pad).int(), **images)
        rows.append(out.logits[0, -1].log_softmax(-1))
        tokens = torch.cat([tokens, rows[-1].argmax().view(1, 1)], 1)
    return ids, tokens[0, len(ids) :].tolist(), torch.stack(rows)


def parts(kind="image_pil"):
    content = [{"type": "text", "text": TEXT[0]}]
    for picture, text in zip(PICTURES, TEXT[1:], strict=True):
        content += [{"type": kind, kind: picture}, {"type": "text", "text": text}]
    return content


@pytest.mark.parametrize(
    "options", [{}, {"max_num_batched_tokens": 32, "max_num_seqs": 4, "enable_prefix_caching": False}]
)
def test_answers_are_those_of_transformers(options, directory, theirs):
    ids, answer, rows = theirs
    params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=5)
    with LLM(str(directory), kv_cache_memory="16MiB", **options) as llm:
        for _ in range(2):  # encoded, and from the caches
            [output] = llm.chat([{"role": "user", "content": parts()}], params, use_tqdm=False)
            assert output.prompt_token_ids == ids
            [made] = output.outputs
            assert list(made.token_ids) == answer
            for found, expected in zip(made.logprobs, rows, strict=True):
                for token, each in found.items():
                    assert abs(each.logprob - expected[token].item()) < 2e-3
