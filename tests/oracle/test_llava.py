"""LLaVA-NeXT against transformers: pixels, numbers of tokens, logprobs and greedy tokens."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from model_plugins.architectures.llava_next import LlavaNextForConditionalGeneration
from model_plugins.processors.llava import LlavaLlamaProcessor, LlavaNextProcessor
from sophserve.checkpoint import flattened, read_config, read_preprocessor_config
from sophserve.errors import CheckpointError
from sophserve.model.vision import Normalization
from tests.oracle.test_tensor_parallel import Group, ThreadRank

TILE, PATCH, IMAGE_TOKEN = 56, 14, 500
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
}
TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
# Width and height: squares, primes, portraits, one pixel, panoramas, each pinpoint, one off of it.
SIZES = [
    *[(28, 28), (1, 1), (1000, 1), (1, 1000), (2, 2000), (97, 89), (89, 97), (53, 211), (211, 53), (100, 100)],
    *[(336, 672), (672, 336), (672, 672), (336, 1008), (1008, 336), (335, 671), (673, 337), (1009, 335), (336, 336)],
    *[(640, 480), (480, 640), (1920, 1080), (1080, 1920), (613, 617), (3001, 17), (500, 499), (101, 300), (2048, 2048)],
]
TINY_SIZES = [(28, 28), (1, 1), (300, 1), (97, 89), (53, 211), (112, 56), (56, 168), (113, 111), (640, 480)]


def picture(width, height):
    values = torch.randint(
        0, 256, (width * height * 3,), dtype=torch.uint8, generator=torch.Generator().manual_seed(width)
    )
    return Image.frombytes("RGB", (width, height), bytes(values.tolist()))


def transformers_processor(tile=TILE, pinpoints=PINPOINTS, **settings):
    from transformers import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=pinpoints,
        **settings,
    )


def tensor_of(processor, image, detail="auto"):
    """What the server makes of an image, as the worker sees it, and its grid."""
    shape = processor.shape(*image.size, detail)
    values = processor.pixels(image, detail)
    return torch.frombuffer(bytearray(values), dtype=torch.uint8).view(shape.pixels), shape


@pytest.fixture(scope="session")
def make_llava(tmp_path_factory):
    """`make_llava("mistral", text={...}, vision={...}, **config)`: a directory as transformers writes it."""
    made = {}

    def make(kind="llama", text=None, vision=None, **config):
        key = json.dumps([kind, text, vision, config], sort_keys=True)
        if key not in made:
            made[key] = save_llava(tmp_path_factory.mktemp("llava"), kind, text or {}, vision or {}, config)
        return made[key]

    return make


def save_llava(directory, kind, text, vision, config):
    import transformers

    texts = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    settings = {"image_grid_pinpoints": PINPOINTS, "image_token_index": IMAGE_TOKEN} | config
    torch.manual_seed(0)
    model = transformers.LlavaNextForConditionalGeneration(
        transformers.LlavaNextConfig(
            text_config=texts[kind](**TEXT | text),
            vision_config=transformers.CLIPVisionConfig(**VISION | vision),
            **settings,
        )
    )
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and "newline" not in name:
            tensor += 0.2 * torch.randn_like(tensor)
        elif "vision_tower" in name or "projector" in name:
            tensor += 0.15 * torch.randn_like(tensor)
    model.save_pretrained(directory)
    transformers_processor(pinpoints=settings["image_grid_pinpoints"]).save_pretrained(directory)
    return directory


def transformers_llava(directory):
    from transformers import LlavaNextForConditionalGeneration

    return LlavaNextForConditionalGeneration.from_pretrained(directory, attn_implementation="eager").eval()


def prompt_of(counts):
    """Text before, between and after images of so many tokens, and where these begin."""
    ids, starts = [7, 8, 9], []
    for number, count in enumerate(counts):
        starts.append(len(ids))
        ids += [IMAGE_TOKEN] * count + [20 + number, 30]
    return ids, starts


@pytest.fixture
def renamed(tmp_path):
    """`renamed(directory, rename, tensors, config)`: a copy with other names, further tensors and other keys."""

    def copy(directory, rename, tensors=None, config=None):
        target = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(directory, target)
        path = target / "model.safetensors"
        found = {rename(name): tensor for name, tensor in load_file(path).items()} | (tensors or {})
        save_file(found, path, metadata={"format": "pt"})
        settings = json.loads((target / "config.json").read_text())
        for key, value in (config or {}).items():
            settings[key] = settings[key] | value if isinstance(value, dict) else value
        (target / "config.json").write_text(json.dumps(settings))
        return target

    return copy


class Seeing:
    """A model and its processor."""

    def __init__(self, directory, open_model, dtype=torch.float32, processor=LlavaNextProcessor, **more):
        self.processor = processor(read_config(directory), read_preprocessor_config(directory))
        self.ours = open_model(directory, dtype, max_positions=1024, **more)

    def logprobs(self, images, chunk=10_000):
        tensors = [tensor_of(self.processor, image) for image in images]
        ids, starts = prompt_of([shape.tokens for _, shape in tensors])
        number = len(self.ours._lengths)
        for start, (pixels, shape) in zip(starts, tensors, strict=True):
            self.ours.give(number, start, self.ours.encode(pixels, shape.grid))
        return ids, self.ours.logprobs(ids, chunk)


@torch.inference_mode()
def their_logprobs(theirs, images, ids, pinpoints=PINPOINTS):
    made = transformers_processor(pinpoints=pinpoints)(images, return_tensors="pt")
    return theirs(torch.tensor([ids]), **made).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_those_of_transformers(size):
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor as Theirs

    config = {"vision_config": {"image_size": 336, "patch_size": 14}, "image_token_index": 32000}
    processor, image = LlavaNextProcessor(config, {}), picture(*size)
    pixels, shape = tensor_of(processor, image)
    theirs = transformers_processor(336, [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]])
    expected = theirs(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Normalization()(pixels).permute(0, 3, 1, 2), expected)
    counting = Theirs.__new__(Theirs)
    counting.image_processor, counting.patch_size, counting.num_additional_image_tokens = theirs, 14, 0
    assert shape.tokens == counting._get_number_of_features(size[1], size[0], 336, 336)


@pytest.mark.parametrize("size", [(97, 89), (640, 480), (1, 1000)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"resample": 2},
        {"resample": 0, "do_rescale": False},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 1], "rescale_factor": 0.01},
        {"do_normalize": False, "do_resize": False, "do_center_crop": False, "do_pad": False},
    ],
)
def test_settings_are_obeyed(settings, size, tmp_path):
    theirs, image = transformers_processor(**settings), picture(*size)
    theirs.save_pretrained(tmp_path)
    config = {"vision_config": {"image_size": TILE, "patch_size": PATCH}, "image_grid_pinpoints": PINPOINTS}
    preprocessor = read_preprocessor_config(tmp_path)
    pixels, _ = tensor_of(LlavaNextProcessor(config, preprocessor), image)
    expected = theirs([image], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(Normalization.read(preprocessor)(pixels).permute(0, 3, 1, 2), expected.float())


def test_little_detail_is_the_whole_image_alone():
    config = {"vision_config": {"image_size": TILE, "patch_size": PATCH}, "image_grid_pinpoints": PINPOINTS}
    processor, image = LlavaNextProcessor(config, {}), picture(211, 97)
    pixels, shape = tensor_of(processor, image, "low")
    fine, fine_shape = tensor_of(processor, image, "high")
    assert (shape.tokens, shape.pixels) == (17, (1, TILE, TILE, 3))
    assert torch.equal(pixels, fine[:1]) and fine_shape == processor.shape(211, 97, "auto")


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        ({"image_grid_pinpoints": [[56, 100]]}, {}, r"image_grid_pinpoints have \[56, 100\], which tiles of 56 pixels"),
        ({"image_grid_pinpoints": "(1x1),(6x6)"}, {}, "image_grid_pinpoints must be a list of pairs"),
        ({"image_grid_pinpoints": [[56, 0]]}, {}, "a side in config.json's image_grid_pinpoints is 0"),
        ({"image_token_index": "x"}, {}, "image_token_index is 'x'"),
        ({"vision_config": None}, {}, "vision_config must be an object"),
        ({}, {"image_grid_pinpoints": [[56, 56]]}, "image_grid_pinpoints are not those of config.json"),
        ({}, {"size": {"shortest_edge": 224}}, "size is {'shortest_edge': 224}, but the tower of this model sees 56"),
        ({}, {"crop_size": 224}, "crop_size is 224"),
        ({}, {"resample": 9}, "resample is 9; it must be the number of a filter, 0 to 5"),
        ({}, {"do_flip_channel_order": True}, "do_flip_channel_order is True, which is not supported"),
        ({}, {"image_processor_type": "SiglipImageProcessor"}, "image_processor_type is 'SiglipImageProcessor'"),
    ],
)
def test_what_a_processor_does_not_obey_is_refused_by_name(config, preprocessor, message):
    known = {"vision_config": {"image_size": TILE, "patch_size": PATCH}, "image_grid_pinpoints": PINPOINTS}
    with pytest.raises(CheckpointError, match=message):
        LlavaNextProcessor(known | config, preprocessor)


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
    for size in TINY_SIZES if case == "llama" else TINY_SIZES[-2:]:
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


LLAMA_KEYS = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    "freeze_mm_mlp_adapter": False,
    "image_aspect_ratio": "anyres",
    "image_crop_resolution": 224,
    "mm_hidden_size": 32,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "tokenizer_padding_side": "right",
    "tune_mm_mlp_adapter": False,
    "unfreeze_mm_vision_tower": True,
    "use_mm_proj": True,
}


@pytest.fixture
def make_original(make_llava, tmp_path):
    """A checkpoint and the same as LLaVA's own repository defines it, beside the folder of its tower."""

    def make(**changes):
        source = make_llava()
        config = json.loads((source / "config.json").read_text())
        tower, target = tmp_path / "tower", tmp_path / "original"
        tower.mkdir()
        target.mkdir()
        (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": config["vision_config"]}))
        swapped = [[width, height] for height, width in config["image_grid_pinpoints"]]
        own = {"mm_vision_tower": str(tower), "image_grid_pinpoints": swapped}
        (target / "config.json").write_text(json.dumps(config["text_config"] | LLAMA_KEYS | own | changes))
        names = {
            "language_model.model.": "model.",
            "language_model.lm_head.": "lm_head.",
            "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
            "multi_modal_projector.linear_1.": "model.mm_projector.0.",
            "multi_modal_projector.linear_2.": "model.mm_projector.2.",
            "image_newline": "model.image_newline",
        }
        tensors = {}
        for name, tensor in load_file(source / "model.safetensors").items():
            prefix = next(prefix for prefix in names if name.startswith(prefix))
            tensors[names[prefix] + name.removeprefix(prefix)] = tensor
        tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return source, target

    return make


def test_the_original_layout_is_the_converted_one(make_original, open_model, caplog):
    source, original = make_original()
    theirs, ours = Seeing(source, open_model), Seeing(original, open_model, processor=LlavaLlamaProcessor)
    assert not caplog.records
    for size in TINY_SIZES:
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


def test_pinpoints_of_the_original_are_width_and_height():
    """Of a square in tiles 1 x 2 and 2 x 1, which are as good, the first one is taken."""
    config = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "image_grid_pinpoints": [[336, 672], [672, 336]]}
    shape = LlavaLlamaProcessor(config, {}).shape(100, 100, "auto")
    assert shape.grid[:2] == (2, 1) and shape.pixels == (3, 336, 336, 3)
