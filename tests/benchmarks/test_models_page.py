"""docs/models.md and docs/scaling.md say what the code does today, and what follows from the shapes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks import models_page
from sophserve.config import EngineConfig
from sophserve.measure.footprint import FootprintRequest
from sophserve.measure.footprint_process import footprint
from sophserve.measure.plan import PRESETS


def lines(name: str, weights: str) -> list[list[str]]:
    """The cells of the page's lines of a model, behind the first two."""
    cells = [line.split(" | ") for line in models_page.PAGE.read_text(encoding="utf-8").splitlines()]
    return [line[2:] for line in cells if line[:2] == [f"| {name}", weights]]


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    expected, found = models_page.PAGE.read_text(encoding="utf-8"), models_page.page()
    assert found == expected, "run python benchmarks/models_page.py"


@pytest.mark.parametrize(
    "name", ["Llama3.1-8B", pytest.param("Qwen2-57B-A14B", marks=pytest.mark.slow), "DeepSeek-V2-Lite"]
)
def test_lines_of_the_page_are_up_to_date(name: str) -> None:
    """Of a few models; the largest take long."""
    with models_page.MODELS.open("rb") as file:
        known = tomllib.load(file)
    page = models_page.PAGE.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [models_page.rows(model, known["configs"]) for model in known["models"] if model["name"] == name]
    assert found
    for line, parts in found:
        assert {line, *parts} <= set(page), "run python benchmarks/models_page.py"


@pytest.mark.parametrize(
    ("name", "config", "chips"),
    [
        ("Llama-3.1-70B, BF16", "llama31-70b", 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("Llama-3.1-70B, BF16", "llama31-70b", 4),
                ("Qwen2-72B, BF16", "qwen2-72b", 2),
                ("Qwen2-72B, BF16", "qwen2-72b", 4),
                ("DeepSeek-V3, FP8", "deepseek-v3", 8),
                ("DeepSeek-V3, FP8", "deepseek-v3", 16),
                ("DeepSeek-V3, FP8", "deepseek-v3", 32),
            ]
        ),
    ],
)
def test_plans_of_large_models_are_up_to_date(name: str, config: str, chips: int, tmp_path: Path) -> None:
    with models_page.MODELS.open("rb") as file:
        shape = tomllib.load(file)["configs"][config]
    (tmp_path / "config.json").write_text(json.dumps(shape))
    memory = PRESETS["sg2260"].memory
    assert memory
    options = EngineConfig(
        model="x", dtype="bfloat16", tensor_parallel_size=chips // 2, pipeline_parallel_size=2, device="cmodel"
    )
    found = footprint(FootprintRequest(directory=str(tmp_path), config=options, memory=memory, search=[memory]))
    page = (models_page.PAGE.parent / "scaling.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in page if line.startswith(f"| {name} | {chips} |")] == [
        f"| {name} | {chips} | {each.tensor_parallel_size} | {each.pipeline_parallel_size} | {each.weight_bytes} "
        f"| {each.kv_token_bytes} | {each.num_blocks * options.block_size} |"
        for each in found.layouts
    ]
    # Keys and values in two bytes of 80 layers of 8 heads of 128 channels, half of them on each of two chips.
    assert name != "Llama-3.1-70B, BF16" or found.kv_token_bytes == 2 * 2 * 80 * 8 * 128 // chips


def test_sizes_are_those_of_the_parameters() -> None:
    # 6.74 billion parameters of two bytes; 32 layers of 32 heads of 128 channels, keys and values.
    [cells] = lines("Llama2-7B", "FP16")
    assert cells == ["6.74B", "", "12.55 GiB", "512.00 KiB", "4096", "1", "1", "served |"]


@pytest.mark.parametrize(
    ("name", "weights", "total", "active", "embedding"),
    [
        # As their makers have it, of whom some count the embedding among what is active.
        ("Qwen2-57B-A14B", "BF16", 57.4, 14, 151936 * 3584),
        ("Qwen3-30B-A3B", "BF16", 30.5, 3.3, 151936 * 2048),
        ("DeepSeek-V2-Lite", "BF16", 15.7, 2.4, 102400 * 2048),
        ("DeepSeek-V3, DeepSeek-R1", "FP8", 671.0, 37, 129280 * 7168),
    ],
)
def test_parameters_are_as_many_as_published(
    name: str, weights: str, total: float, active: float, embedding: int
) -> None:
    found_total, found_active = (float(cell.removesuffix("B")) for cell in lines(name, weights)[0][:2])
    assert found_total == pytest.approx(total, abs=0.05)
    assert found_active - 0.06 <= active <= found_active + embedding / 1e9


def float8(outputs: int, inputs: int) -> int:
    """Bytes of a weight in panels of 32 outputs, with a float32 scale for each output and block of 128 inputs."""
    rows, depth = (-(-count // 32) * 32 for count in (outputs, inputs))
    return rows * (depth + 4 * -(-inputs // 128))


def bfloat16(outputs: int, inputs: int) -> int:
    return 2 * (-(-outputs // 32) * 32) * (-(-inputs // 32) * 32)


def deepseek_v3(ranks: int, config: dict[str, Any]) -> tuple[int, int, int]:
    """By hand, bytes of a rank: all weights, one layer's experts, and the embedding."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"] // ranks
    q_rank, latent, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    attention = (
        float8(q_rank + latent + rope, hidden)
        + float8(heads * (nope + rope), q_rank)
        + heads * (bfloat16(latent, nope) + bfloat16(value, latent))
        + float8(hidden, heads * value)
        + 2 * (q_rank + latent + 2 * hidden)
    )

    def mlp(inner: int) -> int:
        return 2 * float8(inner // ranks, hidden) + float8(hidden, inner // ranks)

    inner, experts = config["moe_intermediate_size"], config["n_routed_experts"]
    routed = experts * mlp(inner)
    sparse = bfloat16(experts, hidden) + 4 * experts + routed + mlp(config["n_shared_experts"] * inner)
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    mlps = dense * mlp(config["intermediate_size"]) + (layers - dense) * sparse
    words = config["vocab_size"] // ranks
    embedding = 2 * words * hidden
    return layers * attention + mlps + embedding + bfloat16(words, hidden) + 2 * hidden, routed, embedding


@pytest.mark.parametrize("ranks", [8, 16, 32])
def test_deepseek_v3_to_the_byte(ranks: int) -> None:
    with models_page.MODELS.open("rb") as file:
        config = tomllib.load(file)["configs"]["deepseek-v3"]
    weights, routed, embedding = deepseek_v3(ranks, config)
    [cells] = [cells for cells in lines("DeepSeek-V3, DeepSeek-R1", "FP8") if cells[0] == str(ranks)]
    step = weights - embedding - 58 * routed
    # 8 of 256 experts for each row, each of whom is as likely as any other.
    read = [f"{(step + 58 * routed * (1 - (1 - 8 / 256) ** rows)) / 2**30:.2f} GiB" for rows in (1, 16)]
    assert cells[1:4] == [f"{weights / 2**30:.2f} GiB", str(weights), f"{2048 // ranks} of 2048"]
    # A latent and a rotated key of 61 layers, the same on every rank.
    assert cells[4:] == [f"{61 * (512 + 64) * 2 / 1024:.2f} KiB", read[0], f"{read[1]} |"]
    if ranks == 16:
        for page in ("measuring.md", "measuring.zh-CN.md"):
            text = (models_page.PAGE.parent / page).read_text(encoding="utf-8")
            assert f"weights          {weights / 2**30:.2f} GiB a device, {weights} bytes" in text
