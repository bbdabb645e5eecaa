import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model_plugins.architectures.llama import LlamaConfig, LlamaForCausalLM
from model_plugins.architectures.mistral import MistralConfig
from model_plugins.architectures.qwen2 import Qwen2ForCausalLM
from sophserve.errors import CheckpointError
from sophserve.model.config import parse_config, parse_part, resolve_dtype, unknown_keys
from sophserve.model.context import resolve_activation_bits
from sophserve.model.decoder import DecoderConfig, LayeredWindowConfig

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}


@pytest.mark.parametrize(
    ("asked", "dtype", "fast", "bits"),
    [
        ("auto", torch.bfloat16, True, 8),
        ("auto", torch.float16, True, 8),
        ("auto", torch.float32, True, 16),
        ("auto", torch.bfloat16, False, 16),
        (8, torch.float32, False, 8),
        (16, torch.bfloat16, True, 16),
    ],
)
def test_bits_of_activations(asked, dtype, fast, bits):
    assert resolve_activation_bits(asked, dtype, SimpleNamespace(fast_in_int8=fast)) == bits


def test_defaults_are_those_of_transformers():
    config = parse_config(LlamaConfig, CONFIG)
    assert (config.kv_heads, config.head_size, config.hidden_act) == (4, 16, "silu")
    assert config.rope_parameters.rope_theta == 10000.0
    assert not (config.tie_word_embeddings or config.attention_bias or config.mlp_bias)


def test_null_is_as_good_as_absent():
    nulls = [
        "head_dim",
        "num_key_value_heads",
        "rope_scaling",
        "quantization_config",
        "tie_word_embeddings",
        "hidden_act",
    ]
    assert parse_config(LlamaConfig, CONFIG | dict.fromkeys(nulls)) == parse_config(LlamaConfig, CONFIG)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "rms_norm_eps", "max_position_embeddings"])
def test_missing_key_is_named(key):
    for config in ({k: v for k, v in CONFIG.items() if k != key}, {**CONFIG, key: None}):
        with pytest.raises(CheckpointError, match=f"has no {key}, which LlamaForCausalLM needs"):
            parse_config(LlamaConfig, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "64"}, "hidden_size"),
        ({"max_position_embeddings": "128", "rope_scaling": {"type": "yarn"}}, "max_position_embeddings"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of its num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of its num_key_value_heads 3"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping to 30.0"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"logit_scale": 0.0625}, "logit_scale"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size to 64"),
        ({"sliding_window": 64}, "sliding_window to 64, which sophserve's LlamaForCausalLM does not implement"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"vision_config": {"depth": 32}}, "vision_config"),
        ({"text_config": {"hidden_size": 32}}, "text_config"),
        ({"quantization_config": {}, "rope_theta": []}, "rope_theta"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(change, message):
    with pytest.raises(CheckpointError, match=message):
        parse_config(LlamaConfig, {**CONFIG, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"final_logit_softcapping": None},
        {"use_sliding_window": False, "sliding_window": 64},
        {"layer_types": ["full_attention"] * 4},
        {
            "num_experts": 0,
            "logits_scaling": 1.0,
            "use_qk_norm": False,
            "mlp_only_layers": [],
            "shared_expert_intermediate_size": 0,
        },
        {"pretraining_tp": 2, "use_cache": True, "attention_dropout": 0.1},
    ],
)
def test_neutral_values_pass_silently(change):
    config = {**CONFIG, **change}
    assert parse_config(LlamaConfig, config) == parse_config(LlamaConfig, CONFIG)
    assert unknown_keys(LlamaConfig, config) == []


def test_unknown_keys_are_found():
    assert unknown_keys(LlamaConfig, {**CONFIG, "zebra": 1, "aardvark": "x", "eos_token_id": 2}) == [
        "aardvark",
        "zebra",
    ]


def test_a_declared_key_is_obeyed():
    @dataclass(frozen=True, kw_only=True)
    class Capped(DecoderConfig):
        final_logit_softcapping: float | None = None

    assert parse_config(Capped, {**CONFIG, "final_logit_softcapping": 30}).final_logit_softcapping == 30


def test_unknown_activation_is_refused_by_name(make_context):
    with pytest.raises(CheckpointError, match="hidden_act 'relu2' is not supported; supported: silu"):
        LlamaForCausalLM({**CONFIG, "hidden_act": "relu2"}, make_context())


def test_mistral_window_defaults_to_the_first_models():
    assert parse_config(MistralConfig, CONFIG).sliding_window == 4096
    assert parse_config(MistralConfig, {**CONFIG, "sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({"sliding_window": 8, "max_window_layers": 0}, [None] * 4),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}, [None, None, None, 8]),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, [None] * 4),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            [8, None, 8, None],
        ),
    ],
)
def test_windows_of_layers(change, windows):
    from transformers import Qwen2Config

    config = parse_config(LayeredWindowConfig, {**CONFIG, **change})
    assert [config.window(layer) for layer in range(4)] == windows
    theirs = Qwen2Config(**{k: v for k, v in {**CONFIG, **change}.items() if k != "architectures"})
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    assert theirs.layer_types == kinds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["linear_attention"] * 4}, "linear_attention"),
        ({"layer_types": ["full_attention"] * 3}, "3 layers of 4"),
        ({"layer_types": ["sliding_attention"] * 4}, "no sliding_window"),
    ],
)
def test_layer_types_that_cannot_be_obeyed(change, message):
    with pytest.raises(CheckpointError, match=message):
        parse_config(LayeredWindowConfig, {**CONFIG, **change})


def test_longest_sequence_of_an_architecture():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert Qwen2ForCausalLM.max_model_len(CONFIG) == 128
    assert Qwen2ForCausalLM.max_model_len({**CONFIG, "rope_scaling": yarn}) == 256


@pytest.mark.parametrize(
    ("config", "option", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "auto", torch.bfloat16),
        ({"dtype": "float16"}, "auto", torch.float16),
        ({"dtype": "torch.float16"}, "auto", torch.float16),
        ({}, "auto", torch.float32),
        ({"torch_dtype": "bfloat16"}, "float32", torch.float32),
    ],
)
def test_dtype(config, option, dtype):
    assert resolve_dtype(config, option) == dtype


def test_dtype_that_cannot_run():
    with pytest.raises(CheckpointError, match="'float8_e4m3fn' cannot be run; choose one with --dtype"):
        resolve_dtype({"torch_dtype": "float8_e4m3fn"}, "auto")


@pytest.mark.parametrize(("name", "longest"), [("qwen2.5", 32768), ("qwq-32b", 131072)])
def test_configs_of_real_checkpoints(name, longest):
    file = Path(__file__).parents[2] / "../shared/data" / name / "config.json"
    if not file.is_file():
        pytest.skip("needs the files of real checkpoints in ../shared/data")
    config = json.loads(file.read_text())
    assert Qwen2ForCausalLM.max_model_len(config) == longest
    assert unknown_keys(Qwen2ForCausalLM.config_class, config) == []
    assert parse_config(LayeredWindowConfig, config).window(0) is None
    assert resolve_dtype(config, "auto") == torch.bfloat16


def test_an_object_within_is_checked_like_the_whole():
    @dataclass(frozen=True, kw_only=True)
    class Tower:
        hidden_size: int
        depth: int = 3

    def parse(given):
        return parse_part(Tower, {"architectures": ["Seer"], "vision_config": given}, "vision_config")

    assert parse({"hidden_size": 4, "depth": None, "initializer_range": 0.1}) == Tower(hidden_size=4)
    for given, message in (
        ({"depth": 3}, "config.json's vision_config has no hidden_size, which Seer needs"),
        ({"hidden_size": 0}, "config.json's vision_config's hidden_size is 0"),
        ({"hidden_size": 4, "depth": "x"}, "config.json's vision_config cannot be used"),
        (
            {"hidden_size": 4, "use_qk_norm": True},
            "config.json's vision_config sets use_qk_norm to True, which .* Seer",
        ),
        (None, "config.json's vision_config must be an object, got None"),
    ):
        with pytest.raises(CheckpointError, match=message):
            parse(given)
