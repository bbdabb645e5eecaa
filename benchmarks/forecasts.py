"""What `sophserve doctor` forecasts beside what `sophserve bench` measures: `forecasts.py DIRECTORY...`.

Both run in turn, so that they meet the same moods of the machine: prompts of 128 tokens, answers of 32 without guesses.
The table has the median of each and the ratio of these.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model

WORK = ("decode, batch 1", "decode, batch 8", "prefill")
LENGTH, ANSWER = "128", "32"


def sophserve(*arguments: str) -> str:
    """What a command prints. Raises CalledProcessError."""
    command = [sys.executable, "-m", "sophserve", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def forecast(model: str) -> list[float]:
    """Tokens/s of WORK."""
    told = json.loads(sophserve("doctor", "--model", model, "--input-length", LENGTH, "--json"))
    return [each["tokens_per_second"] for each in told["forecasts"]]


def measured(model: str) -> list[float]:
    """Tokens/s of WORK."""
    found = []
    for batch in ("1", "8"):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            sizes = ["--batch", batch, "--input-length", LENGTH, "--max-new-tokens", ANSWER]
            sophserve(
                "bench", "--model", model, *sizes, "--skip-limits", "--speculation", "off", "--save-json", file.name
            )
            found.append(json.loads(Path(file.name).read_text())["benchmarks"][0]["performance"])
    return [found[0]["tps"], found[1]["tps"], found[0]["prefill_tps"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    print(f"{cpu_model()}, commit {commit()}\n")
    print("| model | | forecast, tokens/s | measured | ratio |\n|---|---|---|---|---|")
    for model in given.models:
        turns = [(forecast(model), measured(model)) for _ in range(given.turns)]
        told, found = (zip(*each, strict=True) for each in zip(*turns, strict=True))
        for work, one, other in zip(WORK, map(statistics.median, told), map(statistics.median, found), strict=True):
            print(f"| {Path(model).name} | {work} | {one:.1f} | {other:.1f} | {one / other:.2f} |", flush=True)


if __name__ == "__main__":
    main()
