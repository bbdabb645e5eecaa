"""The arithmetic and the tables of benchmarks/compare.py and kernels.py; what they measure is not tested."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import compare, machine, samples
from benchmarks.peers import process, protocol, setup

DENSE = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2}
LATENT = {"num_hidden_layers": 2, "num_attention_heads": 2, "kv_lora_rank": 8, "qk_rope_head_dim": 2}
LATENT |= {"qk_nope_head_dim": 4, "v_head_dim": 3, "num_key_value_heads": 2, "n_routed_experts": 4}
LAYER, EXPERT, HEAD = 4 * 4, 3 * 4 * 6, 4 * 10


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """A folder with config.json and weights of two layers: a matrix, a norm and so many experts in each; a head."""

    def make(
        config: dict[str, object], experts: int = 0, tied: bool = False, dtype: torch.dtype = torch.bfloat16
    ) -> Path:
        tensors = {"model.embed_tokens.weight": torch.zeros(10, 4, dtype=torch.bfloat16)}
        if not tied:
            tensors["lm_head.weight"] = torch.zeros(10, 4, dtype=torch.bfloat16)
        for layer in ("model.layers.0.", "model.layers.1."):
            tensors[layer + "self_attn.o_proj.weight"] = torch.zeros(4, 4, dtype=torch.bfloat16)
            tensors[layer + "input_layernorm.weight"] = torch.zeros(4, dtype=torch.bfloat16)
            for expert in range(experts):
                for name, size in (("gate_proj", (6, 4)), ("up_proj", (6, 4)), ("down_proj", (4, 6))):
                    tensors[f"{layer}mlp.experts.{expert}.{name}.weight"] = torch.zeros(size, dtype=torch.bfloat16)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


@pytest.mark.parametrize("tied", [False, True])
def test_a_dense_model_reads_and_computes_all_its_matrices(checkpoint: Callable[..., Path], tied: bool) -> None:
    shape = machine.Shape.of(checkpoint(DENSE, tied=tied))
    assert shape.elements == machine.Matrices(layers=2 * LAYER, experts=0, head=HEAD)
    assert shape.experts_read(8) == 0
    assert shape.kv_bytes(batch=3, context=5) == 3 * 5 * 2 * (2 + 2) * 2  # tokens, layers, key and value, bytes
    # Three tokens see 1 + 2 + 3; a product and a sum for each channel of both heads, for scores and for values.
    assert shape.prefill_flops(3) == 2 * 3 * 2 * LAYER + 6 * 2 * 2 * 2 * 2 * 2 + 2 * HEAD
    assert shape.decode_flops(3, 5) == 3 * (2 * (2 * LAYER + HEAD) + 5 * 2 * 2 * 2 * 2 * 2)


def test_a_sparse_model_computes_the_experts_that_a_token_chooses(checkpoint: Callable[..., Path]) -> None:
    shape = machine.Shape.of(checkpoint(DENSE | {"num_experts": 4, "num_experts_per_tok": 1}, experts=4))
    assert shape.elements == machine.Matrices(layers=2 * LAYER, experts=2 * 4 * EXPERT, head=HEAD)
    assert shape.decode_flops(3, 0) == 3 * 2 * (2 * LAYER + 2 * EXPERT + HEAD)
    assert shape.prefill_flops(3) == 2 * 3 * 2 * (LAYER + EXPERT) + 6 * 2 * 2 * 2 * 2 * 2 + 2 * HEAD


def test_the_experts_that_a_batch_reads_are_those_that_some_token_chooses(checkpoint: Callable[..., Path]) -> None:
    """Of 4 experts and one choice: by counting all choices of three tokens."""
    shape = machine.Shape.of(checkpoint(DENSE | {"num_experts": 4, "num_experts_per_tok": 1}, experts=4))
    choices = list(itertools.product(range(4), repeat=3))
    assert shape.experts_read(1) == 1 / 4
    assert shape.experts_read(3) == pytest.approx(sum(len(set(each)) for each in choices) / len(choices) / 4)


def test_latent_attention_caches_one_latent_for_all_heads(checkpoint: Callable[..., Path]) -> None:
    shape = machine.Shape.of(checkpoint(LATENT | {"num_experts_per_tok": 2}, experts=4))
    assert shape.expert_share == 1 / 2
    assert shape.kv_bytes(batch=1, context=5) == 5 * 2 * (8 + 2) * 2  # tokens, layers, latent and rope, bytes
    assert shape.decode_pair_flops == 2 * 2 * 2 * ((8 + 2) + 8)  # layers, heads, scores and values in latent space
    assert shape.prefill_pair_flops == 2 * 2 * 2 * ((4 + 2) + 3)  # with keys and values made of the latents


def test_matrices_of_a_gguf_are_those_of_the_checkpoint(checkpoint: Callable[..., Path]) -> None:
    gguf = {"token_embd.weight": ([4, 10], 80), "output_norm.weight": ([4], 16), "output.weight": ([4, 10], 80)}
    for layer in ("blk.0.", "blk.1."):
        gguf |= {layer + "attn_output.weight": ([4, 4], 32), layer + "attn_norm.weight": ([4], 16)}
        gguf |= {f"{layer}ffn_{part}_exps.weight": ([4, 6, 4], 192) for part in ("gate", "up", "down")}
    assert machine.matrices(gguf) == machine.checkpoint_matrices(checkpoint(DENSE, experts=4))


def test_decode_is_limited_by_reads_then_by_products(checkpoint: Callable[..., Path]) -> None:
    shape = machine.Shape.of(checkpoint(DENSE | {"num_experts": 4, "num_experts_per_tok": 1}, experts=4))
    limits = machine.Limits(read_gbs=1, float32_gflops=1, bfloat16_gflops=1000, product="")
    work, weights = protocol.Workload("decode", 2, 8), machine.Matrices(layers=1000, experts=1600, head=100)
    read = 1000 + 1600 * (1 - (3 / 4) ** 2) + 100 + shape.kv_bytes(2, 8)
    assert compare.limit(work, shape, limits, weights) == pytest.approx(2e9 / read)
    slow = machine.Limits(read_gbs=1000, float32_gflops=1, bfloat16_gflops=1, product="")
    assert compare.limit(work, shape, slow, weights) == pytest.approx(2e9 / shape.decode_flops(2, 8))


def test_context_slope_is_the_cost_of_one_more_token() -> None:
    steps = {("ours", f"decode-1x{context}"): 1 / (0.01 + 2e-6 * context) for context in (128, 1024, 4096)}
    assert compare.context_slope(steps, "ours") == pytest.approx(2e-6)
    del steps["ours", "decode-1x1024"]
    assert compare.context_slope(steps | {("ours", "decode-8x128"): 1.0}, "ours") is None


def test_medians_leave_out_other_commits_of_ours_and_other_models(tmp_path: Path) -> None:
    file = samples.Samples(tmp_path / "new" / "samples.jsonl", fresh=True)
    for value in (1.0, 5.0, 2.0):
        file.add(samples.Sample("m", "sophserve", "prefill-128", value, "now"))
    file.add(samples.Sample("m", "sophserve", "prefill-128", 1000.0, "before"))
    file.add(samples.Sample("m", "vllm", "prefill-128", 4.0, "before"))
    file.add(samples.Sample("other", "vllm", "prefill-128", 1000.0, "now"))
    file.add(samples.Sample("", "machine", "read_gbs", 30.0, "before"))
    assert file.read("m", "now") == {
        ("sophserve", "prefill-128"): 2.0,
        ("vllm", "prefill-128"): 4.0,
        ("machine", "read_gbs"): 30.0,
    }
    samples.Samples(tmp_path / "new" / "samples.jsonl", fresh=True)
    assert file.read("m", "now") == {}


def test_failures_are_told_until_it_works(tmp_path: Path) -> None:
    file = samples.Samples(tmp_path / "samples.jsonl", fresh=True)
    for error in ("first", "second"):
        file.add(samples.Failure("m", "vllm", "start", error, "now"))
    file.add(samples.Failure("m", "sophserve", "start", "old", "before"))
    assert file.failures("m", "now") == {("vllm", "start"): "second"}
    assert file.read("m", "now") == {}
    file.add(samples.Sample("m", "vllm", "start", 1.0, "now"))
    assert file.failures("m", "now") == {}


def test_cause_is_the_first_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [
        "WARNING a plugin (KeyError: 'x') is left out",
        "(EngineCore pid=7) ERROR 11-28 [core.py:1] ValueError: none",
    ]
    log.write_text("\n".join([*lines, "RuntimeError: see above"]))
    assert process.cause(log) == "ValueError: none"
    log.write_text(
        "\n".join(["(Worker) ERROR [a.py:1] ValueError: no kernel. Reasons: ", "(Worker) ERROR [a.py:1] AMX", "x"])
    )
    assert process.cause(log) == "ValueError: no kernel. Reasons: AMX"
    log.write_text("Loading\nKilled\n")
    assert process.cause(log) == "Killed"
    log.write_text("")
    assert process.cause(log) == "it said nothing"


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
