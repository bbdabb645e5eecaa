"""Checkpoints of every quantized format on the emulator, against transformers with what the weights stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from device.tpuv7.device import Tpuv7Device
from tests.oracle.conftest import open_paged_model
from tests.oracle.test_quantization import (
    FORMATS,
    LINEAR,
    METHODS,
    PARTLY,
    PROMPT,
    SHAPE,
    quantize,
    transformers_logprobs,
)

QUICK = ("gptq act order, asymmetric, groups of 32", "fp8 blocks")


def check(tpuv7: Tpuv7Device, target: Path) -> None:
    """As near as the cmodel must be in bfloat16."""
    expected = transformers_logprobs(target / "exact", PROMPT)
    logprobs = open_paged_model(target / "quantized", torch.bfloat16, device=tpuv7).logprobs(PROMPT, 17)
    best = expected.topk(2).values
    sure = best[:, 0] - best[:, 1] > 0.05
    assert torch.equal(logprobs.argmax(-1)[sure], expected.argmax(-1)[sure])
    chosen = expected.argmax(-1, keepdim=True)
    assert (logprobs.gather(1, chosen) - expected.gather(1, chosen)).abs().max() < 2e-2


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in FORMATS]
)
def test_every_format(case: str, tpuv7: Tpuv7Device, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    quantize(make_checkpoint("qwen2", **SHAPE), tmp_path, *FORMATS[case], LINEAR.fullmatch)
    check(tpuv7, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", PARTLY)
def test_some_layers_and_odd_sizes(
    case: str, tpuv7: Tpuv7Device, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    method, is_quantized, overrides = PARTLY[case]
    write, config = METHODS[method]
    quantize(make_checkpoint("llama", **{**SHAPE, **overrides}), tmp_path, write, config, is_quantized)
    check(tpuv7, tmp_path)
