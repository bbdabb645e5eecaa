"""What a measured batch comes to, beside what the device could do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sophserve.bench.load_metrics import Summary
from sophserve.bench.offline_run import Pass
from sophserve.bench.quality import Verdict
from sophserve.measure.footprint import Footprint
from sophserve.measure.limits import DeviceLimits


@dataclass(frozen=True)
class Setting:
    """The sizes of a batch."""

    batch: int
    input_length: int
    max_new_tokens: int

    def __str__(self) -> str:
        return f"batch {self.batch}, prompts of {self.input_length} tokens, {self.max_new_tokens} new ones"


@dataclass(frozen=True)
class Speed:
    """The two numbers of one pass: ftl_ms, until every row had its first token; tps, batch over the mean of the other
    steps, None where there were none."""

    ftl_ms: float
    tps: float | None

    @classmethod
    def of(cls, run: Pass) -> Speed:
        return cls(1000 * run.first_token, len(run.answers) / run.step if run.step else None)


@dataclass(frozen=True)
class Work:
    """What a phase did, 10^9 bytes read and operations a second, and which part of the device's limits that is."""

    gbs: float
    gflops: float
    bandwidth_share: float | None
    rate_share: float | None


@dataclass(frozen=True)
class ImageTimes:
    """tokens: of an image. Of a batch with one in each row, milliseconds until the first tokens: encode_ms, by how much
    longer than of text_ftl_ms, texts of the same lengths; again_ftl_ms, of the same batch once more."""

    tokens: int
    encode_ms: float
    text_ftl_ms: float
    again_ftl_ms: float

    @classmethod
    def of(cls, tokens: int, run: Pass, text: Pass, again: Pass) -> ImageTimes:
        first, alone, known = (1000 * each.first_token for each in (run, text, again))
        return cls(tokens, first - alone, alone, known)


@dataclass
class Result:
    """One batch, warmed up and measured. prompt_tokens: as they came out; steps_ms: the mean and percentiles;
    prefill: without the time that images took; peak_memory: bytes, of all workers, so far."""

    setting: Setting
    prompt_tokens: list[int]
    warmup: Speed
    measured: Speed
    prefill_tps: float
    steps_ms: Summary | None
    prefill: Work
    decode: Work | None
    peak_memory: int
    quality: Verdict | None
    run: Pass
    images: ImageTimes | None = None

    @property
    def guessed(self) -> float:
        """The part of the measured pass's tokens that was guessed."""
        answers = self.run.answers
        return sum(answer.guessed for answer in answers) / sum(len(answer.token_ids) for answer in answers)

    def performance(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return {
            "ftl_ms": self.measured.ftl_ms,
            "tps": self.measured.tps,
            "warmup_ftl_ms": self.warmup.ftl_ms,
            "warmup_tps": self.warmup.tps,
            "prefill_tps": self.prefill_tps,
            "step_ms": asdict(self.steps_ms) if self.steps_ms else None,
            "prefill": asdict(self.prefill),
            "decode": asdict(self.decode) if self.decode else None,
            "guessed": self.guessed,
            "peak_memory": self.peak_memory,
            "images": asdict(self.images) if self.images else None,
        }


@dataclass(frozen=True)
class Reckoning:
    """What turns times into rates. ranks: how many share the work; limits: of one device, if measured."""

    footprint: Footprint
    ranks: int
    limits: DeviceLimits | None

    def result(
        self,
        setting: Setting,
        prompts: list[int],
        passes: tuple[Pass, Pass],
        memory: int,
        quality: Verdict | None,
        images: ImageTimes | None = None,
    ) -> Result:
        """passes: the warm-up and the measured one; prompts: their lengths."""
        warmup, run = passes
        found, tokens = self.footprint, sum(prompts)
        seconds = images.text_ftl_ms / 1000 if images else run.first_token
        # The products read the weights once for each piece of the prompts; that there is one is the least.
        prefill = self._work(found.read_bytes(tokens), sum(map(found.prefill_flops, prompts)), seconds)
        decode = None
        if run.step:
            batch, length = len(prompts), tokens // len(prompts) + setting.max_new_tokens - len(run.steps) // 2
            decode = self._work(found.decode_bytes(batch, length), found.decode_flops(batch, length), run.step)
        steps = Summary.of([1000 * step for step in run.steps]) if run.steps else None
        rate = tokens / seconds
        speeds = Speed.of(warmup), Speed.of(run)
        return Result(setting, prompts, *speeds, rate, steps, prefill, decode, memory, quality, run, images)

    def _work(self, size: int, operations: int, seconds: float) -> Work:
        gbs, gflops = (self.ranks * each / seconds / 1e9 for each in (size, operations))
        if self.limits is None:
            return Work(gbs, gflops, None, None)
        devices = 1 if self.limits.shared else self.ranks
        bandwidth, rate = (devices * each / 1e9 for each in (self.limits.bandwidth, self.limits.rate))
        return Work(gbs, gflops, gbs / bandwidth, gflops / rate)
