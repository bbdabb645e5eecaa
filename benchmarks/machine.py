"""What the machine can do at most, and what the model asks of it: the two sides of a roofline."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from device.cpus import thread_count

SOURCE = Path(__file__).with_name("machine.c")
EMBEDDINGS = ("model.embed_tokens.weight", "token_embd.weight")
HEADS = ("lm_head.", "output.")


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
class Matrices:
    """Elements, or bytes, of matrices: the layers' without routed experts, the routed experts', the head's."""

    layers: float
    experts: float
    head: float

    def used(self, share: float) -> float:
        """Of a step that such a share of the experts has a part in."""
        return self.layers + share * self.experts + self.head


def matrices(tensors: dict[str, tuple[list[int], int]]) -> tuple[Matrices, Matrices]:
    """Elements and bytes, of a file's tensors: sizes and bytes by name, a safetensors file's names or a GGUF's.

    The embedding counts where it is the head as well.
    """
    elements, sizes = {"layers": 0, "experts": 0, "head": 0}, {"layers": 0, "experts": 0, "head": 0}
    embedding = next(name for name in tensors if name in EMBEDDINGS)
    tied = not any(name.startswith(HEADS) for name in tensors)
    for name, (shape, size) in tensors.items():
        if len(shape) < 2 or (name == embedding and not tied):
            continue
        expert = ".experts." in name or "_exps." in name
        part = "experts" if expert else "head" if name.startswith(HEADS) or name == embedding else "layers"
        elements[part] += math.prod(shape)
        sizes[part] += size
    return Matrices(**elements), Matrices(**sizes)


def checkpoint_matrices(directory: Path) -> tuple[Matrices, Matrices]:
    """Elements and bytes of the safetensors files in `directory`. What is packed into words has fewer elements."""
    tensors = {}
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        for name, each in header.items():
            begin, end = each["data_offsets"]
            tensors[name] = (each["shape"], end - begin)
    return matrices(tensors)


@dataclass(frozen=True)
class Shape:
    """What a decoder computes and keeps, from its files.

    elements: of its matrices. expert_share: what a token has of the routed experts. token_bytes: what all layers cache
    of a token, in two bytes a channel. decode_pair_flops, prefill_pair_flops: operations of all layers for each pair of
    a token and one that it sees; latent attention has more of them where it does not expand what it has cached.
    """

    elements: Matrices
    expert_share: float
    token_bytes: int
    decode_pair_flops: int
    prefill_pair_flops: int

    @classmethod
    def of(cls, directory: Path) -> Shape:
        """Read `directory/config.json` and the headers of the weights, which are not packed."""
        config = json.loads((directory / "config.json").read_text())
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        experts = config.get("num_experts") or config.get("n_routed_experts")
        if latent := config.get("kv_lora_rank"):
            rope = config["qk_rope_head_dim"]
            cached, decode = latent + rope, 2 * latent + rope
            prefill = config["qk_nope_head_dim"] + rope + config["v_head_dim"]
        else:
            head_dim = config.get("head_dim") or config["hidden_size"] // heads
            cached = 2 * config.get("num_key_value_heads", heads) * head_dim
            decode = prefill = 2 * head_dim
        return cls(
            checkpoint_matrices(directory)[0],
            config["num_experts_per_tok"] / experts if experts else 0.0,
            2 * layers * cached,
            2 * layers * heads * decode,
            2 * layers * heads * prefill,
        )

    def experts_read(self, tokens: int) -> float:
        """The share of the experts that some of so many tokens is expected to choose, if each chooses alike."""
        return 1 - (1 - self.expert_share) ** tokens

    def kv_bytes(self, batch: int, context: int) -> float:
        """Bytes of cached tokens that one decode step reads."""
        return float(batch * context * self.token_bytes)

    def decode_flops(self, batch: int, context: int) -> float:
        """Operations of one decode step: two a weight and row, and those of attention."""
        return batch * (2 * self.elements.used(self.expert_share) + context * self.decode_pair_flops)

    def prefill_flops(self, tokens: int) -> float:
        """Operations to prefill one prompt: two a layer weight and token, those of attention for every pair of a token
        and one that it sees, and the output head for the last token."""
        layers = self.elements.used(self.expert_share) - self.elements.head
        attention = tokens * (tokens + 1) / 2 * self.prefill_pair_flops
        return 2 * tokens * layers + attention + 2 * self.elements.head
