"""A config.json that no model can have is refused in a moment, in one sentence that names the key, by server, worker
and plan alike."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sophserve.config import EngineConfig
from sophserve.errors import CheckpointError, SophserveError
from sophserve.measure.footprint import FootprintRequest
from sophserve.preflight import check

HUGE = 10**12
WRONG_SIZES: list[Any] = [-1, HUGE, 10**30, 2.5, "8", True, [8]]
DECODER = ["num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings"]
EXPERTS = ["num_experts_per_tok", "moe_intermediate_size"]
LATENT = ["kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
SIZES = {
    "llama": DECODER,
    "qwen2_moe": [*DECODER, *EXPERTS, "num_experts", "decoder_sparse_step"],
    "qwen3_moe": [*DECODER, *EXPERTS, "num_local_experts"],
    "deepseek_v2": [*DECODER, *EXPERTS, *LATENT, "n_routed_experts"],
    "deepseek_v3": [*DECODER, *EXPERTS, *LATENT, "n_routed_experts", "first_k_dense_replace"],
}
WORDS: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek_v2", {"topk_method": "best"}, "topk_method 'best' is not supported; supported: greedy, "),
    ("deepseek_v3", {"scoring_func": "relu"}, "scoring_func 'relu' is not supported; supported: softmax, sigmoid"),
    ("deepseek_v2", {"n_group": 3}, "8 n_routed_experts cannot be chosen in 2 topk_group of 3 n_group"),
    ("deepseek_v2", {"topk_group": 5}, "8 n_routed_experts cannot be chosen in 5 topk_group of 4 n_group"),
    ("deepseek_v3", {"n_group": 16, "topk_method": "noaux_tc"}, "cannot be chosen in 2 topk_group of 16 n_group"),
    ("deepseek_v2", {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, but there are only 4 experts in 2 topk_gr"),
    ("deepseek_v2", {"num_experts_per_tok": 9, "topk_method": "greedy"}, "there are only 8 experts"),
    ("qwen2_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but there are only 8 experts"),
    ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, but there are only 8 experts"),
    ("deepseek_v3", {"first_k_dense_replace": 4}, "first_k_dense_replace is 4, but there are only 3 num_hidden_layers"),
    ("qwen2_moe", {"num_experts": 1 << 18}, "asks for 262144 experts (num_experts) in 2 layers"),
    ("deepseek_v3", {"n_routed_experts": 1 << 17}, "asks for 131072 experts (n_routed_experts) in 3 layers"),
]
LEFT_TO_THE_WORKER: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek_v2", {"kv_lora_rank": None}, "config.json has no kv_lora_rank, which DeepseekV2ForCausalLM needs"),
    ("deepseek_v3", {"kv_lora_rank": 0}, "config.json's kv_lora_rank is 0; it must be a whole number from 1 to"),
    ("deepseek_v2", {"num_experts_per_tok": None}, "config.json has no num_experts_per_tok"),
    ("deepseek_v3", {"num_experts_per_tok": 0}, "config.json's num_experts_per_tok is 0; it must be a whole number"),
    ("deepseek_v3", {"topk_method": 3}, "at `$.topk_method`"),
    ("deepseek_v3", {"scoring_func": ["softmax"]}, "at `$.scoring_func`"),
    ("deepseek_v3", {"n_group": 3}, "8 n_routed_experts cannot be chosen in 2 topk_group of 3 n_group"),
    ("deepseek_v3", {"routed_scaling_factor": float("nan")}, "at `$.routed_scaling_factor`"),
    ("deepseek_v2", {"routed_scaling_factor": float("inf")}, "at `$.routed_scaling_factor`"),
    ("deepseek_v2", {"routed_scaling_factor": -1.0}, "at `$.routed_scaling_factor`"),
    ("qwen3_moe", {"rms_norm_eps": float("nan")}, "at `$.rms_norm_eps`"),
    ("llama", {"rms_norm_eps": -1e-6}, "at `$.rms_norm_eps`"),
    ("qwen2_moe", {"norm_topk_prob": 1}, "at `$.norm_topk_prob`"),
    ("qwen2_moe", {"mlp_only_layers": "1"}, "at `$.mlp_only_layers`"),
    ("qwen3_moe", {"num_experts": 4}, "config.json has num_experts 4 and num_local_experts 8; one of them"),
    ("deepseek_v3", {"qk_rope_head_dim": 7}, "asks to rotate 7 channels"),
]


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """What asks for gigabytes fails at once, with another error."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), most))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def changed(source: Path, target: Path, fields: dict[str, Any]) -> Path:
    """A directory with a checkpoint's config.json and its weights; None removes a key."""
    target.mkdir()
    (target / "model.safetensors").symlink_to(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text()) | fields
    (target / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return target


def refusals(directory: Path, *, by_server: bool = True) -> set[str | None]:
    """What the server, the plan and the worker say, in one sentence each; None where one takes it."""
    import torch

    from device.cmodel.device import CmodelDevice
    from device.collectives.interface import SingleRank
    from sophserve.measure.footprint_process import footprint
    from sophserve.model.context import ModelContext
    from sophserve.model.loading import load_model

    config = EngineConfig(model="x", max_model_len=64)
    context = ModelContext(CmodelDevice(), SingleRank(), torch.float32, max_positions=64)
    said: set[str | None] = set()
    for do in (
        *([partial(check, config, directory)] if by_server else ()),
        partial(footprint, FootprintRequest(directory=str(directory), config=config)),
        partial(load_model, directory, context),
    ):
        try:
            do()
            said.add(None)
        except SophserveError as error:
            assert isinstance(error, CheckpointError) and "\n" not in str(error)
            said.add(str(error))
    return said


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in SIZES.items() for key in keys])
def test_sizes(make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, key: str) -> None:
    for number, value in enumerate(WRONG_SIZES):
        directory = changed(make_checkpoint(kind), tmp_path / str(number), {key: value})
        [said] = refusals(directory)
        assert said is not None and said.startswith(
            f"config.json's {key} is {value!r}; it must be a whole number from "
        )


@pytest.mark.parametrize(("kind", "fields", "words"), WORDS)
def test_routers(
    make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, fields: dict[str, Any], words: str
) -> None:
    [said] = refusals(changed(make_checkpoint(kind), tmp_path / "model", fields))
    assert said is not None and words in said


@pytest.mark.parametrize(("kind", "fields", "words"), LEFT_TO_THE_WORKER)
def test_what_only_the_worker_knows(
    make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, fields: dict[str, Any], words: str
) -> None:
    directory = changed(make_checkpoint(kind), tmp_path / "model", fields)
    check(EngineConfig(model="x", max_model_len=64), directory)
    [said] = refusals(directory, by_server=False)
    assert said is not None and words in said
