"""What is said of images is the same to the last bit however they are encoded, cut, cached and disturbed."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace
from PIL import Image

from sophserve import AsyncLLM, SamplingParams
from sophserve.checkpoint import read_config, read_preprocessor_config
from sophserve.engine.request import Item
from sophserve.link.images import SharedPixels
from sophserve.media.processor import ImageProcessor
from sophserve.plugins import image_processors

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)
MODELS = ["qwen2_5_vl", "llava_next"]
FIRST = [MODELS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in MODELS[1:])]
Prompt = tuple[list[int], list[Item]]


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


class Maker:
    """Makes prompts of a checkpoint from token ids and pictures."""

    def __init__(self, directory: Path) -> None:
        config = read_config(directory)
        processor_class: type[ImageProcessor] = image_processors()[config["architectures"][0]].value
        self.processor = processor_class(config, read_preprocessor_config(directory))

    def __call__(self, *parts: list[int] | Image.Image) -> Prompt:
        prompt: list[int] = []
        items = []
        for part in parts:
            if isinstance(part, list):
                prompt += part
                continue
            shape = self.processor.shape(part.width, part.height, "auto")
            content = self.processor.pixels(part, "auto")
            pixels = SharedPixels(len(content))
            pixels.write(content)
            items.append(Item(hashlib.sha256(content).digest(), len(prompt), shape, pixels))
            prompt += [self.processor.placeholder_id] * shape.tokens
        return prompt, items


async def answer(llm: AsyncLLM, given: Prompt, params: SamplingParams = PARAMS, at_token: Any = None) -> list[Any]:
    """Tokens, all logprobs, and how many tokens of the prompt were cached. at_token: is called with their number."""
    prompt, items = given
    llm.engine.check(prompt, params, items)
    tokens: list[int] = []
    logprobs: list[Any] = []
    cached = 0
    async with aclosing(llm.engine.generate(prompt, params, "test", items=items)) as deltas:
        async for delta in deltas:
            tokens += delta.token_ids
            logprobs += [[(each.token_id, each.logprob) for each in entry] for entry in delta.logprobs or []]
            cached = cached or delta.cached_tokens
            if at_token:
                at_token(len(tokens))
    return [tokens, logprobs, cached]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, make_seeing_checkpoint: Callable[[str], Path]) -> Path:
    return make_seeing_checkpoint(request.param)


def engine(model: Path, **options: Any) -> AsyncLLM:
    return AsyncLLM(str(model), max_model_len=512, **{"kv_cache_memory": "4MiB", **options})


def prompts(make: Maker) -> list[Prompt]:
    """One with two images next to each other, and others for beside it."""
    small, wide, tall = picture(1, 60, 61), picture(2, 170, 60), picture(3, 57, 130)
    text = [(7 * index * index) % 400 + 100 for index in range(40)]
    return [
        make(text[:19], small, wide, text[19:]),
        make(text[:5], small, text[5:9]),
        make(text[:19], small, tall, text[19:]),
        make(text),
        make(wide, text[:3], tall, text[3:20]),
    ]


ALL_SIZES = [{"max_num_batched_tokens": size} for size in range(16, 65)]
WAYS: list[dict[str, Any]] = [
    {"max_num_batched_tokens": 16, "encoder_cache_memory": "24KiB"},
    {"max_num_batched_tokens": 29, "enable_prefix_caching": False, "enforce_eager": True},
]


@pytest.mark.parametrize("model", FIRST, indirect=True)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("ways", [WAYS, pytest.param(ALL_SIZES, marks=pytest.mark.slow)], ids=["some", "all sizes"])
async def test_bits_do_not_depend_on_how_an_image_is_served(
    model: Path, dtype: str, ways: list[dict[str, Any]]
) -> None:
    first, *others = prompts(Maker(model))
    async with engine(model, dtype=dtype) as llm:
        *alone, cached = await answer(llm, first)
        assert not cached
        again = await answer(llm, first)
        assert again[:2] == alone and again[2] >= len(first[0]) - 16
        # Of this one all but a last token is cached.
        shorter = first[0][: (len(first[0]) - 1) // 16 * 16 + 1], first[1]
        *short, cached = await answer(llm, shorter)
        assert cached == len(shorter[0]) - 1
    for options in ways:
        async with engine(model, dtype=dtype, max_num_seqs=8, **options) as llm:
            assert (await answer(llm, first))[:2] == alone, options
            assert (await answer(llm, shorter))[:2] == short, options
            [*_, crowded] = await asyncio.gather(*(answer(llm, each) for each in [*others, *others, first]))
            assert crowded[:2] == alone, options


@pytest.mark.parametrize("model", FIRST, indirect=True)
async def test_bits_after_a_preemption_and_a_lost_worker(model: Path) -> None:
    first, params = prompts(Maker(model))[0], replace(PARAMS, max_tokens=24)
    async with engine(model) as llm:
        *alone, _ = await answer(llm, first, params)
        info = llm.engine.info
        block_bytes = info.kv_cache_bytes // info.num_blocks
    blocks = (len(first[0]) + 24) // 16 + 1 + 2 * 2  # two of each text, but not the third ones
    longer = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    before = set(psutil.Process().children(recursive=True))
    few = AsyncLLM(str(model), max_model_len=16 * blocks, kv_cache_memory=str(blocks * block_bytes))
    async with few as llm:
        texts: list[Prompt] = [([5 + n] * 14, []) for n in range(2)]
        answers = [*(answer(llm, each, longer) for each in texts), answer(llm, first, params)]
        [*_, preempted] = await asyncio.gather(*answers)
        assert llm.engine._scheduler.stats.preemptions and preempted[:2] == alone
        children = set(psutil.Process().children(recursive=True)) - before
        workers = [each for each in children if "sophserve.worker" in " ".join(each.cmdline())]
        killed: list[psutil.Process] = []

        def kill(tokens: int) -> None:
            if tokens >= 4 and not killed:
                killed.append(workers[0])
                workers[0].kill()

        assert (await answer(llm, first, params, kill))[:2] == alone
        assert killed and not psutil.wait_procs(killed, timeout=5)[1]
        assert (await answer(llm, first, params))[:2] == alone


@pytest.mark.parametrize("model", FIRST, indirect=True)
async def test_another_image_or_place_is_no_hit(model: Path) -> None:
    """Blocks before an image are shared, those that it touches are not."""
    make = Maker(model)
    small, other = picture(1, 60, 61), picture(2, 60, 61)
    text = list(range(100, 140))
    same, swapped = make(text, small, other, text), make(text, other, small, text)
    moved, gone = make([99, *text], small, other, text), make(text, small, small, text)
    fresh = {}
    async with engine(model, enable_prefix_caching=False, encoder_cache_memory="24KiB") as llm:
        for name, given in (("swapped", swapped), ("moved", moved), ("gone", gone)):
            fresh[name] = (await answer(llm, given))[:2]
    async with engine(model) as llm:
        known = (await answer(llm, same))[:2]
        assert (await answer(llm, same))[2] >= len(same[0]) - 16
        *said, cached = await answer(llm, swapped)
        assert said == fresh["swapped"] != known and cached == 32
        *said, cached = await answer(llm, moved)
        assert said == fresh["moved"] and cached == 0
        *said, cached = await answer(llm, gone)
        assert said == fresh["gone"] != known and cached >= 32
        images = llm.engine._scheduler.images
        assert images.queries - images.hits == 2, "an image was encoded twice"
