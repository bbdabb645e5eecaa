"""What loading a checkpoint takes: `loading.py DIRECTORY...`, with any forms of the same model side by side.

Each is loaded twice by the built-in device, in a process of its own without server and KV cache: first packed from its
files, then from the reorder cache that the first left. The peak is that of resident memory, above what the process had
before, and counts pages of files that are mapped. It should be no more than the packed model and the largest of its
layers, embedding and head.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HEAD = [
    "checkpoint",
    "files, MiB",
    "packed, MiB",
    "largest part, MiB",
    "",
    "seconds",
    "peak, MiB",
    "peak - packed, MiB",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="DIRECTORY")
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cache:
        print(json.dumps(load(options.checkpoints[0], options.cache)))
        return
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for directory in options.checkpoints:
        files = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        with tempfile.TemporaryDirectory(dir=directory.parent) as cache:
            for way in ("packed", "from the cache"):
                command = [sys.executable, __file__, str(directory), "--cache", cache]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                packed, largest, seconds, peak = json.loads(done.stdout.splitlines()[-1])
                sizes = [f"{size / 2**20:.0f}" for size in (files, packed, largest)]
                peaks = [f"{size / 2**20:.0f}" for size in (peak, peak - packed)]
                print("| " + " | ".join([directory.name, *sizes, way, f"{seconds:.1f}", *peaks]) + " |", flush=True)


def load(directory: Path, cache: Path) -> tuple[int, int, float, int]:
    """Bytes of the packed model and of its largest layer, embedding or head, seconds, and the peak of memory."""
    import torch

    from device.collectives.interface import SingleRank
    from sophserve.checkpoint import read_config
    from sophserve.model.config import resolve_dtype
    from sophserve.model.context import ModelContext
    from sophserve.model.devices import open_device
    from sophserve.model.loading import find_architecture, load_model

    torch.ones(100, 100).bfloat16() @ torch.ones(100, 100).bfloat16()  # what torch loads at its first product
    config = read_config(directory)
    context = ModelContext(open_device("cmodel"), SingleRank(), resolve_dtype(config, "auto"), 128)
    model_class = find_architecture(config)
    before, start = resident("VmRSS"), time.perf_counter()
    model = load_model(directory, context, model_class=model_class, cache_dir=cache)
    seconds = time.perf_counter() - start
    return model.nbytes, max(part.nbytes for _, part in model.children()), seconds, resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes, by a name of /proc/PID/status."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
