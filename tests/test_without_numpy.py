"""The product needs no NumPy: nothing that `pip install .` brings depends on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

# Stands in the way of every import of it, in the workers as well: sitecustomize is imported at the start.
BLOCK = "import sys\nsys.modules['numpy'] = None\n"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join(filter(None, [str(tmp_path / "block"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def sophserve(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sophserve", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_quantize_and_bench(environment: dict[str, str], tmp_path: Path) -> None:
    blocked = subprocess.run([sys.executable, "-c", "import numpy"], env=environment, capture_output=True, check=False)
    assert blocked.returncode != 0
    made = sophserve(environment, "quantize", "demo", tmp_path / "quantized", "--method", "gptq")
    assert made.returncode == 0, made.stderr
    assert os.listdir(tmp_path / "quantized") and not list(tmp_path.glob(".*.partial"))  # noqa: PTH208
    # The bench packs the weights and keeps them.
    cache = tmp_path / "cache"
    sizes = (
        "--batch",
        "1",
        "--input-length",
        "8",
        "--max-new-tokens",
        "4",
        "--skip-limits",
        "--reorder-cache-dir",
        cache,
    )
    done = sophserve(environment, "bench", "--model-id", tmp_path / "quantized", *sizes)
    assert done.returncode == 0 and "umpy" not in done.stderr.lower(), done.stderr
    assert any(path.is_file() for path in cache.rglob("*"))


def test_the_files_equal_those_of_the_library(environment: dict[str, str], tmp_path: Path) -> None:
    from sophserve.checkpoint import SHIPPED

    assert sophserve(environment, "quantize", "demo", tmp_path / "out", "--method", "fp8").returncode == 0
    (source,) = SHIPPED["demo"].glob("*.safetensors")
    before, after = load_file(source), load_file(tmp_path / "out" / source.name)
    plain = [name for name in before if name in after and after[name].dtype == before[name].dtype]
    assert plain and all(torch.equal(before[name], after[name]) for name in plain)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_what_is_interrupted_leaves_nothing(
    number: int, status: int, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_checkpoint("qwen2", hidden_size=512, intermediate_size=2048, num_hidden_layers=12)
    command = [sys.executable, "-m", "sophserve", "quantize", str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == status, said
    assert not list(tmp_path.iterdir())
