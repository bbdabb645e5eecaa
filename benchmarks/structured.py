"""What structured output costs: `structured.py DIRECTORY`, such as the Qwen2-0.5B of make_checkpoint.py.

16 answers at once, free, kept to a regular expression, and kept to a JSON schema with nested objects that no answer
gets to the end of. Each run stands between two free ones, and is compared with their mean; the table has medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import commit, cpu_model
from sophserve import LLM, SamplingParams, StructuredOutput

BATCH, TOKENS, TURNS = 16, 48, 7

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,12}( [A-Z][a-z]{1,12})?$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mood": {"enum": ["happy", "sad", "indifferent"]},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 4},
        "home": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"city": {"type": "string"}}}]},
    },
    "required": ["name", "age", "mood", "notes", "home"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 1000}

CASES = {
    "regex": StructuredOutput("regex", "([a-z]{2,9} [0-9]{1,3}[.!?] ){1000}"),
    "json_schema": StructuredOutput("json_schema", json.dumps(SCHEMA)),
}


def throughput(llm: LLM, structured: StructuredOutput | None) -> float:
    """Tokens per second of the decode steps."""
    prompts = [[300 + index] * 8 for index in range(BATCH)]
    times = []
    for tokens in (8, 8 + TOKENS):
        params = SamplingParams(temperature=1, seed=1, max_tokens=tokens, ignore_eos=True, structured=structured)
        start = time.perf_counter()
        results = llm.generate(prompts, params, use_tqdm=False)
        times.append(time.perf_counter() - start)
        assert all(len(result.outputs[0].token_ids) == tokens for result in results)
    return BATCH * TOKENS / (times[1] - times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    model = parser.parse_args().model
    ratios: dict[str, list[float]] = {name: [] for name in CASES}
    with LLM(model, kv_cache_memory="512MiB", max_model_len=512, speculation="off") as llm:
        free = [throughput(llm, None)]
        for _ in range(TURNS):
            for name, structured in CASES.items():
                speed = throughput(llm, structured)
                free.append(throughput(llm, None))
                ratios[name].append(2 * speed / (free[-2] + free[-1]))
    print(f"{cpu_model()}, commit {commit()}, {BATCH} answers, free {statistics.median(free):.0f} tokens/s")
    print("\n| kept to | speed, of free answers' |\n|---|---|")
    for name, values in ratios.items():
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")


if __name__ == "__main__":
    main()
