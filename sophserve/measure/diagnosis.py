"""What `sophserve doctor` finds out about a machine and a model on it. Free of torch."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError, SophserveError
from sophserve.measure.footprint import Footprint
from sophserve.measure.host import HostState
from sophserve.measure.limits import DeviceLimits, FormatSpeed


class DiagnosisRequest(msgspec.Struct, kw_only=True):
    """What to look at. directory: holds config.json of a model; None for the machine alone. length: tokens of prompts;
    None for the usual number, or what the model's context has room for."""

    config: EngineConfig
    directory: str | None = None
    length: int | None = None


class Forecast(msgspec.Struct, kw_only=True):
    """Of steps of `batch` sequences of so many tokens. work: decode or prefill. reads, products: the parts of what the
    device can read and do in the same time."""

    work: str
    batch: int
    length: int
    tokens_per_second: float
    reads: float
    products: float


class Diagnosis(msgspec.Struct, kw_only=True):
    """cores: physical ones that this process may run on, on so many NUMA nodes. wanted: OMP_NUM_THREADS. quota: CPUs
    that control groups allow. huge: which part of a large weight came to lie in huge pages.

    limits and formats are empty where the device has no room to try, or is an emulator.
    """

    device: str
    host: HostState
    hardware_threads: int
    cores: int
    nodes: int
    threads: int
    wanted: int | None
    quota: float | None
    memory: int
    free: int
    huge: float | None = None
    limits: DeviceLimits | None = None
    formats: list[FormatSpeed] = []
    model: Footprint | None = None
    forecasts: list[Forecast] = []


def diagnose(request: DiagnosisRequest) -> Diagnosis:
    """Look and measure, in a process of its own. Takes seconds. Raises SophserveError."""
    done = subprocess.run(
        [sys.executable, "-m", "sophserve.measure.doctor_process"],
        input=msgspec.json.encode(request),
        capture_output=True,
    )
    if done.returncode == 2:
        raise ConfigError(done.stdout.decode())
    if done.returncode:
        raise SophserveError(f"the machine could not be looked at: {done.stderr.decode().strip()}")
    return msgspec.json.decode(done.stdout, type=Diagnosis)
