"""`sophserve plan` against what servers take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from device.collectives.interface import SingleRank
from model_plugins.quantization.compressed_tensors import CompressedTensors
from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, SophserveError
from sophserve.link.messages import LoadModel, ModelInfo
from sophserve.measure.footprint import Footprint, FootprintRequest
from sophserve.measure.footprint_process import footprint
from sophserve.measure.plan import Device, decode_seconds, parse_rate, plan, reckon
from sophserve.model.context import ModelContext
from sophserve.model.devices import open_device
from sophserve.model.kv_memory import token_bytes
from sophserve.model.loading import load_model
from sophserve.worker.model_runner import ModelRunner, stage_layers
from tests.conftest import Server
from tests.oracle.test_quantization import FORMATS, SHAPE, quantize

PLAIN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {"dtype": "bfloat16"}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "vocab_size": 509}, {}),
    ("mistral", {"head_dim": 32}, {"dtype": "float16"}),
    ("qwen2", {"tie_word_embeddings": True}, {"dtype": "bfloat16"}),
    ("qwen2", {"tie_word_embeddings": False}, {"dtype": "float32", "block_size": 8}),
    ("qwen3", {"head_dim": 24}, {"dtype": "bfloat16", "max_model_len": 100}),
    ("qwen2", {"tie_word_embeddings": True}, {"quantization": "gptq"}),
    ("qwen2", {"tie_word_embeddings": True}, {"quantization": "gptq", "head_bits": 8, "dtype": "bfloat16"}),
    ("llama", {"vocab_size": 509, "dtype": "bfloat16"}, {"head_bits": 8}),
    ("llama", {"intermediate_size": 160}, {"quantization": "fp8", "dtype": "bfloat16"}),
]
# Formats with zero points, orders, scales of every kind.
QUANTIZED = [
    "gptq groups of 128",
    "gptq groups of -1",
    "gptq asymmetric",
    "gptq v2",
    "gptq act order",
    "gptq 8 bits asymmetric",
    "awq",
    "auto-round symmetric",
    "auto-round asymmetric",
    "fp8 blocks",
    "fp8 tensor",
    "compressed int4 asymmetric",
    "compressed int8 bytes asymmetric",
    "compressed int8 bytes of one scale",
    "compressed int4 bytes",
    "compressed float8 channels",
]


def alone(directory: Path, target: Path) -> Path:
    """A directory with nothing but config.json."""
    target.mkdir()
    shutil.copy(directory / "config.json", target)
    return target


def planned(directory: Path, memory: int = 2**30, **options: Any) -> Footprint:
    config = EngineConfig(model="x", **{"kv_cache_memory": "1MiB", **options})
    return footprint(FootprintRequest(directory=str(directory), config=config, memory=memory, search=[memory]))


def loaded(directory: Path, **options: Any) -> ModelInfo:
    config = EngineConfig(model="x", kv_cache_memory="1MiB", **options)
    return ModelRunner(LoadModel(str(directory), config, 0, 1, 30), [-1], lambda: None, lambda _: None).info


@pytest.mark.parametrize("kind", ["qwen2", "deepseek_v3"])
@pytest.mark.parametrize("tied", [False, True])
def test_stages_are_as_planned(kind: str, tied: bool, make_checkpoint: Callable[..., Path]) -> None:
    """Each loads what is planned of it, and all of them have the blocks of the one with the least room."""
    directory = make_checkpoint(kind, tie_word_embeddings=tied, num_hidden_layers=5, dtype="bfloat16")
    found = planned(directory, pipeline_parallel_size=4, max_num_seqs=1000)
    (layout,) = [each for each in found.layouts if each.tensor_parallel_size == 1]
    cuts = stage_layers(directory, EngineConfig(model="x", pipeline_parallel_size=4))
    assert len(layout.stages) == len(cuts) == 4
    for stage, layers in zip(layout.stages, cuts, strict=True):
        context = ModelContext(open_device("cmodel"), SingleRank(), torch.bfloat16, 256, layers=layers)
        model = load_model(directory, context)
        assert (stage.layers, stage.weight_bytes, stage.kv_token_bytes) == (
            len(layers or []), model.nbytes, token_bytes(model),
        )  # fmt: skip
    assert sum(stage.layers for stage in layout.stages) == 5
    assert found.weight_bytes == max(stage.weight_bytes for stage in layout.stages)
    assert found.num_blocks == min(2**20 // (16 * stage.kv_token_bytes) for stage in layout.stages)
    assert found.step_bytes == planned(directory).step_bytes


def test_layouts(make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """All ways to use as many devices, and which of them have room."""
    directory = make_checkpoint("qwen2", tie_word_embeddings=False, dtype="bfloat16")
    need = planned(directory, pipeline_parallel_size=3, max_num_seqs=1).weight_bytes
    assert plan([str(directory), "-pp", "2", "--json"]) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    assert [(each["tensor_parallel_size"], each["pipeline_parallel_size"]) for each in layouts] == [(2, 1), (1, 2)]
    assert plan([str(directory), "-pp", "3", "--device-memory", str(need + 2**14)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("layers ") == 3 and "layers 2 to 2: " in printed
    assert re.search(rf"-tp +-pp .*\n +1 +3 +{need} .* no\n", printed)


def assert_equal(plan: Footprint, info: ModelInfo) -> None:
    assert plan.weight_bytes == info.weight_bytes
    assert plan.num_blocks == info.num_blocks
    assert plan.kv_token_bytes * info.block_size * info.num_blocks == info.kv_cache_bytes
    assert (plan.max_model_len, plan.dtype) == (info.max_model_len, info.dtype)


@pytest.mark.parametrize("index", range(len(PLAIN)))
def test_plain_checkpoints(make_checkpoint: Callable[..., Path], tmp_path: Path, index: int) -> None:
    kind, shape, options = PLAIN[index]
    directory = make_checkpoint(kind, **shape)
    info = loaded(directory, reorder_cache_dir=str(tmp_path / "cache"), **options)
    assert_equal(planned(alone(directory, tmp_path / "config"), **options), info)


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_checkpoints(make_checkpoint: Callable[..., Path], tmp_path: Path, name: str) -> None:
    quantize(make_checkpoint("qwen2", **SHAPE, dtype="bfloat16"), tmp_path, *FORMATS[name])
    directory = tmp_path / "quantized"
    assert_equal(planned(alone(directory, tmp_path / "config")), loaded(directory))


@pytest.mark.parametrize("tied", [True, False])
def test_heads_that_are_written_in_8_bits(make_checkpoint: Callable[..., Path], tmp_path: Path, tied: bool) -> None:
    source = make_checkpoint("qwen2", **SHAPE, tie_word_embeddings=tied, dtype="bfloat16")
    CompressedTensors.convert(source, tmp_path / "out", lambda done, total: None, head_bits=8)
    assert_equal(planned(alone(tmp_path / "out", tmp_path / "config")), loaded(tmp_path / "out"))
    assert planned(tmp_path / "config", head_bits=8).weight_bytes == planned(tmp_path / "config").weight_bytes


def test_what_two_ranks_report(
    make_checkpoint: Callable[..., Path], start_server: Callable[..., Server], tmp_path: Path
) -> None:
    source = make_checkpoint("llama", **SHAPE, vocab_size=513, dtype="float16")
    quantize(source, tmp_path, *FORMATS["gptq asymmetric"])
    server = start_server(tmp_path / "quantized", "--tensor-parallel-size", "2", "--kv-cache-memory", "1MiB")
    with urllib.request.urlopen(f"{server.url}/server_info") as answer:
        memory = json.load(answer)["memory"]
    done = run(str(alone(tmp_path / "quantized", tmp_path / "config")), "--json", "--kv-cache-memory", "1MiB",
               "--tensor-parallel-size", "2", "--device-memory", "1GiB")  # fmt: skip
    found = json.loads(done.stdout)
    assert [found["weight_bytes"], found["kv_cache_bytes"], found["kv_cache_tokens"]] == [
        memory["weights"],
        memory["kv_cache"],
        memory["kv_cache_tokens"],
    ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sophserve", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophserve.measure.plan.measure", footprint)


@pytest.mark.usefixtures("in_process")
def test_the_page_it_prints(make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(make_checkpoint("qwen2", dtype="bfloat16"))
    limits = ["--bandwidth", "10GB/s", "--rate", "1TFLOP/s", "--lengths", "64,256,4096"]
    assert plan([directory, "--device-memory", "64MiB", *limits]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model            Qwen2ForCausalLM, bfloat16, packed for cmodel"
    assert "fewest devices   1 with 64.00 MiB each for the weights and one sequence of 256 tokens" in lines
    rows = [line.split() for line in lines if line.split() and line.split()[0] in ("64", "256", "4096")]
    assert [row[1] for row in rows] == ["256", "256", "0"]
    assert rows[2] == ["4096", "0", "-", "-", "-"] and "-" not in rows[0] + rows[1]
    assert plan([directory, "--device-memory", "100KiB"]) == 0
    assert "the weights alone exceed a device's memory" in capsys.readouterr().out
    # Room for 93 tokens, which is 5 blocks.
    memory = planned(make_checkpoint("qwen2", dtype="bfloat16")).weight_bytes + 60_000
    assert plan(["--model", directory, "--device-memory", str(memory)]) == 0
    assert "a sequence of 256 tokens; a server needs --max-model-len 80 or more memory" in capsys.readouterr().out


@pytest.mark.usefixtures("in_process")
def test_the_chip_s_preset_says_whose_figures_it_has(
    make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(make_checkpoint("qwen2"))
    assert plan([directory, "--device-preset", "sg2260"]) == 0
    printed = capsys.readouterr().out
    assert "devices          1 with 128.00 GiB each" in printed
    assert "the vendor's figures" in printed.splitlines()[-1]
    assert plan([directory, "--device-preset", "sg2260", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bandwidth"] == 546e9


def test_fewest_devices(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint("llama", num_attention_heads=8, num_key_value_heads=4, vocab_size=2048)
    one, two, four = (planned(directory, tensor_parallel_size=ranks) for ranks in (1, 2, 4))
    needs = [each.weight_bytes + each.kv_token_bytes * 256 for each in (one, two, four)]
    assert needs[0] > needs[1] > needs[2]
    for memory, ranks in ((needs[0], 1), (needs[0] - 1, 2), (needs[1] - 1, 4), (1000, None)):
        for given in (1, 4):
            found = planned(directory, memory, tensor_parallel_size=given)
            assert found.fewest_devices.get(memory) == ranks


def test_limits_follow_from_the_shapes(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint("qwen2", tie_word_embeddings=False, dtype="bfloat16")
    found = planned(directory)
    hidden, inner, layers, vocab = 64, 96, 3, 512
    per_layer = hidden * (64 + 32 + 32) + 64 * hidden + 3 * hidden * inner
    assert found.product_flops == 2 * layers * per_layer
    assert found.head_flops == 2 * hidden * vocab
    assert found.weight_bytes - found.step_bytes == vocab * hidden * 2
    assert found.kv_token_bytes == 2 * layers * 32 * 2
    assert found.decode_bytes(3, 100) == found.step_bytes + 300 * found.kv_token_bytes
    pair = 4 * layers * 64
    assert found.decode_flops(3, 100) == 3 * (found.product_flops + found.head_flops + 100 * pair)
    assert found.prefill_flops(10) == 10 * found.product_flops + found.head_flops + 55 * pair
    slow_memory, slow_products = Device(bandwidth=1e6), Device(bandwidth=1e12, rate=1e6)
    assert decode_seconds(found, slow_memory, 3, 100) == found.decode_bytes(3, 100) / 1e6
    assert decode_seconds(found, slow_products, 3, 100) == found.decode_flops(3, 100) / 1e6
    assert decode_seconds(found, Device(), 1, 1) is None
    rows = reckon(found, EngineConfig(model="x"), slow_products, [100])["lengths"]
    assert rows[0]["prefill"] == 100e6 / found.prefill_flops(100)


def test_a_window_bounds_what_is_read(make_checkpoint: Callable[..., Path]) -> None:
    plain, windowed = (planned(make_checkpoint("mistral", sliding_window=window)) for window in (None, 32))
    assert windowed.kv_token_bytes == plain.kv_token_bytes
    assert windowed.decode_bytes(1, 20) == plain.decode_bytes(1, 20)
    assert windowed.decode_bytes(1, 200) == plain.decode_bytes(1, 32)
    pairs = sum(min(position, 32) for position in range(1, 201))
    assert windowed.prefill_flops(200) - windowed.prefill_flops(0) - 200 * windowed.product_flops == (
        pairs * windowed.attention[0].pair_flops
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["NewForCausalLM"]}, "NewForCausalLM is not a supported architecture; supported: "),
        ({"quantization_config": {"quant_method": "bitnet"}}, "quantized with 'bitnet', which is not supported"),
        ({"quantization_config": {"quant_method": "gptq", "dynamic": {"[": {}}}}, r"has '\[', no regex"),
        ({"hidden_size": None}, "config.json has no hidden_size"),
    ],
)
def test_configs_that_cannot_be_served(
    make_checkpoint: Callable[..., Path], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    config = json.loads((make_checkpoint("qwen2") / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SophserveError, match=words):
        planned(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_bad_arguments(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = str(make_checkpoint("qwen2"))
    for arguments, words in (
        ([], "give a MODEL"),
        ([directory, "--device-memory", "lots"], "cannot read the size 'lots'"),
        ([directory, "--bandwidth", "5 apples"], "cannot read --bandwidth '5 apples'; write it like 500GB/s"),
        ([directory, "--device-preset", "tpu"], "give --device-memory, --bandwidth and --rate"),
        ([directory, "--max-model-len", "257"], "--max-model-len is 257, but the model's context is 256"),
        ([directory, "--tensor-parallel-size", "3"], "--tensor-parallel-size can be 1, 2, 4 for this model"),
        ([str(tmp_path)], "has no config.json"),
    ):
        with pytest.raises(SophserveError, match=words):
            plan(arguments)
    done = run(directory, "--lengths", "1,x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected numbers of tokens with commas between them, got '1,x'" in done.stderr


def test_rates() -> None:
    assert parse_rate("--rate", "128TFLOP/s", "FLOP") == 128e12
    assert parse_rate("--rate", "1.5e3", "FLOP") == 1500
    assert parse_rate("--bandwidth", "546 GB/s", "B") == 546e9
    assert parse_rate("--bandwidth", "2TB", "B") == 2e12
    for text in ("", "0", "-1G", "1.2.3G", "GB/s"):
        with pytest.raises(ConfigError):
            parse_rate("--bandwidth", text, "B")
