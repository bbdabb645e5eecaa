"""A prompt's tokens and logprobs are the same to the last bit whatever else is served, and however."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sophserve import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=3)
PROMPT = [(7 * index * index + 3 * index) % 500 for index in range(230)]
OTHERS = [[(index * length) % 500 for index in range(length)] for length in range(1, 125, 4)]


def answer(llm: LLM, beside: list[list[int]] | None = None) -> list[object]:
    """The tokens and all logprobs of PROMPT's answer, with others that come before and after it."""
    beside = beside or []
    half = len(beside) // 2
    results = llm.generate([*beside[:half], PROMPT, *beside[half:]], PARAMS, use_tqdm=False)
    output = results[half].outputs[0]
    entries = [{token: entry.logprob for token, entry in each.items()} for each in output.logprobs or []]
    return [output.token_ids, entries]


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("qwen2", "float32"),
        ("qwen3", "bfloat16"),
        pytest.param("qwen2", "bfloat16", marks=pytest.mark.slow),
        pytest.param("qwen3", "float32", marks=pytest.mark.slow),
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
        {"max_num_batched_tokens": 100},
        {"enforce_eager": True},
        {"threads": 1},
        {"threads": 1, "max_num_batched_tokens": 100, "enforce_eager": True, "enable_prefix_caching": False},
    ):
        with serve(**options) as llm:  # type: ignore[arg-type]
            assert answer(llm) == alone, options
            assert answer(llm, OTHERS) == alone, options
