"""Looks at a machine: `python -m sophserve.measure.doctor_process`, with a DiagnosisRequest on standard input."""

from __future__ import annotations

import sys
import warnings

import msgspec
import torch

from device import cpus
from device.interface import DenseWeight, Device, OutOfDeviceMemory
from sophserve.errors import ConfigError, SophserveError
from sophserve.measure.diagnosis import Diagnosis, DiagnosisRequest, Forecast
from sophserve.measure.footprint import Footprint, FootprintRequest
from sophserve.measure.footprint_process import Loader, footprint
from sophserve.measure.host import host_state, huge_bytes
from sophserve.measure.limits import DeviceLimits
from sophserve.measure.limits_process import format_speeds, measure_limits
from sophserve.measure.trial_process import Trial
from sophserve.model.devices import open_device

BATCHES = 1, 8
# Tokens of prompts, and of answers, that a forecast of decode steps is for the middle of.
_PROMPT, _ANSWER = 512, 128
# Of the weight that is looked at for huge pages.
_SIDE = 4096


def diagnosis(request: DiagnosisRequest) -> Diagnosis:
    """Look at the machine, and at a model on it. Raises SophserveError."""
    cores = cpus.cores()
    allowed = [cpu for core in cores for cpu in core.cpus]
    host = host_state(allowed)  # first, while nothing is computed here
    loader = model = None
    if request.directory:
        asked = FootprintRequest(directory=request.directory, config=request.config)
        loader = Loader(asked)
        model = footprint(asked, loader)
    device = loader.device if loader else open_device(request.config.device)
    free, memory = device.memory()
    found = Diagnosis(
        device=device.describe(),
        host=host,
        hardware_threads=len(allowed),
        cores=len(cores),
        nodes=len({core.node for core in cores}),
        threads=cpus.thread_count(),
        wanted=cpus.wanted_threads(),
        quota=cpus.quota(),
        memory=memory,
        free=free,
        huge=_huge_share(device),
        model=model,
    )
    found.limits = measure_limits(device, getattr(torch, model.dtype) if model else torch.bfloat16)
    if loader and model:
        found.forecasts = _forecasts(loader, model, request.length, found.limits)
    else:
        found.formats = format_speeds(device)
    return found


def _huge_share(device: Device) -> float | None:
    """Which part of a packed weight lies in huge pages; None where that cannot be told."""
    before = huge_bytes()
    if before is None or not device.uses_host_memory:
        return None
    weight = device.pack(DenseWeight(torch.ones(_SIDE, _SIDE)))
    return min(1.0, max(0, (huge_bytes() or 0) - before) / weight.nbytes)


def _forecasts(loader: Loader, model: Footprint, length: int | None, limits: DeviceLimits | None) -> list[Forecast]:
    """None where the model does not fit, or the device is an emulator."""
    if limits is None or model.weight_bytes >= model.device_memory:
        return []
    length = length or max(1, min(_PROMPT, model.context_length - _ANSWER))
    if length + _ANSWER > model.context_length:
        raise ConfigError(f"--input-length {length} leaves no room for {_ANSWER} more in {model.context_length} tokens")
    try:
        trial = Trial(loader, length + _ANSWER)
    except OutOfDeviceMemory as error:
        raise ConfigError(f"there is no memory to try the model's layers: {error}") from error

    def forecast(work: str, batch: int, length: int, tokens: int, seconds: float) -> Forecast:
        size = model.decode_bytes(batch, length) if work == "decode" else model.read_bytes(length)
        flops = model.decode_flops(batch, length) if work == "decode" else model.prefill_flops(length)
        return Forecast(
            work=work,
            batch=batch,
            length=length,
            tokens_per_second=tokens / seconds,
            reads=size / seconds / limits.bandwidth,
            products=flops / seconds / limits.rate,
        )

    middle = length + _ANSWER // 2
    found = [forecast("decode", each, middle, each, trial.decode_seconds(each, middle)) for each in BATCHES]
    return [*found, forecast("prefill", 1, length, length, trial.prefill_seconds(length))]


def main() -> int:
    """Answer with a Diagnosis on standard output, or, with exit code 2, with what is wrong."""
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=DiagnosisRequest)
    try:
        sys.stdout.buffer.write(msgspec.json.encode(diagnosis(request)))
    except SophserveError as error:
        sys.stdout.write(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
