"""Qwen2.5-VL against transformers: positions, logprobs and greedy tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from model_plugins.architectures.qwen2_5_vl import window_order
from sophserve.errors import CheckpointError, ConfigError
from tests.oracle.qwen2_5_vl import IMAGE, Seer, their_logprobs, transformers_model
from tests.oracle.test_tensor_parallel import Group, ThreadRank

PROMPTS = {
    "before": [(97, 89), 12],
    "between": [3, (28, 28), 5],
    "behind": [7, (13, 17)],
    "portrait": [2, (53, 411), 4],
    "panorama": [2, (300, 21), 4],
    "several": [4, (97, 89), 3, (56, 140), 2, (112, 112), 6, (200, 1), 5],
    "windows": [1, (113, 173), 9],
    "large": [5, (640, 480), 5],
    "text": [60],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
KINDS = {
    "tied, as 3B": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "untied, as 7B": {"num_hidden_layers": 2, "vision_config": {"depth": 4, "fullatt_block_indexes": [1, 3]}},
    # 80 channels of a head and windows of 64 patches in the tower, 128 channels and usual sections in the text.
    "heads of real sizes": {
        "hidden_size": 256,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "vision_config": {"hidden_size": 160, "num_heads": 2, "intermediate_size": 100, "window_size": 112},
    },
    "yarn": {"rope_parameters": YARN | {"mrope_section": [2, 3, 3]}},
    "other tower": {"vision_config": {"hidden_act": "gelu", "window_size": 90, "fullatt_block_indexes": []}},
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, make_checkpoint, open_model):
    directory = make_checkpoint("qwen2_5_vl", max_position_embeddings=4096, **KINDS[request.param])
    return Seer(directory, open_model), transformers_model(directory)


@torch.inference_mode()
@pytest.mark.parametrize("kind", PROMPTS)
def test_answers_equal_those_of_transformers(kind, both):
    seer, theirs = both
    prompt = seer.prompt(*PROMPTS[kind])
    ids, text = prompt.ids, theirs.generate(**prompt.inputs)[0].tolist()
    expected = their_logprobs(theirs, prompt, text)
    cuts = ([len(text)], [13] * -(-len(text) // 13), [len(ids)] + [1] * (len(text) - len(ids)))
    rows = [seer.logprobs(prompt, cut, text) for cut in cuts]
    assert all(torch.equal(each, rows[0]) for each in rows)
    assert (rows[0] - expected).abs().max() < 1e-3
    # transformers' generate() goes on from each axis by itself behind an image at the end; its forward() does not.
    if kind != "behind":
        chosen = rows[0][len(ids) - 1 : -1].index_fill(1, torch.tensor([IMAGE]), -torch.inf)
        assert chosen.argmax(-1).tolist() == text[len(ids) :]
    # A test of logits that are all alike would prove nothing.
    assert expected.exp().max(-1).values.mean() > 0.03


@pytest.mark.parametrize("kind", PROMPTS)
def test_positions_equal_those_of_transformers(kind, both):
    seer, theirs = both
    prompt = seer.prompt(*PROMPTS[kind])
    inputs = {key: prompt.inputs.get(key) for key in ("input_ids", "mm_token_type_ids", "image_grid_thw")}
    expected, delta = theirs.model.get_rope_index(**inputs)
    number, length = seer.give(prompt.images), len(prompt.ids)
    assert torch.equal(seer.ours.positions(number, length).long(), expected[:, 0])
    assert (seer.ours.positions(number, length + 1)[:, -1] == length + delta.item()).all()
    seer.ours.forget(number)


@pytest.mark.parametrize("side", [1, 2, 4, 5])
def test_windows_are_those_of_transformers(side):
    from transformers.vision_utils import get_vision_window_index

    for rows, columns in ((1, 1), (1, 20), (8, 8), (5, 7), (13, 4), (2, 3)):
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        expected, ends = get_vision_window_index(grid, 2, side * 28, 14)
        order, counts = window_order(rows, columns, side)
        assert torch.equal(order, expected)
        assert (4 * torch.tensor([0, *counts]).cumsum(0)).tolist() == ends.tolist()


def test_several_images_each_in_its_place(make_checkpoint, open_model):
    seer = Seer(make_checkpoint("qwen2_5_vl", max_position_embeddings=4096), open_model)
    prompt = seer.prompt(4, (97, 89), 3, (90, 95), 5)
    (first, one), (second, other) = prompt.images
    assert one.shape == other.shape
    swapped = prompt._replace(images=[(first, other), (second, one)])
    ours = seer.logprobs(prompt)
    assert (seer.logprobs(swapped)[-1] - ours[-1]).abs().max() > 0.01
    for chunk in (1, 7, 16):
        assert torch.equal(seer.logprobs(prompt, [chunk] * -(-len(ours) // chunk)), ours)


def test_half_precision_is_as_good_as_transformers(make_checkpoint, open_model):
    directory = make_checkpoint("qwen2_5_vl", max_position_embeddings=4096)
    seer, exact = Seer(directory, open_model, torch.bfloat16), transformers_model(directory)
    prompt = seer.prompt(5, (320, 240), 20)
    expected = their_logprobs(exact, prompt)
    theirs = (their_logprobs(exact.bfloat16(), prompt) - expected).abs().mean()
    assert (seer.logprobs(prompt) - expected).abs().mean() < 1.25 * theirs


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_the_whole(ranks, make_checkpoint, open_model):
    directory = make_checkpoint("qwen2_5_vl", max_position_embeddings=4096)
    seer = Seer(directory, open_model)
    prompt = seer.prompt(5, (113, 173), 7)
    whole, group = seer.logprobs(prompt), Group(ranks)

    def run(rank):
        return Seer(directory, open_model, communicator=ThreadRank(group, rank)).logprobs(prompt)

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(run, range(ranks)))
    for result in results:
        assert torch.equal(result, results[0])
        assert (result - whole).abs().max() < 2e-4


@pytest.mark.parametrize(
    ("change", "things"),
    [
        ({"num_heads": 2}, "2 attention heads of 32 channels cannot be split between 4 ranks; .* can be 1, 2 "),
        ({"intermediate_size": 70}, "70 columns of a projection cannot be split between 4 ranks; .* can be 1, 2 "),
    ],
)
def test_a_tower_that_ranks_cannot_share_is_refused(change, things, make_checkpoint, open_model):
    directory = make_checkpoint("qwen2_5_vl", vision_config=change)
    with pytest.raises(ConfigError, match=things):
        open_model(directory, communicator=ThreadRank(Group(4), 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_hidden_size": 32}, "out_hidden_size of 32, but the text's hidden_size is 64"),
        ({"num_heads": 32}, "32 num_heads in a hidden_size of 64; each needs a multiple of 4 channels"),
        ({"window_size": 27}, "window_size of 27; it must be at least .* 28"),
        ({"in_channels": 4}, "4 in_channels; images have 3"),
        ({"hidden_act": "tanh"}, "hidden_act 'tanh' is not supported"),
        ({"patch_size": [14, 14]}, "vision_config cannot be used: .*patch_size"),
        ({"depth": 0}, "vision_config cannot be used: .*depth"),
        ({"use_qk_norm": True}, "vision_config sets use_qk_norm to True"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_parameters .*; supported: axial"),
        ({"rope_parameters": {"rope_type": "axial", "factor": 2}}, "rope_parameters .*; supported: axial"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters .*; supported: axial"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(change, message, make_checkpoint, renamed, open_model):
    copy = renamed(make_checkpoint("qwen2_5_vl"), lambda name: name, {}, {"vision_config": change})
    with pytest.raises(CheckpointError, match=message):
        open_model(copy)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (
            {"mrope_section": [2, 3, 2]},
            r"mrope_section is \[2, 3, 2\]; it must be three numbers whose sum is half of the 16",
        ),
        ({"mrope_section": [4, 4]}, r"mrope_section is \[4, 4\]"),
        ({"mrope_section": [9, 1, -2]}, r"mrope_section is \[9, 1, -2\]"),
        ({"mrope_section": [2, 3, 3], "mrope_interleaved": True}, "have mrope_interleaved, which"),
        ({"type": "mrope"}, "has no mrope_section, which rope_type 'mrope' needs"),
        ({"rope_type": "dynamic", "factor": 2.0, "mrope_section": [2, 3, 3]}, "does not go with rope_type 'dynamic'"),
        ({}, r"mrope_section is \[16, 24, 24\]"),
    ],
)
def test_sections_of_another_size_are_refused(rope, message, make_checkpoint, renamed, open_model):
    text = {"rope_parameters": rope}
    copy = renamed(make_checkpoint("qwen2_5_vl"), lambda name: name, {}, {"text_config": text})
    with pytest.raises(CheckpointError, match=message):
        open_model(copy)
