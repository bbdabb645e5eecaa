"""A smaller model that guesses: it says what it says alone, whatever became of a request on the way, and the answers
stay what they are."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sophserve.config import EngineConfig
from sophserve.errors import ConfigError
from sophserve.link.messages import LoadModel
from sophserve.measure.footprint import FootprintRequest
from sophserve.measure.footprint_process import footprint
from sophserve.model.kv_memory import token_bytes
from sophserve.preflight import check as preflight
from sophserve.sampling import SamplingParams
from sophserve.text.tokenizer import Tokenizer
from sophserve.worker import draft_model
from sophserve.worker.model_runner import ModelRunner
from sophserve.worker.speculation import Speculation
from tests.worker.test_mtp import PROMPT, wanted
from tests.worker.test_speculation import FORMS, Run, check

Made = tuple[ModelRunner, Tokenizer]
Said = dict[tuple[int, int], list[int]]


def like(source: Path, target: Path, noise: float, **config: Any) -> Path:
    """A copy of a checkpoint with other weights, by so much of their size, and other keys of config.json."""
    shutil.copytree(source, target)
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | config))
    tensors, chance = load_file(target / "model.safetensors"), torch.Generator().manual_seed(3)
    for tensor in tensors.values():
        tensor += noise * tensor.std() * torch.randn(tensor.shape, generator=chance)
    if rows := config.get("vocab_size"):
        for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            tensors[name] = torch.cat([tensors[name], tensors[name]])[:rows].contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def open_runner(directory: Path, smaller: Path, **options: Any) -> Made:
    given = {"speculation": "draft", "reorder_cache_dir": str(smaller / "packed"), "kv_cache_memory": "16MiB"}
    config = EngineConfig(model=str(directory), speculative_model=str(smaller), **(given | options))
    load = LoadModel(str(directory), config, 0, 1, 20)
    return ModelRunner(load, [-1], lambda: None, lambda _: None), Tokenizer.from_directory(directory)


@pytest.fixture(scope="module")
def target(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint("qwen2")


@pytest.fixture(scope="module")
def agreeing(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that often says what the other says."""
    return like(target, tmp_path_factory.mktemp("smaller") / "model", 0.05)


@pytest.fixture(scope="module")
def made(target: Path, agreeing: Path) -> Made:
    return open_runner(target, agreeing)


@pytest.fixture(autouse=True)
def as_many_as_may_be(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever they would gain, three times of four."""
    chance = random.Random(7)
    monkeypatch.setattr(Speculation, "_goes_on", lambda *_: chance.random() < 0.75)
    yield


def what_is_said(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> Said:
    """The tokens that are predicted, by the request and the place, from now on."""
    said: Said = {}
    assert runner._speculation
    draft = runner._speculation._draft

    def noting(model: Any, rows: int, states: list[Any]) -> float:
        spent = draft(model, rows, states)
        for state, _ in states:
            if state.predicted and state.predicted.place == len(state.tokens):
                said[state.id, state.predicted.place] = list(state.predicted.token_ids)
        return spent

    monkeypatch.setattr(runner._speculation, "_draft", noting)
    return said


@torch.inference_mode()
def transformers_says(directory: Path, ids: list[int], count: int) -> list[int]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=count, eos_token_id=None)
    return list(found[0, len(ids) :].tolist())


# --- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}], ids=["recorded", "eager"])
def test_the_same_is_guessed_as_by_transformers(
    options: dict[str, Any], target: Path, agreeing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_runner(target, agreeing, **options)
    said = what_is_said(made[0], monkeypatch)
    run = Run(*made, 5)
    run.add(0, PROMPT, SamplingParams(temperature=0.7, seed=3, max_tokens=40, ignore_eos=True))
    ids = PROMPT + run.finish()[0].tokens
    longest = max(map(len, said.values()))
    assert len(said) > 10 and longest == 5
    for (_, place), token_ids in said.items():
        assert token_ids == transformers_says(agreeing, ids[:place], len(token_ids))
    assert 0 < sum(run.accepted) < 5 * len(run.accepted)


def test_the_same_is_said_whatever_becomes_of_a_request(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, behind prefixes that are found again and ones that it never saw, preempted, on a new worker."""
    monkeypatch.setattr(Speculation, "_goes_on", lambda *_: True)
    chance = random.Random(3)
    prompts = [[chance.randrange(10, 400) for _ in range(50)] for _ in range(3)]
    prompts.append(prompts[0][:40] + prompts[1][:10])

    def say(again: bool = False, catch_up: int = 512, lose_after: int | None = None, **options: Any) -> Said:
        with monkeypatch.context() as patch:
            patch.setattr(draft_model, "CATCH_UP", catch_up)
            run = Run(*made, 4, **options)
            if again:  # what others computed without it
                params = SamplingParams(max_tokens=20, temperature=0.7, seed=1, ignore_eos=True, speculative_tokens=0)
                for number, prompt in enumerate(prompts[:2]):
                    run.add(10 + number, prompt, params)
                run.finish()
            said = what_is_said(made[0], patch)
            for number, prompt in enumerate(prompts):
                run.add(number, prompt, SamplingParams(temperature=0.7, seed=number, max_tokens=40, ignore_eos=True))
            run.finish(lose_after)
            assert not again or run.scheduler.stats.prefix_hits
            return said

    plain = say(caching=False)
    assert len(plain) > 40 and max(map(len, plain.values())) == 4
    for options in ({"again": True}, {"tokens": 24}, {"catch_up": 7}, {"blocks": 15, "tokens": 24}, {"lose_after": 9}):
        others = say(**options)
        common = plain.keys() & others.keys()
        assert len(common) > 20
        for key in common:
            count = min(len(plain[key]), len(others[key]))
            assert plain[key][:count] == others[key][:count]


# --- no bit changes --------------------------------------------------------------------------------------------------


def test_no_bit_changes(made: Made) -> None:
    assert sum(check(made, wanted(), 0, drafts=5)) > 15
    assert any(check(made, wanted(repetition_penalty=1.2), 1, drafts=4, blocks=14, tokens=24))
    assert any(check(made, wanted(), 2, caching=False, lose_after=9))


def test_forms_are_kept_to(made: Made) -> None:
    for form in FORMS:
        check(made, [(PROMPT, SamplingParams(temperature=1.0, seed=4, max_tokens=60, structured=form), [])] * 2, 0)


@pytest.mark.parametrize("rows", [480, 520])
def test_more_or_fewer_rows_of_the_vocabulary(rows: int, target: Path, tmp_path: Path) -> None:
    """Models of one family pad it differently, and a shorter context is no guess behind it."""
    smaller = like(target, tmp_path / "model", 0.05, vocab_size=rows, max_position_embeddings=80)
    made = open_runner(target, smaller)
    long = ([505 + index % 7 for index in range(70)], wanted()[1][1], [])
    assert any(check(made, [*wanted(), long], 0, drafts=5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen2", {"speculation": "auto"}),
        ("qwen2", {"dtype": "bfloat16", "quantization": "fp8"}),
        ("deepseek_v3", {"dtype": "bfloat16"}),
        ("qwen2_5_vl", {}),
    ],
)
def test_no_bit_changes_otherwise(
    kind: str, options: dict[str, Any], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    directory = make_checkpoint(kind)
    made = open_runner(directory, like(directory, tmp_path / "model", 0.02), **options)
    assert any(check(made, wanted(), 0, drafts=5, rate=0.3))
    assert any(check(made, wanted(), 1, drafts=4, rate=0.3, blocks=14, tokens=24))


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_its_memory_counts(made: Made, target: Path, agreeing: Path) -> None:
    runner = made[0]
    assert runner._smaller
    of_a_token = token_bytes(runner.model) + token_bytes(runner._smaller)
    assert of_a_token == 2 * token_bytes(runner.model)
    assert runner.info.kv_cache_bytes == runner.info.num_blocks * 16 * of_a_token <= 16 << 20
    assert runner.info.weight_bytes == runner.model.nbytes + runner._smaller.nbytes
    with pytest.raises(ConfigError, match=r"--kv-cache-memory is .*, less than one block of"):
        open_runner(target, target, kv_cache_memory=str(16 * token_bytes(runner.model)))
    config = EngineConfig(model="x", speculative_model=str(agreeing), kv_cache_memory="16MiB")
    request = FootprintRequest(directory=str(target), config=config, smaller=str(agreeing), memory=2**30)
    plan = footprint(request)
    assert plan.smaller and plan.smaller.weight_bytes == runner._smaller.nbytes
    assert (plan.weight_bytes, plan.num_blocks) == (runner.info.weight_bytes, runner.info.num_blocks)
    assert plan.kv_token_bytes == of_a_token


def test_requests_without_guesses_cost_it_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = made[0]
    said = what_is_said(runner, monkeypatch)
    monkeypatch.setattr(draft_model.DraftModel, "_compute", lambda *_: pytest.fail("it computed something"))
    run = Run(*made, 5)
    run.add(0, PROMPT, SamplingParams(max_tokens=10, ignore_eos=True, speculative_tokens=0))
    run.finish()
    assert not said


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_what_cannot_be(target: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--speculative-model .*/none: there is no directory .*/none; give a ch"):
        open_runner(target, tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^--speculative-model .*/none: there is no directory"):
        preflight(EngineConfig(model=str(target), speculative_model=str(tmp_path / "none")), target)
    other = like(target, tmp_path / "other", 0.0, architectures=["Mamba2ForCausalLM"])
    with pytest.raises(ConfigError, match=r"other: Mamba2ForCausalLM is not a supported architecture"):
        open_runner(target, other)
    with pytest.raises(ConfigError, match=r"other: Mamba2ForCausalLM is not a supported architecture"):
        preflight(EngineConfig(model=str(target), speculative_model=str(other)), target)
    strange = like(target, tmp_path / "strange", 0.0)
    tokenizer = json.loads((strange / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (strange / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"its vocabulary is not that of the model: 2 of its \d+ tokens are others"):
        open_runner(target, strange)
