"""A prompt's tokens and logprobs are the same to the last bit whatever else is served, and however."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sophserve import LLM, AsyncLLM, SamplingParams
from sophserve.llm import RequestOutput

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=3)
PROMPT = [(7 * index * index + 3 * index) % 500 for index in range(230)]
OTHERS = [[(index * length) % 500 for index in range(length)] for length in range(1, 125, 4)]


def answer(llm: LLM, beside: list[list[int]] | None = None) -> list[object]:
    """The tokens and all logprobs of PROMPT's answer, with others that come before and after it."""
    beside = beside or []
    half = len(beside) // 2
    results = llm.generate([*beside[:half], PROMPT, *beside[half:]], PARAMS, use_tqdm=False)
    return bits(results[half])


def bits(result: RequestOutput) -> list[object]:
    """The tokens and all logprobs of an answer."""
    output = result.outputs[0]
    entries = [{token: entry.logprob for token, entry in each.items()} for each in output.logprobs or []]
    return [output.token_ids, entries]


SLOW = [("qwen2", "bfloat16"), ("qwen3", "float32"), ("qwen2_moe", "float32"), ("qwen3_moe", "float32")]
SLOW += [("deepseek_v2", "bfloat16"), ("deepseek_v2", "float32"), ("deepseek_v3", "float32"), ("qwen3_moe", "bfloat16")]


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("qwen2", "float32"),
        pytest.param("qwen3", "bfloat16", marks=pytest.mark.slow),
        ("deepseek_v3", "bfloat16"),  # whose layers have experts as well
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_bits_do_not_depend_on_how_a_prompt_is_served(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, architecture: str, dtype: str
) -> None:
    model = str(make_checkpoint(architecture))
    assert len(OTHERS) == 31

    def serve(threads: int = 2, **options: object) -> LLM:
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        return LLM(model, dtype=dtype, max_model_len=256, kv_cache_memory="64MiB", **options)  # type: ignore[arg-type]

    with serve(max_num_batched_tokens=2048) as llm:
        alone = answer(llm)
        assert answer(llm, OTHERS) == alone
        hits = answer(llm)
        assert hits == alone
    for options in (
        {"threads": 1, "max_num_batched_tokens": 100},
        {"max_num_batched_tokens": 100, "enforce_eager": True, "enable_prefix_caching": False},
    ):
        with serve(**options) as llm:  # type: ignore[arg-type]
            assert answer(llm) == alone, options
            assert answer(llm, OTHERS) == alone, options


QUANTIZED = {"hidden_size": 128, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
DISTURBED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("qwen2", {}, {"dtype": "bfloat16"}),
    "qwen2_moe, int4": ("qwen2_moe", QUANTIZED, {"dtype": "bfloat16", "quantization": "gptq"}),
    "qwen2_moe, float8": ("qwen2_moe", QUANTIZED, {"dtype": "float32", "quantization": "fp8"}),
    "qwen3_moe": ("qwen3_moe", {}, {"dtype": "float32"}),
    "deepseek_v2": ("deepseek_v2", {}, {"dtype": "bfloat16"}),
    "deepseek_v3": ("deepseek_v3", {}, {"dtype": "float32"}),
}
SHORT = [[(index * 11 + number) % 500 for index in range(14)] for number in range(2)]


@pytest.mark.parametrize("caching", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case",
    [
        "qwen2_moe, int4",
        "deepseek_v2",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("qwen2", "qwen2_moe, float8", "qwen3_moe")),
        pytest.param("deepseek_v3", marks=pytest.mark.slow),
    ],
)
def test_bits_after_a_preemption_and_a_lost_worker(
    make_checkpoint: Callable[..., Path], tmp_path: Path, case: str, caching: bool
) -> None:
    architecture, shape, options = DISTURBED[case]
    model = str(make_checkpoint(architecture, **shape))
    options = {**options, "max_model_len": 256, "enable_prefix_caching": caching, "reorder_cache_dir": str(tmp_path)}
    with LLM(model, kv_cache_memory="1MiB", **options) as llm:
        alone = answer(llm)
        assert answer(llm, OTHERS) == alone
        block_bytes = llm._llm.engine._info.kv_cache_bytes // llm._llm.engine._info.num_blocks
    # Room for the prompt and two blocks of each of the others, but not for the third ones.
    before = set(psutil.Process().children(recursive=True))
    few = AsyncLLM(model, kv_cache_memory=str(21 * block_bytes), **options)

    async def served(prompt: list[int], params: SamplingParams, lose_worker: bool = False) -> list[object]:
        async for result in few.generate(prompt, params):
            if lose_worker and len(result.outputs[0].token_ids) >= 8:
                workers[0].kill()
                lose_worker = False
        assert not lose_worker
        return bits(result)

    async def disturbed() -> None:
        async with few:
            children = set(psutil.Process().children(recursive=True)) - before
            workers.extend(child for child in children if "sophserve.worker" in " ".join(child.cmdline()))
            longer = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
            [*_, preempted] = await asyncio.gather(*(served(each, longer) for each in SHORT), served(PROMPT, PARAMS))
            assert few.engine._scheduler.stats.preemptions and preempted == alone
            assert await served(PROMPT, PARAMS, lose_worker=True) == alone
            assert not psutil.wait_procs(workers, timeout=5)[1]

    workers: list[psutil.Process] = []
    asyncio.run(disturbed())
