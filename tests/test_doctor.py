"""`sophserve doctor`: what it sees of a host, what it advises, and its forecasts on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from device.cmodel.device import CmodelDevice
from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, SophserveError
from sophserve.measure import doctor_process, limits_process, trial_process
from sophserve.measure.diagnosis import Diagnosis, DiagnosisRequest, Forecast
from sophserve.measure.doctor import advice, doctor, limit_of
from sophserve.measure.footprint import FootprintRequest
from sophserve.measure.footprint_process import Loader, footprint
from sophserve.measure.host import HostState, host_state, huge_bytes
from sophserve.measure.limits import DeviceLimits, FormatSpeed
from sophserve.measure.trial_process import Trial
from tests.oracle.test_quantization import FORMATS, SHAPE, quantize
from tests.test_plan import alone

HOST = HostState(cpu="a CPU", swap=0, swap_used=0, huge_pages="madvise", saves_power="", busy=0.0)
FINE = Diagnosis(
    device="cmodel: avx2 kernels on 4 threads", host=HOST, hardware_threads=8, cores=4, nodes=1, threads=4, wanted=None,
    quota=None, memory=16 << 30, free=12 << 30, huge=0.9,
)  # fmt: skip


def write_tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- the host ---

STAT = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 1000 40 5 6 7 0 0\ncpu1 100 0 0 7 7 0 0 0 0 0\nintr 5\n"


def test_what_a_host_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "cpuinfo": "processor\t: 0\nmodel name\t: A CPU\n\nprocessor\t: 1\nmodel name\t: Another\n",
        "meminfo": "SwapTotal: 1000 kB\nSwapFree: 400 kB\n",
        "stat": STAT,
        "self/smaps_rollup": "55-77 ---p 00000000 00:00 0   [rollup]\nRss: 9 kB\nAnonHugePages:  2048 kB\n",
        "kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    write_tree(tmp_path, files)

    def sleep(seconds: float) -> None:
        # 30 ticks of work of its own and 20 for other guests, while CPU 1, which is not asked about, works as well.
        (tmp_path / "stat").write_text(STAT.replace("cpu0 1 2 3 1000 40 5 6 7", "cpu0 31 2 3 1050 90 5 6 27"))

    monkeypatch.setattr("time.sleep", sleep)
    found = host_state([0], tmp_path, tmp_path, 0.5)
    assert found == HostState(
        cpu="A CPU", swap=1000 << 10, swap_used=600 << 10, huge_pages="madvise", saves_power="", busy=1.0
    )
    assert huge_bytes(tmp_path) == 2 << 20


@pytest.mark.parametrize(
    ("governor", "driver", "preference", "expected"),
    [
        ("performance", "acpi-cpufreq", "", ""),
        ("powersave", "acpi-cpufreq", "", "governor powersave"),
        ("powersave", "intel_pstate", "balance_performance", ""),  # this one goes with the load
        ("powersave", "amd-pstate-epp", "power", "energy preference power"),
    ],
)
def test_what_saves_power(tmp_path: Path, governor: str, driver: str, preference: str, expected: str) -> None:
    folder = "devices/system/cpu/cpu3/cpufreq"
    files = {"governor": "scaling_governor", "driver": "scaling_driver", "preference": "energy_performance_preference"}
    texts = {"governor": governor, "driver": driver, "preference": preference}
    write_tree(tmp_path, {f"{folder}/{files[name]}": f"{text}\n" for name, text in texts.items()})
    assert host_state([3], tmp_path, tmp_path, 0).saves_power == expected


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    found = host_state([0], tmp_path, tmp_path, 0)
    assert found.cpu and (found.huge_pages, found.saves_power, found.busy) == (None, "", 0.0)
    assert huge_bytes(tmp_path) is None


# --- advice ---


@pytest.mark.parametrize(
    ("changes", "host", "words"),
    [
        ({}, {}, []),
        ({"threads": 2, "quota": 1.5}, {}, ["quota of 1.5 CPUs"]),
        ({"threads": 2, "quota": 2.0}, {}, []),
        ({"threads": 6, "wanted": 6}, {}, ["there are 4 cores"]),
        ({"threads": 1, "wanted": 1}, {}, ["the other 3 of 4 cores"]),
        ({"threads": 1, "wanted": 1, "quota": 1.0}, {}, []),
        ({"threads": 4, "wanted": 4, "quota": 2.0}, {}, ["set OMP_NUM_THREADS to less"]),
        ({}, {"busy": 1.3}, ["others keep 1.3 of 8 CPUs busy"]),
        ({}, {"saves_power": "governor powersave"}, ["governor powersave"]),
        ({"huge": 0.0}, {"huge_pages": "never"}, ["huge pages are off"]),
        ({"huge": 0.2}, {}, ["only 20% of a large weight"]),
        ({"huge": None}, {"huge_pages": None}, []),
        ({}, {"swap": 8 << 30, "swap_used": 2 << 30}, ["2.00 GiB are swapped out"]),
        ({}, {"swap": 8 << 30, "swap_used": 1 << 20}, []),
    ],
)
def test_advice(changes: dict[str, Any], host: dict[str, Any], words: list[str]) -> None:
    found = msgspec.structs.replace(FINE, host=msgspec.structs.replace(HOST, **host), **changes)
    given = list(advice(found))
    assert len(given) == len(words)
    assert all(word in sentence for word, sentence in zip(words, given, strict=True)), given


@pytest.mark.parametrize(
    ("reads", "products", "expected"),
    [(0.9, 0.2, "memory"), (0.3, 0.8, "products"), (0.5, 0.3, "the kernels"), (0.8, 0.95, "products")],
)
def test_what_limits_a_step(reads: float, products: float, expected: str) -> None:
    forecast = Forecast(work="decode", batch=1, length=9, tokens_per_second=1, reads=reads, products=products)
    assert limit_of(forecast) == expected


# --- forecasts ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures next to nothing."""
    monkeypatch.setattr(trial_process, "_PERIOD", 0.0)
    monkeypatch.setattr(limits_process, "_PERIOD", 0.0)
    monkeypatch.setattr(limits_process, "_SHORT_PERIOD", 0.0)
    monkeypatch.setattr(limits_process, "_SHORT_PERIOD", 0.0)
    monkeypatch.setattr(limits_process, "_SIDE", 256)
    monkeypatch.setattr(limits_process, "_FORMAT_BYTES", 1 << 16)
    monkeypatch.setattr(limits_process, "_LARGEST", 1 << 20)
    monkeypatch.setattr(limits_process, "_SMALLEST", 1 << 20)
    monkeypatch.setattr(limits_process, "_known", {})


def loader(directory: Path, **options: Any) -> Loader:
    return Loader(FootprintRequest(directory=str(directory), config=EngineConfig(model="x", **options)))


@pytest.mark.parametrize("kind", ["llama", "qwen2_moe", "deepseek_v3", "qwen2_5_vl"])
def test_made_up_weights_are_those_of_the_model(
    make_checkpoint: Callable[..., Path], tmp_path: Path, quick: None, kind: str
) -> None:
    models = loader(alone(make_checkpoint(kind, dtype="bfloat16"), tmp_path / "config"))
    trial, whole = Trial(models, 64), models.load(1)
    assert [each.nbytes for each in trial._model.layers] == [each.nbytes for each in whole.layers]
    assert trial.decode_seconds(3, 40) > 0
    assert trial.prefill_seconds(20) > 0


@pytest.mark.parametrize(
    "name", ["gptq act order", "awq", "fp8 blocks", "compressed int4 asymmetric", "compressed int4 bytes"]
)
def test_made_up_quantized_weights(
    make_checkpoint: Callable[..., Path], tmp_path: Path, quick: None, name: str
) -> None:
    quantize(make_checkpoint("qwen2", **SHAPE, dtype="bfloat16"), tmp_path, *FORMATS[name])
    models = loader(alone(tmp_path / "quantized", tmp_path / "config"))
    trial = Trial(models, 64)
    assert trial._model.nbytes == models.load(1).nbytes
    assert trial.decode_seconds(2, 33) > 0


def fast_in_int8(name: str) -> CmodelDevice:
    device = CmodelDevice()
    device.fast_in_int8 = True
    return device


@pytest.mark.parametrize(("bits", "rounds"), [("auto", True), (16, False)])
def test_activations_are_rounded_where_a_server_rounds_them(
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bits: str | int,
    rounds: bool,
) -> None:
    monkeypatch.setattr("sophserve.measure.footprint_process.open_device", fast_in_int8)
    quantize(make_checkpoint("qwen2", **SHAPE, dtype="bfloat16"), tmp_path, *FORMATS["awq"])
    models = loader(tmp_path / "quantized", activation_bits=bits)
    assert Trial(models, 64)._model.rounds_rows == models.load(1).rounds_rows == rounds


def test_layers_that_are_left_out_count(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock on which each layer takes a time of its kind, the whole model takes what all of them do."""
    monkeypatch.setattr(trial_process, "_PERIOD", 0.0)
    directory = make_checkpoint("deepseek_v3", num_hidden_layers=7, first_k_dense_replace=2, dtype="bfloat16")
    models = loader(directory)
    # Room for two layers of each of the two kinds.
    sizes = [layer.nbytes for layer in models.load(1).layers]
    monkeypatch.setattr(trial_process, "_SAMPLE", models.load(1).head.nbytes + sizes[0] + sizes[0] + 2 * sizes[-1])
    trial = Trial(models, 64)
    there = [index for each in trial._chosen for index in each]
    assert sorted(there) == [0, 1, 2, 3]
    assert trial.decode_seconds(1, 20) > 0 and trial.decode_seconds(4, 60) > 0  # whose cache is larger

    def seconds(inputs: object, left_out: list[set[int]]) -> list[float]:
        return [5.0 + sum(1.0 if index < 2 else 10.0 for index in there if index not in each) for each in left_out]

    monkeypatch.setattr(trial, "_times", seconds)
    assert trial.decode_seconds(1, 20) == 5 + 2 * 1 + 5 * 10


def test_a_diagnosis_reckons_with_what_plan_says(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    directory = make_checkpoint("qwen2", max_position_embeddings=256, dtype="bfloat16")
    limits = DeviceLimits(bandwidth=1e9, rate=1e12, shared=True)
    monkeypatch.setattr(doctor_process, "measure_limits", lambda device, dtype: limits)
    monkeypatch.setattr(Trial, "decode_seconds", lambda self, batch, length: 0.5)
    monkeypatch.setattr(Trial, "prefill_seconds", lambda self, length: 2.0)
    request = DiagnosisRequest(config=EngineConfig(model="x"), directory=str(directory), length=64)
    found = doctor_process.diagnosis(request)
    plan = footprint(FootprintRequest(directory=str(directory), config=EngineConfig(model="x")))
    assert [(each.work, each.batch, each.tokens_per_second) for each in found.forecasts] == [
        ("decode", 1, 2),
        ("decode", 8, 16),
        ("prefill", 1, 32),
    ]
    assert found.forecasts[1].reads == plan.decode_bytes(8, 128) / 0.5 / 1e9
    assert found.forecasts[1].products == plan.decode_flops(8, 128) / 0.5 / 1e12
    assert found.forecasts[2].products == plan.prefill_flops(64) / 2 / 1e12
    with pytest.raises(ConfigError, match="--input-length 200 leaves no room for 128 more in 256"):
        doctor_process.diagnosis(msgspec.structs.replace(request, length=200))
    found = doctor_process.diagnosis(msgspec.structs.replace(request, length=None))
    assert [each.length for each in found.forecasts] == [192, 192, 128]  # the usual length is too much for it


def test_the_machine_alone(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    found = doctor_process.diagnosis(DiagnosisRequest(config=EngineConfig(model="x", device="cmodel")))
    assert found.limits and found.limits.bandwidth > 0 and found.cores <= found.hardware_threads
    assert [each.name for each in found.formats] == list(limits_process._FORMATS)
    # Without the native library there is less.
    monkeypatch.setattr("device.cmodel.kernels.native_library", lambda: None)
    found = doctor_process.diagnosis(DiagnosisRequest(config=EngineConfig(model="x", device="cmodel")))
    assert "install a C++ compiler" in found.device
    assert [each.name for each in found.formats] == ["bfloat16", "float32"]


# --- the command ---


def test_what_is_printed(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_checkpoint("qwen2", dtype="bfloat16")
    asked = SimpleNamespace(request=None)

    def diagnose(request: DiagnosisRequest) -> Diagnosis:
        asked.request = request
        model = (
            footprint(FootprintRequest(directory=str(directory), config=request.config)) if request.directory else None
        )
        forecast = Forecast(work="decode", batch=8, length=99, tokens_per_second=12.34, reads=0.91, products=0.2)
        return msgspec.structs.replace(
            FINE,
            quota=2.5,
            limits=DeviceLimits(bandwidth=20e9, rate=1e11, shared=True),
            formats=[] if model else [FormatSpeed("int4", 9e9, 8e10)],
            model=model,
            forecasts=[forecast] if model else [],
        )

    monkeypatch.setattr("sophserve.measure.doctor.diagnose", diagnose)
    assert doctor([]) == 0
    printed = capsys.readouterr().out
    assert "4 cores, 8 hardware threads, 1 NUMA node, a quota of 2.5 CPUs" in printed
    assert "int4            9.0     80.0" in printed and "warning: 4 threads share a quota of 2.5 CPUs" in printed
    assert doctor(["--model", str(directory), "--input-length", "99"]) == 0
    assert asked.request.length == 99
    lines = capsys.readouterr().out.splitlines()
    assert any("decode, batch 8, 99 tokens" in line and "12.3" in line and line.endswith("memory") for line in lines)
    assert doctor(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["formats"] == [{"name": "int4", "read": 9e9, "rate": 8e10}] and len(found["warnings"]) == 1
    with pytest.raises(SophserveError, match="no directory /nowhere/at/all"):
        doctor(["--model", "/nowhere/at/all"])
