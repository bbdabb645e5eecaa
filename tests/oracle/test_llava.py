"""LLaVA-NeXT against transformers: logprobs and greedy tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from model_plugins.architectures.llava_next import LlavaNextForConditionalGeneration
from sophserve.checkpoint import flattened
from sophserve.errors import CheckpointError
from tests.oracle.llava import (
    SIZES,
    Seeing,
    picture,
    their_logprobs,
    transformers_llava,
    transformers_processor,
)
from tests.oracle.test_tensor_parallel import Group, ThreadRank

CASES = {
    "llama": ("llama", {"text": {"attention_bias": True, "mlp_bias": True}}),
    "mistral window": ("mistral", {"text": {"sliding_window": 40}}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "last state": ("llama", {"vision_feature_layer": -1}),
    "several states": ("llama", {"vision_feature_layer": [-2, 0, 1]}),
    "projector": ("mistral", {"multimodal_projector_bias": False, "projector_hidden_act": "silu"}),
    "tower": ("llama", {"vision": {"hidden_act": "gelu", "layer_norm_eps": 0.1, "num_attention_heads": 2}}),
}


@pytest.mark.parametrize("case", CASES)
def test_logprobs_equal_those_of_transformers(case, make_llava, open_model):
    kind, settings = CASES[case]
    directory = make_llava(kind, **settings)
    seeing, theirs = Seeing(directory, open_model), transformers_llava(directory)
    for size in SIZES if case == "llama" else SIZES[-2:]:
        images = [picture(*size)]
        ids, ours = seeing.logprobs(images)
        expected = their_logprobs(theirs, images, ids)
        assert (ours - expected).abs().max() < 2e-3, size
        assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    # A test of logits that are all alike would prove nothing.
    assert expected.exp().max(-1).values.mean() > 0.03


def test_several_images_wherever_they_are_cut(make_llava, open_model):
    directory = make_llava()
    seeing, theirs = Seeing(directory, open_model), transformers_llava(directory)
    images = [picture(97, 211), picture(640, 480), picture(30, 30)]
    ids, ours = seeing.logprobs(images)
    assert (ours - their_logprobs(theirs, images, ids)).abs().max() < 2e-3
    for chunk in (1, 13, 64):
        assert torch.equal(seeing.logprobs(images, chunk)[1], ours)
    swapped, other = seeing.logprobs(images[::-1])
    assert len(swapped) == len(ids) and (ours[-1] - other[-1]).abs().max() > 0.01


@torch.inference_mode()
def test_answers_equal_those_of_transformers(make_llava, open_model):
    directory, image = make_llava(), picture(300, 200)
    seeing, theirs = Seeing(directory, open_model), transformers_llava(directory)
    ids, ours = seeing.logprobs([image])
    made = transformers_processor()([image], return_tensors="pt")
    expected = theirs.generate(torch.tensor([ids]), **made, max_new_tokens=12, do_sample=False)[0].tolist()
    answer = [int(ours[-1].argmax())]
    while len(answer) < 12:
        answer.append(int(seeing.ours.step({0: answer[-1:]})[0][-1].argmax()))
    assert ids + answer == expected


def test_half_precision_is_as_good_as_transformers(make_llava, open_model):
    directory, images = make_llava(), [picture(640, 480)]
    exact = transformers_llava(directory)
    ids, ours = Seeing(directory, open_model, torch.bfloat16).logprobs(images)
    expected = their_logprobs(exact, images, ids)
    theirs = (their_logprobs(exact.bfloat16(), images, ids) - expected).abs().mean()
    assert (ours - expected).abs().mean() < 1.25 * theirs


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_the_whole(ranks, make_llava, open_model):
    directory, images = make_llava(), [picture(640, 480)]
    _, whole = Seeing(directory, open_model).logprobs(images)
    group = Group(ranks)

    def run(rank):
        return Seeing(directory, open_model, communicator=ThreadRank(group, rank)).logprobs(images)[1]

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(run, range(ranks)))
    for result in results:
        assert torch.equal(result, results[0])
        assert (result - whole).abs().max() < 2e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full' is not supported"),
        ({"vision_feature_layer": 5}, "takes hidden state 5 of a tower with 4 layers"),
        ({"vision_feature_layer": []}, "takes no hidden state"),
        ({"use_image_newline_parameter": False}, "use_image_newline_parameter is false"),
        ({"projector_hidden_act": "tanh"}, "hidden_act 'tanh' is not supported"),
        ({"text_config": {"model_type": "qwen2"}}, "text_config is of model_type 'qwen2'; supported: llama, mistral"),
        ({"text_config": {"sliding_window": 16}}, "sets sliding_window to 16"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "model_type 'siglip_vision_model'"),
        ({"vision_config": {"image_size": 57}}, "vision_config's image_size 57 is not a multiple of its patch_size 14"),
        ({"vision_config": {"use_qk_norm": True}}, "config.json's vision_config sets use_qk_norm"),
        ({"vision_config": {"hidden_size": 0}}, "config.json's vision_config's hidden_size is 0"),
        ({"text_config": {"hidden_size": 0}}, "hidden_size is 0"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(change, message, make_llava, renamed, open_model):
    copy = renamed(make_llava(), lambda name: name, {}, change)
    with pytest.raises(CheckpointError, match=message):
        open_model(copy)


def test_keys_that_a_text_config_leaves_out():
    """A file of llava-hf has of Mistral what differs from the defaults of its class in transformers."""
    import transformers

    given = {"model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32064}
    for text, theirs in (
        ({"model_type": "llama", "vocab_size": 32064}, transformers.LlamaConfig(vocab_size=32064)),
        (given, transformers.MistralConfig(vocab_size=32064, sliding_window=None)),
        ({"model_type": "mistral"}, transformers.MistralConfig()),
    ):
        config = LlavaNextForConditionalGeneration.parse(flattened({"text_config": text, "vision_config": {}}))
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(config, key) == getattr(theirs, key)
        assert (config.kv_heads, config.head_size) == (theirs.num_key_value_heads, 128)
        assert (config.max_position_embeddings, config.rms_norm_eps) == (theirs.max_position_embeddings, 1e-6)
        assert config.window == getattr(theirs, "sliding_window", None)
        assert config.rope_parameters.rope_theta == text.get("rope_theta", 10000.0)
