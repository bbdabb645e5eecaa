"""LLaVA-NeXT in the files of every version of transformers, of its own repository, and quantized."""

from __future__ import annotations

import json
import re

import pytest
import torch

from model_plugins.processors.llava import LlavaLlamaProcessor
from sophserve.config import EngineConfig
from sophserve.errors import CheckpointError
from sophserve.measure.footprint import FootprintRequest
from sophserve.measure.footprint_process import footprint
from sophserve.plugins import quantizations
from tests.oracle.llava import SIZES, Seeing, picture, save_original, tensor_of, their_logprobs, transformers_llava
from tests.oracle.test_quantization import FORMATS, awq, compressed, gptq, quantize

# What the versions of transformers put before the names of each part, in place of what 5.24 does.
TEXTS = (("language_model.model.", "language_model.lm_head."), ("model.language_model.", "lm_head."))
TOWERS = ("vision_tower.", "vision_tower.vision_model.", "model.vision_tower.", "model.vision_tower.vision_model.")


@pytest.mark.parametrize("others", ["", "model."])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("text", TEXTS)
def test_names_of_every_version(text, tower, others, make_llava, renamed, open_model):
    def rename(name):
        for written, wanted in zip((*TEXTS[0], TOWERS[0]), (*text, tower), strict=True):
            if name.startswith(written):
                return wanted + name.removeprefix(written)
        return others + name

    directory, images = make_llava(text={"num_hidden_layers": 1}), [picture(100, 97)]
    copy = renamed(directory, rename, {f"{tower}embeddings.position_ids": torch.arange(17)[None]})
    assert torch.equal(Seeing(copy, open_model).logprobs(images)[1], Seeing(directory, open_model).logprobs(images)[1])


def test_tensors_without_a_place_are_named(make_llava, renamed, open_model):
    directory = make_llava()
    stray = renamed(directory, lambda name: name, {"vision_tower.encoder.layers.4.mlp.fc1.bias": torch.ones(48)})
    with pytest.raises(CheckpointError, match=r"it has \S*layers.4.mlp.fc1.bias, which the model does not know"):
        open_model(stray)
    lacking = renamed(directory, lambda name: name.replace("pre_layrnorm", "pre_layernorm"))
    with pytest.raises(
        CheckpointError, match=r"lacks model.vision_tower.pre_layrnorm.\S+ .* has vision_tower.pre_layern"
    ):
        open_model(lacking)


@pytest.fixture
def make_original(make_llava, tmp_path):
    """A checkpoint and the same in the layout of LLaVA's own repository, with other keys of config.json."""

    def make(**changes):
        source, target = make_llava(), tmp_path / "original"
        save_original(source, target, tmp_path / "tower", changes)
        return source, target

    return make


def test_the_original_layout_is_the_converted_one(make_original, open_model, caplog):
    source, original = make_original()
    theirs, ours = Seeing(source, open_model), Seeing(original, open_model, processor=LlavaLlamaProcessor)
    assert not caplog.records
    for size in SIZES:
        image = picture(*size)
        (pixels, shape), (expected, expected_shape) = (tensor_of(each.processor, image) for each in (ours, theirs))
        assert shape == expected_shape and torch.equal(pixels, expected)
    images = [picture(640, 480), picture(97, 211)]
    assert torch.equal(ours.logprobs(images)[1], theirs.logprobs(images)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio 'pad' is not supported; supported: anyres"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type 'flat'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature 'cls_patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"mm_hidden_size": 1024}, "mm_hidden_size is 1024, but the hidden_size of the tower .* is 32"),
        ({"mm_vision_select_layer": -9}, "takes hidden state -9"),
        ({"mm_vision_tower": "google/siglip-so400m"}, "'google/siglip-so400m', which is no folder .* clip-vit-large"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_hidden_size": 1024}, r"lacks model.vision_tower"),
    ],
)
def test_what_the_original_does_otherwise_is_refused_by_name(change, message, make_original, open_model):
    with pytest.raises(CheckpointError, match=message):
        open_model(make_original(**change)[1])


TO_SHARE = {"hidden_size": 128, "intermediate_size": 384, "initializer_range": 0.05}
QUANTIZED = {
    "gptq": gptq(),
    "awq": (awq()[0], awq()[1] | {"modules_to_not_convert": ["vision_tower", "multi_modal_projector"]}),
    "fp8": FORMATS["fp8 blocks"],
    "compressed": (
        compressed()[0],
        compressed()[1] | {"ignore": ["re:.*lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]},
    ),
}


def is_of_the_text(name):
    return re.fullmatch(r"language_model\..*_proj\.weight", name)


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantized_text(method, make_llava, open_model, tmp_path):
    """The tower and the projector stay as they are, and `plan` knows it."""
    quantize(make_llava(text=TO_SHARE), tmp_path, *QUANTIZED[method], is_of_the_text)
    images = [picture(640, 480)]
    quantized, exact = Seeing(tmp_path / "quantized", open_model), Seeing(tmp_path / "exact", open_model)
    ids, expected = exact.logprobs(images)
    assert (quantized.logprobs(images)[1] - expected).abs().max() < 2e-3
    assert (expected - their_logprobs(transformers_llava(tmp_path / "exact"), images, ids)).abs().max() < 2e-3
    config = EngineConfig(model="x", device="cmodel", dtype="float32")
    found = footprint(FootprintRequest(directory=str(tmp_path / "quantized"), config=config))
    assert found.encoding.weight_bytes == quantized.ours.model.encoder.nbytes


@pytest.mark.parametrize("method", ["fp8", "gptq"])
def test_quantizing_leaves_the_tower_plain(method, make_llava, open_model, tmp_path):
    source, images = make_llava(text=TO_SHARE), [picture(97, 211)]
    quantizations()[method].value.convert(source, tmp_path / "converted", lambda done, total: None)
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["model_type"] == "llava_next"
    plain, converted = Seeing(source, open_model), Seeing(tmp_path / "converted", open_model)
    loaded = Seeing(source, open_model, quantization=method)
    pixels, shape = tensor_of(plain.processor, images[0])
    expected = plain.ours.encode(pixels, shape.grid)
    for each in (converted, loaded):
        assert torch.equal(each.ours.encode(pixels, shape.grid), expected)
        assert each.ours.model.layers[0].mlp.down.nbytes < plain.ours.model.layers[0].mlp.down.nbytes / 2
    assert torch.equal(converted.logprobs(images)[1], loaded.logprobs(images)[1])
