"""What it takes to encode an image: `vision.py DIRECTORY WIDTHxHEIGHT`, beside transformers and llama.cpp's mtmd.

The directory is that of a checkpoint of make_checkpoint.py that sees (llava-next-mini, qwen2.5-vl-mini). Measured are
tower and projector on an image that is decoded and resized already, in bfloat16, of transformers in float32; of
llama.cpp what its own program says of the image, with the GGUF files that `--gguf` and `--mmproj` name. Each system
runs in a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402

from benchmarks.machine import measure_limits  # noqa: E402

REPEATS = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("size", help="of the image, such as 672x672")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--gguf", type=Path, help="the text model, for llama.cpp")
    parser.add_argument("--mmproj", type=Path, help="the tower, for llama.cpp")
    parser.add_argument("--mtmd-cli", type=Path, help="the program llama-mtmd-cli")
    parser.add_argument("--system", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    picture = Image.frombytes("RGB", (width, height), random.Random(1).randbytes(3 * width * height))
    if options.system:
        print(json.dumps(SYSTEMS[options.system](options.directory, picture)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    limits = []
    for _ in range(options.rounds):
        limits.append(measure_limits())
        for system in SYSTEMS:
            command = [sys.executable, __file__, str(options.directory), options.size, "--system", system]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.setdefault(system, []).append(json.loads(done.stdout.splitlines()[-1]))
        if options.mmproj:
            found.setdefault("llama.cpp", []).append({"seconds": mtmd_seconds(options, picture)})
    peak = median(each.bfloat16_gflops for each in limits)
    ours = median(each["seconds"] for each in found["sophserve"])
    flops, tokens = found["sophserve"][0]["flops"], found["sophserve"][0]["tokens"]
    print(
        f"{options.directory.name}, {options.size}: {tokens:.0f} tokens, {flops / 1e12:.2f} TFLOP, {peak:.0f} GFLOP/s\n"
    )
    print("| | seconds | of the peak | sophserve is faster by |\n|---|---|---|---|")
    for system, results in found.items():
        seconds = median(each["seconds"] for each in results)
        print(f"| {system} | {seconds:.2f} | {100 * flops / seconds / peak / 1e9:.0f}% | {seconds / ours:.2f} |")


def sophserve(directory: Path, picture: Image.Image) -> dict[str, float]:
    import torch

    from device.collectives.interface import SingleRank
    from sophserve.checkpoint import read_config, read_preprocessor_config
    from sophserve.model.config import resolve_dtype
    from sophserve.model.context import ModelContext
    from sophserve.model.devices import open_device
    from sophserve.model.loading import load_model
    from sophserve.plugins import image_processors

    config = read_config(directory)
    processor = image_processors()[config["architectures"][0]].value(config, read_preprocessor_config(directory))
    shape = processor.shape(picture.width, picture.height, "auto")
    pixels = torch.frombuffer(bytearray(processor.pixels(picture, "auto")), dtype=torch.uint8).view(shape.pixels)
    context = ModelContext(open_device("cmodel"), SingleRank(), resolve_dtype(config, "auto"), 128)
    model: Any = load_model(directory, context)

    def encode() -> None:
        work = model.encode(pixels, shape.grid)
        for _ in work:
            pass

    with torch.inference_mode():
        return {"seconds": best(encode), "flops": model.encoder_flops(shape.tokens), "tokens": shape.tokens}


def transformers(directory: Path, picture: Image.Image) -> dict[str, float]:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    # In bfloat16 it is slower on CPUs without instructions for that.
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    inputs = AutoImageProcessor.from_pretrained(directory, backend="pil")(picture, return_tensors="pt")
    with torch.inference_mode():
        return {"seconds": best(lambda: model.get_image_features(**inputs))}


SYSTEMS: dict[str, Callable[[Path, Image.Image], dict[str, float]]] = {
    "sophserve": sophserve,
    "transformers": transformers,
}


def best(work: Callable[[], Any]) -> float:
    """The least time of a few, after one that is not counted."""
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def mtmd_seconds(options: argparse.Namespace, picture: Image.Image) -> float:
    """What llama-mtmd-cli takes for all slices of the image."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/image.png"
        picture.save(path)
        command = [str(options.mtmd_cli), "-m", str(options.gguf), "--mmproj", str(options.mmproj), "--image", path]
        threads = str(len(os.sched_getaffinity(0)))
        command += ["-p", "What is this?", "-n", "1", "-t", threads, "--temp", "0"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    times = re.findall(r"batch encoding done in (\d+) ms", done.stderr + done.stdout)
    if not times:
        raise RuntimeError(f"llama-mtmd-cli said nothing of the image: {(done.stderr + done.stdout)[-1000:]}")
    return sum(map(int, times)) / 1000


if __name__ == "__main__":
    main()
