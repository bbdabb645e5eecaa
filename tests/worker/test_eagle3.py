"""EAGLE-3 heads: they say what the definition has them say, and no bit of an answer changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError
from sophserve.measure.footprint import FootprintRequest
from sophserve.measure.footprint_process import footprint
from sophserve.model.eagle3 import Eagle3
from sophserve.model.kv_memory import token_bytes
from sophserve.preflight import check as preflight
from sophserve.sampling import SamplingParams
from sophserve.worker.speculation import Speculation
from tests.eagle_heads import says, write_head
from tests.worker.test_draft_model import Made, open_runner, what_is_said
from tests.worker.test_mtp import PROMPT
from tests.worker.test_speculation import FORMS, Run, check

TOKENS = [40, 60, 77, 300]
"""What the head can say where it is to be right now and then: answers have no others."""


@pytest.fixture(scope="module")
def target(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen2")


@pytest.fixture(scope="module")
def head_directory(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(target, tmp_path_factory.mktemp("head") / "head", tokens=TOKENS)


@pytest.fixture(scope="module")
def made(target: Path, head_directory: Path) -> Made:
    return open_runner(target, head_directory)


@pytest.fixture(autouse=True)
def as_many_as_may_be(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever they would gain, three times of four."""
    chance = random.Random(7)
    monkeypatch.setattr(Speculation, "_goes_on", lambda *_: chance.random() < 0.75)
    yield


@pytest.mark.parametrize(
    ("layout", "options"),
    [("authors", {}), ("speculators", {}), ("authors", {"enforce_eager": True})],
    ids=["authors", "speculators", "eager"],
)
def test_it_says_what_the_definition_has_it_say(
    layout: str, options: dict[str, Any], target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    head = write_head(target, tmp_path / "head", layout, tokens=[3 * each + 5 for each in range(160)])
    made = open_runner(target, head, **options)
    said = what_is_said(made[0], monkeypatch)
    run = Run(*made, 4, tokens=24)
    run.add(0, PROMPT, SamplingParams(temperature=0.7, seed=3, max_tokens=30, ignore_eos=True))
    ids = PROMPT + run.finish()[0].tokens
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    assert len(said) > 10 and max(map(len, said.values())) == 4
    for (_, place), token_ids in said.items():
        assert token_ids == says(head, model, ids[:place], len(token_ids), layout)
    assert len({token for token_ids in said.values() for token in token_ids}) > 10


def wanted(**options: Any) -> list[Any]:
    """Two answers to the same prompt, and one to another, at every temperature."""
    found = []
    for number, temperature in enumerate((0.0, 0.7, 0.7, 1.5)):
        given = {"temperature": temperature, "seed": number, "max_tokens": 40, "logprobs": 2} | options
        params = SamplingParams(ignore_eos=True, allowed_token_ids=TOKENS, **given)
        found.append((PROMPT[: 50 - number // 3], params, []))
    return found


def test_no_bit_changes(made: Made) -> None:
    assert sum(check(made, wanted(), 0, drafts=4)) > 10
    assert any(check(made, wanted(repetition_penalty=1.2), 1, drafts=3, blocks=14, tokens=24))
    assert any(check(made, wanted(), 2, caching=False, lose_after=9))


def test_answers_are_those_without_a_head(target: Path, made: Made) -> None:
    """The model hands out its states, and computes what it did."""

    def answers(made: Made) -> Any:
        run = Run(*made, 0)
        for number, (prompt, params, _) in enumerate(wanted()):
            run.add(number, prompt, params)
        return run.finish()

    alone = open_runner(target, target)
    assert not alone[0].model.handed and made[0].model.handed
    assert answers(alone) == answers(made)


def test_forms_are_kept_to(made: Made) -> None:
    for form in FORMS:
        check(made, [(PROMPT, SamplingParams(temperature=1.0, seed=4, max_tokens=60, structured=form), [])] * 2, 0)


def test_its_memory_counts(target: Path, made: Made, head_directory: Path) -> None:
    runner = made[0]
    head = runner._smaller
    assert isinstance(head, Eagle3)
    of_a_token = token_bytes(runner.model) + 2 * 2 * 24 * 4
    assert runner.info.kv_cache_bytes == runner.info.num_blocks * 16 * of_a_token
    config = EngineConfig(model="x", speculative_model=str(head_directory), kv_cache_memory="16MiB")
    request = FootprintRequest(directory=str(target), config=config, smaller=str(head_directory), memory=2**30)
    plan = footprint(request)
    assert plan.smaller and plan.smaller.weight_bytes == head.nbytes - head.target_ids.nbytes
    assert plan.num_blocks == runner.info.num_blocks and plan.kv_token_bytes == of_a_token


def test_what_cannot_be(target: Path, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    head = write_head(target, tmp_path / "head")
    preflight(EngineConfig(model=str(target), speculative_model=str(head)), target)
    wide = make_checkpoint("qwen2", hidden_size=128)
    with pytest.raises(ConfigError, match=r"head: it was made for a model with 64 channels and 512 tokens, and this"):
        open_runner(wide, head)
    lacking = write_head(target, tmp_path / "lacking", tokens=TOKENS)
    tensors = load_file(lacking / "model.safetensors")
    del tensors["d2t"]
    save_file(tensors, lacking / "model.safetensors")
    with pytest.raises(ConfigError, match="its files hold no d2t"):
        open_runner(target, lacking)
    other = write_head(target, tmp_path / "other", norm_before_fc=True)
    with pytest.raises(ConfigError, match="norm_before_fc"):
        open_runner(target, other)
    deep = write_head(target, tmp_path / "deep", eagle_aux_hidden_state_layer_ids=[1, 2, 9])
    with pytest.raises(ConfigError, match=r"it takes the inputs of layers \[1, 2, 9\] of a model that has 3"):
        open_runner(target, deep)
