"""What is refused before a worker starts, in the words in which the worker would refuse it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sophserve import plugins, registered
from sophserve.cli import main
from sophserve.config import EngineConfig
from sophserve.engine.engine import Engine
from sophserve.errors import SophserveError
from sophserve.fit import check_kv_room
from sophserve.measure.footprint import FootprintRequest
from sophserve.preflight import check

KINDS = ("deepseek_v2", "deepseek_v3", "llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")


def changed(source: Path, target: Path, **fields: Any) -> Path:
    """A copy of a checkpoint's config.json with other fields; None removes one."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text()) | fields
    (target / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return target


def refusal(do: Callable[[], object]) -> str | None:
    try:
        do()
    except SophserveError as error:
        return str(error)
    return None


def of_worker(directory: Path, config: EngineConfig) -> str | None:
    """What the code that loads the model says, without weights."""
    from sophserve.measure.footprint_process import footprint

    return refusal(lambda: footprint(FootprintRequest(directory=str(directory), config=config)))


@pytest.mark.parametrize("hook", ["architectures", "devices", "quantizations"])
def test_names_in_the_source_are_those_that_are_registered(hook: str) -> None:
    names = registered.registered(f"register_{hook}")
    found = getattr(plugins, hook)()
    assert names is not None
    assert names.distributions == {name: entry.distribution for name, entry in found.items()}
    if hook == "quantizations":
        able = [name for name, members in names.members.items() if "for_dense" in members]
        assert able == [name for name, entry in found.items() if entry.value.for_dense() is not None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_parallel_size": 3}, "cannot be split between 3 ranks; --tensor-parallel-size can be 1, 2"),
        ({"tensor_parallel_size": 1000}, "cannot be split between 1000 ranks"),
        ({"tensor_parallel_size": 2}, None),
        ({"quantization": "awq"}, "--quantization awq cannot quantize a plain checkpoint; use one of fp8, gptq"),
        ({"quantization": "int3"}, "--quantization int3 cannot"),
        ({"device": "cuda"}, "there is no device 'cuda'; --device takes auto or one of: cmodel"),
        ({"max_model_len": 8192}, "--max-model-len is 8192, but the model's context is 256"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 16}, "without chunked prefill"),
        ({}, None),
    ],
)
def test_options(make_checkpoint: Callable[..., Path], kind: str, options: dict[str, Any], words: str | None) -> None:
    directory = make_checkpoint(kind)
    config = EngineConfig(model="x", **options)
    said = refusal(lambda: check(config, directory))
    assert said == of_worker(directory, config)
    assert said is None if words is None else said is not None and words in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [
        {"num_key_value_heads": None},
        {"num_key_value_heads": 1},
        {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 8},
        {"intermediate_size": 90},
        {"vocab_size": 3},
        {"head_dim": None},
        {"dtype": "float8_e4m3fn"},
        {"architectures": ["NoSuchForCausalLM"]},
        {"architectures": None},
        {"quantization_config": {"quant_method": "bitnet"}},
        {
            "max_position_embeddings": 32,
            "rope_parameters": None,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
        {"rope_parameters": None, "rope_theta": 10000.0},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_files(make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    """The server never refuses what the worker takes."""
    directory = changed(make_checkpoint(kind), tmp_path / "model", **fields)
    for ranks in (1, 2, 3, 4, 8):
        config = EngineConfig(model="x", tensor_parallel_size=ranks, max_model_len=64)
        said, of_model = refusal(partial(check, config, directory)), of_worker(directory, config)
        # Qwen3's heads have a size of their own where the file gives none, which the server leaves to the worker.
        assert said == of_model or (said is None and kind == "qwen3" and fields == {"head_dim": None}), ranks


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize(
    "fields",
    [
        {"moe_intermediate_size": 30, "shared_expert_intermediate_size": 50, "mlp_only_layers": [0]},
        {"moe_intermediate_size": 40, "shared_expert_intermediate_size": 50, "intermediate_size": 98},
        {"moe_intermediate_size": 40, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2},
        {"mlp_only_layers": [1], "intermediate_size": 98},
        {"num_experts": None, "num_local_experts": 8, "intermediate_size": 98},
        {"num_experts": 0, "num_local_experts": None, "intermediate_size": 98},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_files_of_sparse_models(
    make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    """What is split are the sizes that layers have, not all that config.json names."""
    if kind == "qwen3_moe":  # which has no shared expert
        fields = {key: value for key, value in fields.items() if key != "shared_expert_intermediate_size"}
    if kind == "qwen3_moe":  # which has no shared expert, and refuses the key
        fields = {key: value for key, value in fields.items() if not key.startswith("shared_expert")}
    directory = changed(make_checkpoint(kind), tmp_path / "model", **fields)
    for ranks in (1, 2, 4):
        config = EngineConfig(model="x", tensor_parallel_size=ranks, max_model_len=64)
        assert refusal(partial(check, config, directory)) == of_worker(directory, config), ranks


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3"])
@pytest.mark.parametrize(
    "fields",
    [
        {"moe_intermediate_size": 33, "n_shared_experts": 2},
        {"moe_intermediate_size": 36, "n_shared_experts": None, "intermediate_size": 98},
        {"moe_intermediate_size": 33, "n_shared_experts": 0, "first_k_dense_replace": 3},
        {"moe_layer_freq": 2, "first_k_dense_replace": 0, "num_hidden_layers": 1, "intermediate_size": 97},
        {"moe_layer_freq": 2, "first_k_dense_replace": 1, "num_hidden_layers": 2, "moe_intermediate_size": 33},
        {"num_attention_heads": 6, "num_key_value_heads": 1, "q_lora_rank": 24},
        {"num_attention_heads": 3, "num_key_value_heads": 3, "v_head_dim": 10},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_files_of_latent_models(
    make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    directory = changed(make_checkpoint(kind), tmp_path / "model", **fields)
    for ranks in (1, 2, 4):
        config = EngineConfig(model="x", tensor_parallel_size=ranks, max_model_len=64)
        assert refusal(partial(check, config, directory)) == of_worker(directory, config), ranks


@pytest.mark.parametrize("fields", [{"mlp_only_layers": 1}, {"norm_topk_prob": "yes"}])
def test_keys_that_cannot_be_right_are_left_to_the_worker(
    make_checkpoint: Callable[..., Path], tmp_path: Path, fields: dict[str, Any]
) -> None:
    directory = changed(make_checkpoint("qwen2_moe"), tmp_path / "model", **fields)
    config = EngineConfig(model="x")
    check(config, directory)
    assert "config.json cannot be used: Expected" in (of_worker(directory, config) or "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_cache_is_measured_as_the_worker_does(make_checkpoint: Callable[..., Path], kind: str, ranks: int) -> None:
    from sophserve.measure.footprint_process import footprint

    directory = make_checkpoint(kind)
    options = {"model": "x", "tensor_parallel_size": ranks, "max_model_len": 64, "dtype": "bfloat16"}
    found = footprint(FootprintRequest(directory=str(directory), config=EngineConfig(**options)))
    enough = found.kv_token_bytes * 64
    check(EngineConfig(**options, kv_cache_memory=str(enough)), directory)
    with pytest.raises(SophserveError, match="lower --max-model-len to at most 48 or raise --kv-cache-memory"):
        check(EngineConfig(**options, kv_cache_memory=str(enough - 1)), directory)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("2", "--kv-cache-memory is 2 bytes, less than one block of 12.00 KiB (16 tokens)"),
        ("2", "did you mean 2GiB?"),
        ("12287", "; raise it"),
        ("1k", "--kv-cache-memory is 1000 bytes, less than one block"),
        ("12KiB", "lower --max-model-len to at most 16 or raise --kv-cache-memory"),
    ],
)
def test_too_little_for_the_cache(given: str, said: str) -> None:
    config = EngineConfig(model="x", kv_cache_memory=given)
    budget = config.kv_cache_bytes or 0
    text = refusal(lambda: check_kv_room(budget, 12 << 10, budget // (12 << 10), config, 256))
    assert text is not None and said in text and "at most 0" not in text


def test_no_memory_left_for_the_cache() -> None:
    text = refusal(lambda: check_kv_room(100, 12 << 10, 0, EngineConfig(model="x"), 256))
    assert text is not None and "free memory of the device, or quantize or split the model" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--tensor-parallel-size 3", "--tensor-parallel-size can be 1, 2, 4 for this model"),
        ("--quantization awq", "use one of fp8, gptq"),
        ("--device cuda", "there is no device 'cuda'"),
        ("--max-model-len 8192", "the model's context is 2048"),
        ("--kv-cache-memory 2", "did you mean 2GiB?"),
    ],
)
def test_no_worker_starts(
    line: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(_: Engine) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(Engine, "start_worker", start)
    assert main(["--model", "demo", "--port", "0", *line.split()]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sophserve: error: ") and words in error


def test_a_map_of_too_few_chips(make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHIP_MAP", "0")
    with pytest.raises(SophserveError, match="must list at least 2 device numbers"):
        check(EngineConfig(model="x", tensor_parallel_size=2), make_checkpoint("qwen2"))


def test_plugins_that_cannot_be_read_are_left_to_the_worker(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names may be any: only what else is wrong is said."""
    monkeypatch.syspath_prepend(tmp_path)
    for source in ("x = 1 +", 'def register_devices(register):\n    for name in ("cuda",): register(name, object)\n'):
        (tmp_path / "unusual.py").write_text(source)
        entry = importlib.metadata.EntryPoint("unusual", "unusual", "sophserve")
        entries = [*importlib.metadata.entry_points(group="sophserve"), entry]
        monkeypatch.setattr(registered, "entry_points", lambda group, entries=entries: entries)
        registered._plugins.cache_clear()
        check(EngineConfig(model="x", device="cuda"), make_checkpoint("qwen2"))
    (tmp_path / "unusual.py").write_text('def register_devices(register):\n    register("cuda", Device)\n')
    registered._plugins.cache_clear()
    check(EngineConfig(model="x", device="cuda"), make_checkpoint("qwen2"))
    with pytest.raises(SophserveError, match="auto or one of: cmodel, cuda"):
        check(EngineConfig(model="x", device="gpu"), make_checkpoint("qwen2"))
    registered._plugins.cache_clear()


def test_another_architecture_s_sizes_are_left_to_it(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sophserve.preflight.OWN", "another")
    check(EngineConfig(model="x", tensor_parallel_size=3, max_model_len=10**6), make_checkpoint("qwen2"))


@pytest.mark.parametrize("kind", ["llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        ({}, {}, None),
        ({}, {"tensor_parallel_size": 2}, None),
        ({"num_key_value_heads": None, "head_dim": None}, {"tensor_parallel_size": 2}, None),
        ({"hidden_size": 0}, {}, "config.json's hidden_size is 0"),
        ({"num_hidden_layers": 10**12}, {}, "config.json's num_hidden_layers is 1000000000000"),
        ({"max_position_embeddings": 32}, {}, "--max-model-len is 64, but the model's context is 32"),
        ({"dtype": "int8"}, {}, "config.json's dtype 'int8' cannot be run"),
        ({}, {"tensor_parallel_size": 3}, "left to the worker: --tensor-parallel-size can be 1, 2"),
        ({"intermediate_size": 90}, {"tensor_parallel_size": 4}, "left to the worker: 90 columns of a projection"),
    ],
)
def test_a_decoder_within_a_model(
    make_seeing_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    kind: str,
    fields: dict[str, Any],
    options: dict[str, Any],
    words: str | None,
) -> None:
    """What its text_config says is checked as that of any other is, or left to the worker, who knows the tower."""
    source = make_seeing_checkpoint(kind)
    text = json.loads((source / "config.json").read_text())["text_config"] | fields
    nested = {"text_config": {key: value for key, value in text.items() if value is not None}, "dtype": None}
    config = EngineConfig(model="x", max_model_len=64, **options)
    directory = changed(source, tmp_path / "model", **nested)
    said, of_model = refusal(partial(check, config, directory)), of_worker(directory, config)
    if words and words.startswith("left to the worker: "):
        assert said is None and of_model and words.removeprefix("left to the worker: ") in of_model
    else:
        assert said == of_model
        assert said is None if words is None else said is not None and words in said
