"""Every architecture over HTTP, in process, and in transformers: the same tokens and logprobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from sophserve import LLM, SamplingParams

LENGTHS = [1, 7, 16, 17, 60]
NEW_TOKENS = 32
TOLERANCE = 2e-3
CASES = {
    "llama": {"architecture": "llama", "attention_bias": True},
    "llama-sharded": {"architecture": "llama", "max_shard_size": "50KB", "tie_word_embeddings": True},
    "mistral": {"architecture": "mistral", "sliding_window": 24},
    "qwen2": {"architecture": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"architecture": "qwen3", "head_dim": 32},
}


def expected(directory: Path, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """transformers' greedy continuation, and the logprobs `[tokens, vocab]` after each token of the whole."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        whole = model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
        # min_new_tokens bans the end tokens; sophserve is asked to do the same.
        return whole[0, len(prompt) :].tolist(), model(whole).logits[0].log_softmax(-1)


def check_answer(
    choice: Any, prompt: list[int], tokens: list[int], logprobs: torch.Tensor, tokenizer: Tokenizer
) -> None:
    """A choice's text and logprobs are those of the tokens."""
    start = len(prompt) - 1
    exact = logprobs[range(start, start + NEW_TOKENS), tokens]
    assert torch.tensor(choice.logprobs.token_logprobs).sub(exact).abs().max() < TOLERANCE
    # A prompt may end within a character, which the text then completes.
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + tokens)
    assert whole in (before + choice.text, before.removesuffix("\ufffd") + choice.text)


def check_prompt(choice: Any, prompt: list[int], logprobs: torch.Tensor) -> None:
    """A choice's prompt_logprobs are those of the prompt."""
    for position in range(1, len(prompt)):
        entry = choice.prompt_logprobs[position][str(prompt[position])]
        assert abs(entry["logprob"] - logprobs[position - 1, prompt[position]]) < TOLERANCE


def check_embedded(llm: LLM, prompts: list[list[int]], oracle: list[tuple[list[int], torch.Tensor]]) -> None:
    """Tokens and logprobs, those of prompts too, of all prompts at once."""
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, logprobs=0, prompt_logprobs=0)
    results = llm.generate(prompts, params, use_tqdm=False)
    for prompt, result, (tokens, logprobs) in zip(prompts, results, oracle, strict=True):
        output = result.outputs[0]
        assert output.token_ids == tokens
        everything = prompt + tokens
        entries = (result.prompt_logprobs or []) + (output.logprobs or [])
        for position in range(1, len(everything)):
            entry = (entries[position] or {})[everything[position]]
            assert abs(entry.logprob - logprobs[position - 1, everything[position]]) < TOLERANCE


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 512, (length,), generator=generator).tolist() for length in LENGTHS]


# In process, tests/oracle looks at every architecture.
@pytest.mark.parametrize(
    "case", [case if case == "qwen3" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_http_and_embedded_equal_transformers(
    case: str, prompts: list[list[int]], make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    settings = dict(CASES[case])
    directory = make_checkpoint(settings.pop("architecture"), **settings)
    oracle = [expected(directory, prompt) for prompt in prompts]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    client = start_server(directory).client()
    for prompt, (tokens, logprobs) in zip(prompts, oracle, strict=True):
        answer = client.completions.create(
            model="tiny",
            prompt=prompt,
            temperature=0,
            max_tokens=NEW_TOKENS,
            logprobs=1,
            extra_body={"min_tokens": NEW_TOKENS, "prompt_logprobs": 0},
        )
        check_answer(answer.choices[0], prompt, tokens, logprobs, tokenizer)
        assert answer.choices[0].prompt_logprobs[0] is None
        check_prompt(answer.choices[0], prompt, logprobs)
    with LLM(str(directory)) as llm:
        check_embedded(llm, prompts, oracle)
