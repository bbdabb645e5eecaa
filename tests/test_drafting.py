"""The options that say how tokens are guessed, and vLLM's."""

from __future__ import annotations

import pytest

from sophserve.errors import ConfigError
from sophserve.options import parse


def drafting(*options: str) -> tuple[int, tuple[int, ...]]:
    return parse(["--model", "x", *options])[0].drafting


def test_options() -> None:
    assert drafting() == drafting("--speculation", "lookup") == (15, (8, 3))
    assert drafting("--speculation", "off") == (0, (8, 3))
    assert drafting("--speculative-tokens", "4") == (4, (8, 3))
    as_vllm = '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'
    assert drafting("--speculative-config", as_vllm) == (5, (4, 2))
    assert drafting("--speculative-config", '{"model": "[ngram]", "prompt_lookup_max": 4}') == (15, (4,))
    assert drafting("--speculative-config", '{"prompt_lookup_min": 2, "prompt_lookup_max": 2}') == (15, (2,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speculative-tokens", "0"], "between 1 and 64, got 0; --speculation off guesses none"),
        (["--speculative-config", '{"method": "eagle3"}'], "has the method 'eagle3'; ngram is the one that is there"),
        (["--speculative-config", '{"model": "small"}'], "has the method 'small'"),
        (["--speculative-config", '{"draft_tensor_parallel_size": 2}'], "has 'draft_tensor_parallel_size'"),
        (
            ["--speculative-config", '{"num_speculative_tokens": "5"}'],
            "num_speculative_tokens must be between 1 and 64",
        ),
        (["--speculative-config", '{"prompt_lookup_max": 40}'], "prompt_lookup_max must be between 1 and 16, got 40"),
        (
            ["--speculative-config", '{"prompt_lookup_max": 2, "prompt_lookup_min": 3}'],
            "prompt_lookup_min must be at most prompt_lookup_max",
        ),
        (["--speculation", "off", "--speculative-config", '{"method": "ngram"}'], "--speculation off forbids"),
    ],
)
def test_what_cannot_be(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        drafting(*options)
    assert message in str(caught.value)
