import pytest
import torch

from sophserve.errors import CheckpointError
from sophserve.model.config import parse_config
from sophserve.model.decoder import DecoderConfig
from sophserve.model.rope import RopeParameters, make_rope

BASE = {
    "vocab_size": 100,
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}

SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "llama3 at its edges": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn, tiny context": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn by its old name": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    "yarn, attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 0.8,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.707,
        "mscale_all_dim": 1.3,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "yarn, not truncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "yarn, no original length": {"rope_type": "yarn", "factor": 4.0},
}


def tables(config, positions):
    parsed = parse_config(DecoderConfig, config)
    return make_rope(parsed.rope_parameters, parsed.head_size, positions)


def transformers_config(config):
    from transformers import LlamaConfig

    return LlamaConfig(**config)


@pytest.mark.parametrize("theta", [10000.0, 1000000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_tables_equal_transformers(name, theta):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = {**BASE, "rope_theta": theta, "rope_scaling": SCALINGS[name] and dict(SCALINGS[name])}
    positions = 40000
    rope = tables(config, positions)
    theirs = LlamaRotaryEmbedding(transformers_config(config))
    cos, sin = theirs(torch.zeros(1), torch.arange(positions)[None])
    half = cos.shape[-1] // 2
    assert rope.cos.shape == (positions, half)
    assert (rope.cos - cos[0, :, :half]).abs().max() < 1e-6
    assert (rope.sin - sin[0, :, :half]).abs().max() < 1e-6


def test_dynamic_rotation_of_a_position_is_that_of_its_own_decoding_step():
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = {**BASE, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    rope = tables(config, 400)
    theirs = LlamaRotaryEmbedding(transformers_config(config))
    for position in (0, 50, 127, 128, 129, 200, 399):
        cos, sin = theirs(torch.zeros(1), torch.tensor([[position]]))
        half = cos.shape[-1] // 2
        assert (rope.cos[position] - cos[0, 0, :half]).abs().max() < 2e-5
        assert (rope.sin[position] - sin[0, 0, :half]).abs().max() < 2e-5
    # The rotation does not depend on how far the tables go, which is what a longest position does in transformers.
    assert (tables(config, 300).cos - rope.cos[:300]).abs().max() < 2e-5
    assert not torch.allclose(rope.cos[200], tables(BASE, 400).cos[200], atol=1e-3)


def test_part_of_a_head_is_rotated():
    rope = tables({**BASE, "partial_rotary_factor": 0.5}, 10)
    assert rope.cos.shape == (10, 16)
    full = make_rope(RopeParameters(original_max_position_embeddings=128), 32, 10)
    assert torch.equal(rope.cos, full.cos)


def test_both_spellings_mean_the_same():
    yarn = {"factor": 4.0, "original_max_position_embeddings": 64}
    old = tables({**BASE, "rope_theta": 5e5, "rope_scaling": {"type": "yarn", **yarn}}, 200)
    new = tables({**BASE, "rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **yarn}}, 200)
    assert torch.equal(old.cos, new.cos)
    assert not torch.equal(old.cos, tables({**BASE, "rope_theta": 5e5}, 200).cos)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "longrope", "factor": 2.0}, "rope_type 'longrope' is not supported; supported: default"),
        ({"rope_type": "linear"}, "no factor, which rope_type 'linear' needs"),
        ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "no low_freq_factor"),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, "mrope"),
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, "mrope_section"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention"),
        ({"rope_type": "linear", "factor": "two"}, "factor"),
        ("yarn", "must be an object"),
    ],
)
def test_unknown_scalings_are_refused_by_name(scaling, message):
    with pytest.raises(CheckpointError, match=message):
        tables({**BASE, "rope_scaling": scaling}, 10)


def test_odd_rotary_dimension_is_refused():
    with pytest.raises(CheckpointError, match="rotate 15 channels of a head of 15"):
        tables({**BASE, "head_dim": 15}, 10)


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        (None, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 512),
        ({"rope_type": "yarn", "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "linear", "factor": 2.0}, 256),
        ({"rope_type": "dynamic", "factor": 3.0}, 384),
        ({**SCALINGS["llama3"], "original_max_position_embeddings": 16}, 128),
    ],
)
def test_context_length(scaling, longest):
    config = parse_config(DecoderConfig, {**BASE, "rope_scaling": scaling})
    assert config.rope_parameters.context_length(config.max_position_embeddings) == longest
