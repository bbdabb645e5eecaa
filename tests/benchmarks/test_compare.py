"""The arithmetic and the tables of benchmarks/compare.py and kernels.py; what they measure is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import compare, machine
from benchmarks.peers import protocol, setup

SHAPE = machine.Shape(hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, head_dim=2, vocab=10)
LAYER_WEIGHTS = 2 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6)  # q, k and v, o, and the MLP of both layers


def test_shape_counts_weights_and_operations_from_config(tmp_path: Path) -> None:
    config = {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 1, "vocab_size": 10}))
    assert machine.Shape.of(tmp_path) == SHAPE
    assert SHAPE.layer_weights == LAYER_WEIGHTS
    assert SHAPE.weight_bytes == 2 * (LAYER_WEIGHTS + 40)
    assert SHAPE.kv_bytes(batch=3, context=5) == 3 * 5 * 2 * (2 + 2) * 2  # tokens, layers, key and value, bytes
    # Three tokens see 1 + 2 + 3; a product and a sum for each channel of both heads, for scores and for values.
    assert SHAPE.prefill_flops(3) == 2 * 3 * LAYER_WEIGHTS + 6 * 2 * 2 * 2 * 2 * 2 + 2 * 40


def test_decode_is_limited_by_reads_then_by_products() -> None:
    limits = machine.Limits(read_gbs=1, float32_gflops=1, bfloat16_gflops=1000, product="")
    work = protocol.Workload("decode", 2, 8)
    read = SHAPE.weight_bytes + SHAPE.kv_bytes(2, 8)
    assert compare.limit(work, SHAPE, limits, SHAPE.weight_bytes) == pytest.approx(2e9 / read)
    slow = machine.Limits(read_gbs=1000, float32_gflops=1, bfloat16_gflops=1, product="")
    assert compare.limit(work, SHAPE, slow, SHAPE.weight_bytes) == pytest.approx(2e9 / SHAPE.decode_flops(2, 8))


def test_medians_leave_out_other_commits_of_ours_and_other_models(tmp_path: Path) -> None:
    samples = compare.Samples(tmp_path / "new" / "samples.jsonl", fresh=True)
    for value in (1.0, 5.0, 2.0):
        samples.add(compare.Sample("m", "sophserve", "prefill-128", value, "now"))
    samples.add(compare.Sample("m", "sophserve", "prefill-128", 1000.0, "before"))
    samples.add(compare.Sample("m", "vllm", "prefill-128", 4.0, "before"))
    samples.add(compare.Sample("other", "vllm", "prefill-128", 1000.0, "now"))
    samples.add(compare.Sample("", "machine", "read_gbs", 30.0, "before"))
    assert samples.read("m", "now") == {
        ("sophserve", "prefill-128"): 2.0,
        ("vllm", "prefill-128"): 4.0,
        ("machine", "read_gbs"): 30.0,
    }
    compare.Samples(tmp_path / "new" / "samples.jsonl", fresh=True)
    assert samples.read("m", "now") == {}


def test_table_has_shares_and_ratios_and_blanks_for_what_is_missing() -> None:
    table = [
        compare.Row("decode-1x128", {"sophserve": 30.0, "vllm": 20.0}, {"sophserve": 40.0, "vllm": 40.0}),
        compare.Row("ready, s", {"sophserve": 5.64}, {}),
    ]
    assert compare.render(table, ["sophserve", "vllm"]).splitlines() == [
        "|  | limit of sophserve | sophserve | vllm | sophserve / vllm |",
        "|---|---|---|---|---|",
        "| decode-1x128 | 40 | 30 (75%) | 20 (50%) | 1.50 |",
        "| ready, s |  | 5.64 |  |  |",
    ]


def test_requirements_without_extras_and_media() -> None:
    wheel = ["numpy", 'torch==2.13.0+cpu; platform_machine == "x86_64"', "torchvision", 'helion>=1; extra == "helion"']
    assert setup.needed([*wheel, "fastapi[standard]<0.137"]) == ["numpy", "fastapi[standard]<0.137"]
