"""What the machine can do at most, and what the model asks of it: the two sides of a roofline."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from device.cmodel.threads import thread_count

SOURCE = Path(__file__).with_name("machine.c")


@dataclass(frozen=True)
class Limits:
    """Gigabytes read and 10^9 operations done per second by all cores; product is the instruction of the latter."""

    read_gbs: float
    float32_gflops: float
    bfloat16_gflops: float
    product: str

    def describe(self) -> str:
        """A sentence for the head of a table."""
        return (
            f"Reads {self.read_gbs:.1f} GB/s; {self.bfloat16_gflops:.0f} GFLOP/s of bfloat16 ({self.product}), "
            f"{self.float32_gflops:.0f} of float32."
        )


def measure_limits(seconds: float = 0.5) -> Limits:
    """Compile machine.c and run it. Raises CalledProcessError where there is no C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/machine"
        native = ["-mcpu=native"] if platform.machine() == "aarch64" else ["-march=native"]
        compiler = [os.environ.get("CC", "cc"), "-O3", "-ffp-contract=fast", *native, "-pthread"]
        subprocess.run([*compiler, str(SOURCE), "-o", program], check=True)
        answer = subprocess.run([program, str(thread_count()), str(seconds)], check=True, stdout=subprocess.PIPE)
    return Limits(**json.loads(answer.stdout))


def cpu_model() -> str:
    """The CPU's name and the number of cores in use."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {thread_count()} cores"


def commit() -> str:
    """The short name of the last commit that changed what is measured, with + when files differ from it."""
    measured = ["--", "sophserve", "device", "model_plugins", "CMakeLists.txt"]
    git = ["git", "-C", str(SOURCE.parent.parent)]
    try:
        log = subprocess.run([*git, "log", "-1", "--format=%h", *measured], check=True, capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *measured], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return log.stdout.strip() + ("+" if changed else "")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


@dataclass(frozen=True)
class Shape:
    """The dimensions of a dense decoder, from its config.json."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @classmethod
    def of(cls, directory: Path) -> Shape:
        """Read `directory/config.json`."""
        config = json.loads((directory / "config.json").read_text())
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return cls(
            hidden,
            config["intermediate_size"],
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads", heads),
            config.get("head_dim") or hidden // heads,
            config["vocab_size"],
        )

    @property
    def layer_weights(self) -> int:
        """Elements of all layers' matrices: q and o, k and v, gate, up and down."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weight_bytes(self) -> float:
        """Bytes of all layers' matrices and of the output head at two bytes each, which every decode step reads."""
        return 2.0 * (self.layer_weights + self.hidden * self.vocab)

    def kv_bytes(self, batch: int, context: int) -> float:
        """Bytes of the keys and values, two each, that one decode step reads."""
        return 2.0 * batch * context * self.layers * 2 * self.kv_heads * self.head_dim

    def decode_flops(self, batch: int, context: int) -> float:
        """Operations of one decode step: two a weight and row, and 4 * heads * head_dim a position and layer."""
        weights = 2 * batch * (self.layer_weights + self.hidden * self.vocab)
        return weights + batch * context * self.layers * 4 * self.heads * self.head_dim

    def prefill_flops(self, tokens: int) -> float:
        """Operations to prefill one prompt: two a layer weight and token, 4 * heads * head_dim for every pair of a
        token and one that it sees, and the output head for the last token."""
        pairs = tokens * (tokens + 1) / 2
        attention = pairs * self.layers * 4 * self.heads * self.head_dim
        return 2 * tokens * self.layer_weights + attention + 2 * self.hidden * self.vocab
