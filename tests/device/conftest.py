"""Devices for every instruction set, and random batches for attention."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from device.cmodel import device as cmodel_device
from device.cmodel import kernels
from device.cmodel.arguments import Arguments
from device.cmodel.device import CmodelDevice
from device.interface import AttentionMeta, KVCache, Ops, Rope, StepInputs
from device.reference import ReferenceOps
from device.sample_params import SampleParams
from tests.device.emulated_cpu import EmulatedCpu
from tests.device.remote_kernels import RemoteKernels

_native = kernels.native_library()
_usable = [] if _native is None else kernels.usable_isas(_native)


# Instruction sets that are emulated, and a command that runs kernels for 64-bit Arm.
_emulated = os.environ.get("EMULATED_ISAS", "").split()
_remote = os.environ.get("REMOTE_KERNELS", "").split()
_emulated_cpu = functools.cache(EmulatedCpu)
_remote_kernels = functools.cache(lambda: RemoteKernels(_remote))


def _emulated_device(isa: str, monkeypatch: pytest.MonkeyPatch) -> CmodelDevice:
    def run(kernel: kernels.Kernel, arguments: Arguments) -> int:
        if isa == "dotprod":
            one_for_all = hasattr(_native, f"cmodel_{kernel.name}")
            symbol = f"cmodel_{kernel.name}" + ("" if one_for_all else f"_{os.environ['REMOTE_ISA']}")
            return _remote_kernels().call(symbol, arguments)
        return _emulated_cpu().call(kernel.address, ctypes.addressof(arguments))

    def capture(*_: object) -> None:
        pytest.skip("a replay does not run on an emulated CPU")

    here = "portable" if isa == "dotprod" else isa
    monkeypatch.setattr(kernels, "usable_isas", lambda library: [here])
    monkeypatch.setattr(kernels.Kernel, "run", run)
    monkeypatch.setattr(CmodelDevice, "capture", capture)
    monkeypatch.setenv("CMODEL_ISA", here)
    monkeypatch.setattr(cmodel_device, "thread_count", lambda: 1)  # others would run on the real one
    return CmodelDevice()


def _device(isa: str, monkeypatch: pytest.MonkeyPatch) -> CmodelDevice:
    if isa in _emulated:
        return _emulated_device(isa, monkeypatch)
    if isa not in _usable:
        pytest.skip(f"this CPU or this build has no {isa} kernels")
    monkeypatch.setenv("CMODEL_ISA", isa)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    return CmodelDevice()


# Of all dtypes they take longest; of the portable kernels one dtype is tried here, and -m slow tries the others.
LARGE = (
    "test_attention_over_spans_that_threads_share",
    "test_chunks",
    "test_latent_attention_chunks",
    "test_latent_attention_company",
    "test_latent_attention_of_a_prompt_and_of_the_next_token",
    "test_paged_attention",
    "test_threads_and_company_and_blocks",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname in LARGE and item.path.parent.name == "device":
            params = item.callspec.params if hasattr(item, "callspec") else {}
            if params.get("cmodel", params.get("ops")) == "portable" and params.get("dtype") != torch.bfloat16:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(params=kernels.ISAS)
def cmodel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CmodelDevice:
    """A cmodel device on each instruction set in turn."""
    return _device(request.param, monkeypatch)


@pytest.fixture(params=["reference", *kernels.ISAS])
def ops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ops:
    """The reference operators, then those of each instruction set."""
    return ReferenceOps() if request.param == "reference" else _device(request.param, monkeypatch).ops


@pytest.fixture
def native() -> CmodelDevice:
    """A cmodel device on the best instruction set."""
    if not _usable:
        pytest.skip("sophserve was built without a C++ compiler")
    return CmodelDevice()


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


Lengths = list[tuple[int, int]]


@pytest.fixture
def make_meta() -> Callable[..., AttentionMeta]:
    """From (cached, new) lengths to the description of a batch, its blocks drawn at random from `blocks`."""

    def make(lengths: Lengths, blocks: int, block_size: int, seed: int = 0) -> AttentionMeta:
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
        counts = [-(-(cached + new) // block_size) for cached, new in lengths]
        tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
        slots = []
        for row, ((cached, new), count) in enumerate(zip(lengths, counts, strict=True)):
            taken, order = order[:count], order[count:]
            tables[row, :count] = torch.tensor(taken, dtype=torch.int32)
            slots += [taken[at // block_size] * block_size + at % block_size for at in range(cached, cached + new)]
        return AttentionMeta(
            torch.tensor([new for _, new in lengths], dtype=torch.int32),
            torch.tensor([cached for cached, _ in lengths], dtype=torch.int32),
            tables,
            torch.tensor(slots, dtype=torch.int32),
            max(cached + new for cached, new in lengths),
        )

    return make


@pytest.fixture
def decode_inputs(make_meta: Callable[..., AttentionMeta]) -> Callable[..., StepInputs]:
    """The inputs of a step with one new token for each sequence of so many cached ones."""

    def make(cached: list[int], blocks: int, block_size: int) -> StepInputs:
        meta = make_meta([(length, 1) for length in cached], blocks, block_size)
        return StepInputs(**vars(meta), ids=torch.zeros(len(cached)).int(), positions=meta.cached_lengths)

    return make


@pytest.fixture
def make_rope() -> Callable[..., Rope]:
    def make(rotary_dim: int, positions: int = 4096, interleaved: bool = False) -> Rope:
        frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2).float() / rotary_dim)
        angles = torch.arange(positions)[:, None] * frequencies
        return Rope(angles.cos(), angles.sin(), interleaved)

    return make


@pytest.fixture
def fill_cache() -> Callable[[KVCache, int], None]:
    """Random keys and values in every slot."""

    def fill(kv: KVCache, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        for cache in (kv.keys, kv.values):
            cache.copy_(torch.randn(cache.shape, generator=generator))

    return fill


@pytest.fixture
def sample_params() -> Callable[..., SampleParams]:
    """Neutral parameters for some rows, but for those given."""

    def make(rows: int, **given: object) -> SampleParams:
        params = SampleParams(
            temperature=torch.ones(rows),
            top_k=torch.zeros(rows, dtype=torch.int32),
            top_p=torch.ones(rows),
            min_p=torch.zeros(rows),
            seeds=torch.arange(rows) * 7919,
            positions=torch.arange(rows),
        )
        return replace(params, **given)  # type: ignore[arg-type]

    return make
