"""Quantized checkpoints served: written by `sophserve quantize`, or quantized on loading."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from safetensors import safe_open

from sophserve import LLM, SamplingParams
from sophserve.cli import main
from sophserve.errors import ConfigError

PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=2)
PROMPTS = [[3, 4, 5, 6, 7], list(range(3, 100))]
SHAPE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}


def answers(directory: Path, **options: object) -> list[object]:
    with LLM(str(directory), max_model_len=256, kv_cache_memory="64MiB", **options) as llm:  # type: ignore[arg-type]
        outputs = [result.outputs[0] for result in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]
    return [
        [output.token_ids, [{token: entry.logprob for token, entry in each.items()} for each in output.logprobs or []]]
        for output in outputs
    ]


class Done(NamedTuple):
    """What a command returned and said."""

    returncode: int
    stdout: str
    stderr: str


def quantize(source: Path, target: Path, method: str, *options: str) -> Done:
    """In this process, which has imported torch; the commands of pages are run in processes of their own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            status = main(["quantize", str(source), str(target), "--method", method, *options])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Done(status, out.getvalue(), err.getvalue())


@pytest.mark.parametrize(
    ("method", "dtype"), [("gptq", "float32"), pytest.param("fp8", "bfloat16", marks=pytest.mark.slow)]
)
def test_a_written_checkpoint_equals_one_quantized_on_loading(
    make_checkpoint: Callable[..., Path], tmp_path: Path, method: str, dtype: str
) -> None:
    source = make_checkpoint("qwen2", **SHAPE, dtype="bfloat16", max_shard_size="500KB")
    done = quantize(source, tmp_path / "out", method)
    assert done.returncode == 0, done.stderr
    assert "of weights" in done.stdout and "quantizing to" in done.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == method
    expected = answers(source, dtype=dtype, quantization=method, reorder_cache_dir=str(tmp_path / "cache"))
    assert answers(tmp_path / "out", dtype=dtype) == expected
    # From the reorder cache, eagerly.
    options = {"reorder_cache_dir": str(tmp_path / "cache"), "enforce_eager": True}
    assert answers(source, dtype=dtype, quantization=method, **options) == expected
    assert answers(source, dtype=dtype) != expected
    if dtype == "float32":
        two = answers(tmp_path / "out", dtype=dtype, tensor_parallel_size=2)
        assert [answer[0] for answer in two] == [answer[0] for answer in expected]  # type: ignore[index]


def test_a_tied_head_of_8_bits(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint("qwen2", **SHAPE, dtype="bfloat16", tie_word_embeddings=True)
    assert quantize(source, tmp_path / "out", "compressed-tensors", "--head-bits", "8").returncode == 0
    recorded = answers(tmp_path / "out", tensor_parallel_size=2)
    assert answers(tmp_path / "out", tensor_parallel_size=2, enforce_eager=True) == recorded
    refused = quantize(source, tmp_path / "gptq", "gptq", "--head-bits", "8").stderr
    assert "gptq writes plain heads; use --method compressed-tensors with --head-bits 8" in refused


def test_refusals_and_access(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint("qwen2", **SHAPE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "give a directory that is empty" in quantize(source, tmp_path / "full", "gptq").stderr
    [weights] = source.glob("*.safetensors")
    weights.chmod(0o640)
    assert quantize(source, tmp_path / "out", "gptq").returncode == 0
    assert (tmp_path / "out" / weights.name).stat().st_mode == weights.stat().st_mode
    odd = quantize(make_checkpoint("qwen2", intermediate_size=100), tmp_path / "odd", "gptq").stderr
    assert "model.layers.0.mlp.down_proj.weight has 100 inputs and 64 outputs, but GPTQ needs a multiple of 32" in odd
    assert "is quantized already" in quantize(tmp_path / "out", tmp_path / "again", "fp8").stderr
    with pytest.raises(ConfigError, match="quantized with 'gptq' already; leave out --quantization fp8"):
        answers(tmp_path / "out", quantization="fp8")
    with pytest.raises(
        ConfigError, match="--quantization awq cannot quantize a plain checkpoint; use one of fp8, gptq"
    ):
        answers(source, quantization="awq")


def resident(directory: Path) -> float:
    """MiB that the worker holds after it has answered."""
    with LLM(str(directory), dtype="bfloat16", max_model_len=64, kv_cache_memory="2MiB") as llm:
        llm.generate([[3, 4, 5]], PARAMS, use_tqdm=False)
        children = psutil.Process().children(recursive=True)
        (worker,) = [child for child in children if "sophserve" in " ".join(child.cmdline())]
        return worker.memory_full_info().uss / 2**20


EVEN = {"shared_expert_intermediate_size": 64}
LARGE = {
    "qwen2": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3},
    "qwen2_moe": {"hidden_size": 768, "moe_intermediate_size": 512, "num_experts": 48, **EVEN},
    "deepseek_v3": {"hidden_size": 768, "moe_intermediate_size": 512, "n_routed_experts": 48, "q_lora_rank": 64},
}
"""Some hundred MiB of each kind, nearly all in layers that are quantized."""
LONG = ["qwen2_moe", "deepseek_v3"]


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        ("qwen2", ("gptq",)),
        pytest.param("qwen2", ("fp8",), marks=pytest.mark.slow),
        *(pytest.param(kind, ("gptq", "fp8"), marks=pytest.mark.slow) for kind in LONG),
    ],
)
def test_no_second_copy_of_the_weights_is_in_memory(
    make_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, methods: tuple[str, ...]
) -> None:
    source = make_checkpoint(kind, **LARGE[kind], dtype="bfloat16")
    small = resident(make_checkpoint("qwen2", **SHAPE, dtype="bfloat16"))
    dense = sum(file.stat().st_size for file in source.glob("*.safetensors")) / 2**20
    assert 0.9 * dense < resident(source) - small < 1.1 * dense + 15
    shares = {"gptq": 0.27, "fp8": 0.53}
    for method in methods:
        share = shares[method]
        assert quantize(source, tmp_path / method, method).returncode == 0
        with safe_open(next((tmp_path / method).glob("*.safetensors")), framework="pt") as file:
            assert len(file.keys()) > 40
        # Packed now, then from the cache.
        for _ in range(2):
            assert resident(tmp_path / method) - small < 1.15 * share * dense + 15
