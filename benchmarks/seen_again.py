"""What an image costs a request, and seeing a model: `seen_again.py DIRECTORY WIDTHxHEIGHT --text DIRECTORY`.

The directories are those of checkpoints of make_checkpoint.py: a model that sees (qwen2.5-vl-mini), and one of its text
part's shape (qwen2-0.5b). Measured are the times to the first token of a question about an image that is new, of
another question about the same image, and of that question without any image; and decode steps after a text of both
models, in turns. Every figure is the least of its rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sophserve.bench.offline_images import BenchImages  # noqa: E402
from sophserve.bench.offline_prompts import make_prompts  # noqa: E402
from sophserve.bench.offline_run import run_pass  # noqa: E402
from sophserve.bench.random_images import image_size  # noqa: E402
from sophserve.image_prompt import ImagePrompt  # noqa: E402
from sophserve.llm import AsyncLLM  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("size", type=image_size, help="of the image, such as 448x448")
    parser.add_argument("--text", type=Path, required=True, help="a model of the text part's shape")
    parser.add_argument("--length", type=int, default=128, help="tokens of a question")
    parser.add_argument("--steps", type=int, default=64, help="decode steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    asyncio.run(measure(options))


async def measure(options: argparse.Namespace) -> None:
    images = BenchImages(options.directory, options.size, seed=0)
    length = 2 * options.length + images.tokens + options.steps
    async with AsyncExitStack() as stack:
        # Random weights repeat themselves, and guesses would come true as they like.
        settings = {"max_model_len": length, "max_num_seqs": 1, "kv_cache_memory": "512MiB", "speculation": "off"}
        sees, reads = [
            await stack.enter_async_context(AsyncLLM(str(path), **settings))
            for path in (options.directory, options.text)
        ]
        firsts = [await first_tokens(sees, images, options.length, number) for number in range(options.rounds)]
        steps = [
            [await decode_step(llm, options.length, options.steps) for llm in (sees, reads)]
            for _ in range(options.rounds)
        ]
    new, again, alone = least(firsts)
    seeing, reading = least(steps)
    width, height = options.size
    print(f"{options.directory.name}, {width} x {height}: {images.tokens} tokens, questions of {options.length}\n")
    print("| first token, ms | | of the question alone |\n|---|---|---|")
    for name, seconds in (("a new image", new), ("the same image", again), ("no image", alone)):
        print(f"| {name} | {1000 * seconds:.1f} | {seconds / alone:.2f} |")
    print("\n| decode step, ms | | of the text model |\n|---|---|---|")
    for name, seconds in (("the model that sees", seeing), ("the text model", reading)):
        print(f"| {name} | {1000 * seconds:.2f} | {seconds / reading:.3f} |")


async def first_tokens(llm: AsyncLLM, images: BenchImages, length: int, number: int) -> tuple[float, float, float]:
    """Seconds to the first token of a question about a new image, of another about it, and of that one alone."""
    assert llm.images is not None
    asked = [make_prompts(llm.tokenizer, None, 1, length, 2 * number + each, images.processor)[0] for each in range(2)]
    [first] = await images.shown(asked[:1], llm.images, llm.tokenizer)
    [image] = first.items
    question = asked[1][image.start + 1 :]
    second = ImagePrompt(first.ids[: image.end] + question, first.items)
    alone = ImagePrompt([*asked[1][: image.start], *question])
    salt = uuid4().hex
    new, again = [(await run_pass(llm, [each], 1, salt)).first_token for each in (first, second)]
    return new, again, (await run_pass(llm, [alone], 1, uuid4().hex)).first_token


async def decode_step(llm: AsyncLLM, length: int, steps: int) -> float:
    """The least seconds of a step after a text."""
    [prompt] = make_prompts(llm.tokenizer, None, 1, length, 0)
    return min((await run_pass(llm, [ImagePrompt(prompt)], 1 + steps)).steps)


def least(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Of each column."""
    return [min(column) for column in zip(*rounds, strict=True)]


if __name__ == "__main__":
    main()
