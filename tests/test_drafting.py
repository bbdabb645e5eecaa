"""The options that say how tokens are guessed, and vLLM's."""

from __future__ import annotations

import pytest

from sophserve.errors import ConfigError
from sophserve.options import parse


def drafting(*options: str) -> tuple[int, tuple[int, ...], bool, bool]:
    found = parse(["--model", "x", *options])[0].drafting
    assert found.model is None
    return found[:-1]


def test_options() -> None:
    assert drafting() == (15, (8, 3), True, False)
    assert drafting("--speculation", "lookup") == (15, (8, 3), False, False)
    assert drafting("--speculation", "mtp") == (15, (), True, True)
    assert drafting("--speculation", "off") == (0, (8, 3), False, False)
    assert drafting("--speculative-tokens", "4") == (4, (8, 3), True, False)
    as_vllm = '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'
    lookup = False, False
    assert drafting("--speculative-config", as_vllm) == (5, (4, 2), *lookup)
    assert drafting("--speculative-config", '{"model": "[ngram]", "prompt_lookup_max": 4}') == (15, (4,), *lookup)
    as_vllm = '{"prompt_lookup_min": 2, "prompt_lookup_max": 2}'
    assert drafting("--speculative-config", as_vllm) == (15, (2,), True, False)
    as_vllm = '{"num_speculative_tokens": 1}'
    assert drafting("--speculation", "mtp", "--speculative-config", as_vllm) == (1, (), True, True)
    for method in ("mtp", "deepseek_mtp"):
        as_vllm = f'{{"method": "{method}", "num_speculative_tokens": 1}}'
        assert drafting("--speculative-config", as_vllm) == (1, (), True, True)
        assert drafting("--speculation", "mtp", "--speculative-config", as_vllm) == (1, (), True, True)


def test_a_smaller_model() -> None:
    given = ["--speculative-model", "small"]
    beside, alone = (15, (8, 3), False, False, "small"), (4, (), False, False, "small")
    as_vllm = '{"method": "draft_model", "model": "small", "num_speculative_tokens": 4}'
    for options, expected in (
        (given, beside),
        (["-md", "small"], beside),
        (["--speculative-config", '{"model": "small"}'], beside),
        ([*given, "--speculative-config", '{"model": "small"}'], beside),
        ([*given, "--speculation", "draft", "--speculative-tokens", "4"], alone),
        (["--speculative-config", as_vllm], alone),
        (["--speculative-config", as_vllm.replace("draft_model", "eagle3")], alone),
    ):
        assert parse(["--model", "x", *options])[0].drafting == expected
    # There vLLM has the model itself.
    assert drafting("--speculative-config", '{"method": "mtp", "model": "x"}') == (15, (), True, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speculative-tokens", "0"], "between 1 and 64, got 0; --speculation off guesses none"),
        (["--speculative-config", '{"method": "eagle"}'], "the method 'eagle'; those that are there are ngram, mtp"),
        (["--speculative-config", '{"model": 7}'], "model must be a directory or a Hub id, got 7"),
        (["--speculative-config", '{"method": "draft_model"}'], "--speculation draft needs --speculative-model"),
        (["--speculation", "draft"], "--speculation draft needs --speculative-model"),
        (["--speculation", "lookup", "-md", "small"], "--speculative-model has no use with --speculation lookup"),
        (["--speculation", "off", "-md", "small"], "--speculative-model has no use with --speculation off"),
        (["-md", "a", "--speculative-config", '{"model": "b"}'], "has the model b, and --speculative-model is a"),
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
        (["--speculation", "lookup", "--speculative-config", '{"method": "mtp"}'], "asks for mtp, and --speculation l"),
        (["--speculation", "mtp", "--speculative-config", '{"method": "ngram"}'], "asks for ngram, and --speculation"),
    ],
)
def test_what_cannot_be(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        drafting(*options)
    assert message in str(caught.value)
