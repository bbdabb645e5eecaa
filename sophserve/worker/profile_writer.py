"""Writes down what the device does, step by step."""

from __future__ import annotations

import errno
import logging
import time
from pathlib import Path
from typing import cast

import msgspec
import torch

from device.interface import CommandRecord
from sophserve.link.messages import LoadModel, StartProfile, StepPlan, StepResult
from sophserve.measure.limits_process import measure_limits
from sophserve.profile_format import FOLDER, RECORDS, Command, Header, Step, Sums
from sophserve.worker.model_runner import ModelRunner

log = logging.getLogger(__name__)

# Seconds between two looks at the device's memory, each of which takes a tenth of a millisecond.
MEMORY_PERIOD = 0.05
# A profile that is forgotten must not fill the disk.
LARGEST_FILE = 4 << 30


class Profile:
    """One rank's records, from now until it is closed. Raises OSError if they cannot be written."""

    def __init__(self, runner: ModelRunner, load: LoadModel, request: StartProfile) -> None:
        # Hosts may share the directory, and have devices of the same numbers.
        number = load.rank if load.places else runner.device_index
        self.folder = Path(request.directory) / f"{FOLDER}{number}-{request.index}"
        self.folder.mkdir()
        self._runner = runner
        self._device = runner.device
        self._mode = request.options.mode
        self._room = request.options.max_record_num
        self._memory_time = 0.0
        self._encoder = msgspec.json.Encoder()
        self._file = (self.folder / RECORDS).open("wb", buffering=0)
        self._size = 0
        self.problem = ""
        limits = measure_limits(self._device, getattr(torch, runner.info.dtype))
        header = Header(
            model=load.config.model,
            device=runner.info.device,
            device_id=runner.device_index,
            rank=load.rank,
            world_size=load.world_size,
            mode=self._mode,
            max_record_num=self._room,
            started=time.time(),
            start=time.monotonic_ns(),
            bytes_per_second=limits.bandwidth if limits else None,
            operations_per_second=limits.rate if limits else None,
        )
        try:
            self._write(header)
        except OSError:
            self._file.close()
            raise
        self._device.start_profile(self._room, self._mode)

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step, and write down what it did."""
        start = time.monotonic_ns()
        result = self._runner.execute(plan)
        duration = time.monotonic_ns() - start
        if not self._file.closed:
            step = Step(
                step=plan.step,
                start=start,
                duration=duration,
                sequences=len(plan.scheduled),
                tokens=sum(entry.count for entry in plan.scheduled),
                memory=self._memory(),
            )
            self._add_commands(step, self._device.profile_records())
            try:
                self._write(step)
            except OSError as error:
                self.problem = f"the profile in {self.folder} ends at step {plan.step}: {error.strerror}"
                log.error("%s", self.problem)
                self.close()
        return result

    def close(self) -> None:
        if not self._file.closed:
            self._device.stop_profile()
            self._file.close()

    def _add_commands(self, step: Step, records: list[CommandRecord]) -> None:
        if self._mode == 0:
            step.sums = _sums(records)
        elif len(records) <= self._room:
            self._room -= len(records)
            step.commands = cast("list[Command]", records)  # the same fields in the same order
        elif self._room:
            self._room = 0
            self._device.stop_profile()
            log.info("the profile has max_record_num commands; further ones are not recorded")

    def _memory(self) -> tuple[int, int] | None:
        now = time.monotonic()
        if now < self._memory_time + MEMORY_PERIOD:
            return None
        self._memory_time = now
        free, total = self._device.memory()
        return total - free, total

    def _write(self, line: Header | Step) -> None:
        # Nothing is buffered, so that nothing is lost when the process is killed.
        data = memoryview(self._encoder.encode(line) + b"\n")
        self._size += len(data)
        if self._size > LARGEST_FILE:
            raise OSError(errno.EFBIG, f"it has reached {LARGEST_FILE >> 30} GiB")
        while data:
            data = data[self._file.write(data) :]


def _sums(records: list[CommandRecord]) -> dict[str, Sums]:
    found: dict[str, Sums] = {}
    for record in records:
        sums = found.setdefault(record.operator, Sums())
        sums.count += 1
        sums.duration += record.duration_ns
        sums.bytes += record.bytes
        sums.operations += record.operations
    return found
