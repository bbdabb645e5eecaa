"""The model's own layer for further tokens: it says what transformers has it say, whatever became of a request on the
way, and the answers stay what they are."""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sophserve.config import EngineConfig
from sophserve.errors import CheckpointError, ConfigError
from sophserve.link.messages import LoadModel
from sophserve.model.kv_memory import cached_layers
from sophserve.sampling import SamplingParams
from sophserve.text.tokenizer import Tokenizer
from sophserve.worker.follower import FIRST_CHANCES, SURE, Follower, Prediction
from sophserve.worker.lookup import Lookup
from sophserve.worker.model_runner import ModelRunner
from sophserve.worker.step_costs import Gate
from tests.further_layer import with_further_layer
from tests.worker.test_speculation import FORMS, Run, check

Made = tuple[ModelRunner, Tokenizer]
Said = dict[tuple[int, int], tuple[int, float]]
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.4}
PROMPT = [3 + (7 * index * index) % 497 for index in range(50)]
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


def open_runner(directory: Path, **options: Any) -> Made:
    options = {"speculation": "mtp", "reorder_cache_dir": str(directory / "packed")} | options
    config = EngineConfig(model=str(directory), kv_cache_memory="16MiB", **options)
    load = LoadModel(str(directory), config, 0, 1, 20)
    return ModelRunner(load, [-1], lambda: None, lambda _: None), Tokenizer.from_directory(directory)


@pytest.fixture(scope="module")
def directory_of(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`directory_of(agreeing, **config)`."""
    made: dict[str, Path] = {}

    def make(agreeing: float | None = None, **config: Any) -> Path:
        key = repr((agreeing, config))
        if key not in made:
            target = tmp_path_factory.mktemp("further") / "model"
            made[key] = with_further_layer(make_checkpoint("deepseek_v3", **config), target, agreeing)
        return made[key]

    return make


@pytest.fixture(scope="module")
def agreeing(directory_of: Callable[..., Path]) -> Made:
    """A model whose layer often says what it says itself."""
    return open_runner(directory_of(0.01))


def what_is_said(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What is predicted, and how probable it is, by the request and the place, from now on."""
    said: Said = {}
    assert runner._mtp
    run = runner._mtp.run

    def noting(batch: Any, hidden: Tensor, *, guessing: bool) -> bool:
        done = run(batch, hidden, guessing=guessing)
        for state in batch.states:
            if state.predicted and state.predicted.place == len(state.tokens):
                place, (token_id,), (probability,) = state.predicted
                said[state.id, place] = token_id, probability
        return done

    monkeypatch.setattr(runner._mtp, "run", noting)
    return said


# --- what it says ----------------------------------------------------------------------------------------------------


def transformers_model(directory: Path, layers: int = 3) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    # It names the tensors of the published model, of 61 layers.
    model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{layers}\..*"]
    return model


@torch.inference_mode()
def transformers_logprobs(model: Any, ids: list[int]) -> Tensor:
    """Of the tokens behind each of ids but the first, `[ids - 1, vocab]`."""
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel

    further, given = MtpModel.from_pretrained(model), torch.tensor([ids])
    hidden = model(given[:, :-1], output_hidden_states=True).hidden_states[-1]
    cache, places = MtpCache(config=model.config.get_mtp_config()), torch.arange(1, len(ids))[None]
    found = further.forward_layer(0, hidden, places, cache, input_ids=given[:, 1:])
    return further._project_to_logits(found)[0].log_softmax(-1)


@pytest.mark.parametrize("config", [{}, {"rope_scaling": YARN, "q_lora_rank": None}], ids=["plain", "yarn"])
def test_every_row_equals_transformers(
    config: dict[str, Any], directory_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt in pieces, then an answer token by token."""
    made = open_runner(directory_of(**config))
    runner, rows = made[0], {}
    predict = runner.model.predict

    def noting(hidden: Tensor, step: Any) -> Tensor:
        further = predict(hidden, step)
        for place, logits in zip(step.positions.tolist(), runner.model.logits(further).float(), strict=True):
            rows[place] = logits.log_softmax(-1).clone()
        return further

    monkeypatch.setattr(runner.model, "predict", noting)
    run = Run(*made, 0, tokens=24)
    run.add(0, PROMPT, SamplingParams(max_tokens=20, **GREEDY))
    ids = PROMPT + run.finish()[0].tokens
    expected = transformers_logprobs(transformers_model(directory_of(**config)), ids)
    assert sorted(rows) == [*range(len(ids) - 1)]
    assert (torch.stack([rows[place] for place in sorted(rows)]) - expected).abs().max() < 2e-4
    assert expected.exp().max(-1).values.mean() > 0.02  # of logits that are all alike it would prove nothing


def test_the_same_is_guessed_as_by_transformers(
    directory_of: Callable[..., Path], agreeing: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.candidate_generator import MTPCandidateGenerator

    ask, guessed = MTPCandidateGenerator.get_candidates, {}

    def noting(self: Any, ids: Tensor, *more: Any, **given: Any) -> Any:
        found = ask(self, ids, *more, **given)
        if found[0].shape[1] > ids.shape[1]:
            guessed[0, ids.shape[1]] = int(found[0][0, ids.shape[1]])
        return found

    monkeypatch.setattr(MTPCandidateGenerator, "get_candidates", noting)
    model = transformers_model(directory_of(0.01))
    theirs = model.generate(
        torch.tensor([PROMPT]), use_mtp=True, do_sample=False, max_new_tokens=40, eos_token_id=None
    )[0].tolist()
    said = what_is_said(agreeing[0], monkeypatch)
    run = Run(*agreeing, 1)
    run.add(0, PROMPT, SamplingParams(max_tokens=40, **GREEDY))
    assert PROMPT + run.finish()[0].tokens == theirs
    common = guessed.keys() & said.keys()
    assert len(common) > 10 and {place: said[place][0] for place in common} == {p: guessed[p] for p in common}
    right = sum(run.accepted)
    assert 0.3 * len(run.accepted) < right < len(run.accepted)


# --- whatever becomes of a request -----------------------------------------------------------------------------------


def test_the_same_is_said_after_pieces_preemption_and_a_lost_worker(
    agreeing: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(3)
    prompts = [[chance.randrange(10, 400) for _ in range(50)] for _ in range(3)]

    def say(drafts: int, lose_after: int | None = None, **options: Any) -> Said:
        with monkeypatch.context() as patch:
            said = what_is_said(agreeing[0], patch)
            run = Run(*agreeing, drafts, caching=False, **options)
            for number, prompt in enumerate(prompts):
                run.add(number, prompt, SamplingParams(temperature=0.7, seed=number, max_tokens=40, ignore_eos=True))
            run.finish(lose_after)
            return said

    plain = say(0)
    assert len(plain) >= 3 * 39
    for options in ({"tokens": 24}, {"blocks": 14, "tokens": 24}, {"lose_after": 9}):
        again = say(1, **options)
        common = plain.keys() & again.keys()
        assert len(common) > 40 and {key: plain[key] for key in common} == {key: again[key] for key in common}


def test_the_same_is_said_behind_a_prefix_that_was_computed_before(
    agreeing: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it goes on as it did then, to the bit. Where it goes on otherwise, the layer knows of one token less."""
    said = what_is_said(agreeing[0], monkeypatch)
    run = Run(*agreeing, 0, tokens=64)
    params = SamplingParams(max_tokens=12, **GREEDY)
    other = [*PROMPT[:32], *reversed(PROMPT[32:])]
    for number, prompt in enumerate((PROMPT, PROMPT, other)):
        run.add(number, prompt, params)
        run.finish()
        assert run.scheduler.stats.prefix_hits if number else True
    first = {place: value for (number, place), value in said.items() if number == 0}
    assert first == {place: value for (number, place), value in said.items() if number == 1}


# --- no bit changes --------------------------------------------------------------------------------------------------


def wanted(**options: Any) -> list[Any]:
    """Two answers to the same prompt, and one to another, at every temperature."""
    found = []
    for number, temperature in enumerate((0.0, 0.7, 0.7, 1.5)):
        params = SamplingParams(
            temperature=temperature, seed=number, max_tokens=40, ignore_eos=True, logprobs=2, **options
        )
        found.append((PROMPT[: 50 - number // 3], params, []))
    return found


def test_no_bit_changes(agreeing: Made) -> None:
    assert sum(check(agreeing, wanted(), 0)) > 30
    assert any(check(agreeing, wanted(repetition_penalty=1.2), 1, drafts=4, blocks=14, tokens=24))
    assert any(check(agreeing, wanted(), 2, caching=False, lose_after=9))


def test_forms_are_kept_to(agreeing: Made) -> None:
    for form in FORMS:
        check(agreeing, [(PROMPT, SamplingParams(temperature=1.0, seed=4, max_tokens=60, structured=form), [])] * 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"enforce_eager": True}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "fp8"}]
)
@pytest.mark.parametrize("speculation", ["mtp", "auto"])
def test_no_bit_changes_otherwise(speculation: str, options: dict[str, Any], directory_of: Callable[..., Path]) -> None:
    made = open_runner(directory_of(0.01), speculation=speculation, **options)
    assert any(check(made, wanted(), 0, rate=0.3))
    assert any(check(made, wanted(), 1, drafts=4, rate=0.3, blocks=14, tokens=24))


# --- whether it is there ---------------------------------------------------------------------------------------------


def test_it_is_loaded_where_it_may_guess(
    directory_of: Callable[..., Path], make_checkpoint: Callable[..., Path]
) -> None:
    there, lying = directory_of(), make_checkpoint("deepseek_v3", num_nextn_predict_layers=1)
    for directory, speculation, expected in (
        (there, "auto", True),
        (there, "lookup", False),
        (there, "off", False),
        (lying, "auto", False),
    ):
        runner, _ = open_runner(directory, speculation=speculation)
        assert bool(runner.model.mtp) == bool(runner._mtp) == expected
        assert len(cached_layers(runner.model)) == 3 + expected
        assert runner.info.kv_cache_bytes == runner.info.num_blocks * 16 * (3 + expected) * (32 + 8) * 4
    with pytest.raises(ConfigError, match=r"--speculation mtp needs a layer that predicts .*, which .* does not hold"):
        open_runner(lying)
    with pytest.raises(ConfigError, match="--speculation mtp needs a layer"):
        open_runner(make_checkpoint("qwen2"))


def test_a_layer_that_is_not_whole_is_refused(directory_of: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = with_further_layer(directory_of(), tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.3.hnorm.weight"], tensors["model.layers.3.shared_head.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    names = r"lacks model\.layers\.3\.hnorm\.weight, model\.layers\.3\.shared_head\.norm\.weight"
    with pytest.raises(CheckpointError, match=names):
        open_runner(directory)


# --- whether it pays -------------------------------------------------------------------------------------------------


def test_what_does_not_pay_rests_and_is_tried_again() -> None:
    gate = Gate()
    for _ in range(1000):
        gate.learn(None)
        assert gate.open
        gate.learn(1.2)
        assert gate.open
    steps = 0
    while gate.open:
        gate.learn(0.9)
        steps += 1
    assert 10 < steps < 100
    steps = 0
    while not gate.open:
        gate.learn(None)
        steps += 1
    assert steps > 1000
    for _ in range(31):
        gate.learn(0.99)
        assert gate.open
    gate.learn(0.99)
    assert not gate.open


def test_it_rests_where_it_takes_longer_than_it_gains(agreeing: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers go on without it, prompts still go through it, and later ones are guessed again."""
    runner, said = agreeing[0], what_is_said(agreeing[0], monkeypatch)
    run = Run(*agreeing, 1)
    speculation = runner._speculation
    assert speculation
    del speculation._judge  # type: ignore[method-assign]
    monkeypatch.setattr(speculation, "_gate", Gate())
    monkeypatch.setattr(speculation.costs, "rate", lambda rows, tokens, chances, beside=0.0: 1.0 - beside)
    monkeypatch.setattr(speculation.mtp_costs, "seconds", lambda rows: 0.5)
    params = SamplingParams(max_tokens=60, temperature=0.7, ignore_eos=True)

    def places(number: int) -> set[int]:
        run.add(number, [5 + number, *PROMPT], params)
        run.finish()
        return {place for identity, place in said if identity == number}

    assert runner._mtp and 10 < len(places(0)) < 50
    assert not speculation.predicting and places(1) == set()
    passed: list[int] = []
    predict = runner.model.predict

    def noting(hidden: Tensor, step: Any) -> Tensor:
        passed.append(len(hidden))
        return predict(hidden, step)

    monkeypatch.setattr(runner.model, "predict", noting)
    assert places(2) == set() and passed == [51]
    while not speculation.predicting:
        speculation._gate.learn(None)
    assert len(places(3)) > 10


# --- beside what is looked up ----------------------------------------------------------------------------------------


def test_the_likelier_guess_is_taken() -> None:
    tokens = array("i", [1, 2, 3, 4, 5, 1, 2, 3])
    follower = Follower(tokens, Lookup(tokens, (3,), array("i"), len(tokens), deque()), list(FIRST_CHANCES))
    short, longer, unsure, sure = *FIRST_CHANCES[:2], FIRST_CHANCES[4], FIRST_CHANCES[7]  # matches of 3, and of 4 to 7
    assert follower.chances(3, None) == pytest.approx([short, short * longer, short * longer**2])
    assert follower.guess(2) == [4, 5]
    assert follower.chances(3, Prediction(8, [9], [0.1])) == pytest.approx([short, short * longer, short * longer**2])
    assert follower.guess(2) == [4, 5]
    assert follower.chances(3, Prediction(8, [9], [0.99])) == [sure]
    assert follower.guess(2) == [9]
    assert follower.chances(3, Prediction(8, [4], [0.99])) == pytest.approx([sure, sure * longer, sure * longer**2])
    assert follower.guess(2) == [4, 5]
    # What was said of another place says nothing; what was said is learnt from, by either kind.
    assert follower.chances(1, Prediction(7, [9], [0.99])) == [short]
    follower.chances(1, Prediction(8, [9], [0.1]))
    tokens.append(9)
    assert follower.chances(1, Prediction(9, [7], [0.1]))[0] > unsure
    alone = Follower(tokens, None, list(FIRST_CHANCES))
    assert alone.chances(4, None) == []
    for _ in range(200):
        assert alone.chances(4, Prediction(len(tokens), [6], [0.5]))[0] <= SURE
        assert alone.guess(4) == [6]
        tokens.append(6)
    assert alone.chances(4, Prediction(len(tokens), [6], [0.5])) == [SURE]


def test_several_predicted_tokens() -> None:
    tokens = array("i", [1, 2, 3, 4, 5, 1, 2, 3])
    follower = Follower(tokens, Lookup(tokens, (3,), array("i"), len(tokens), deque()), list(FIRST_CHANCES))
    short, longer, fair, sure = *FIRST_CHANCES[:2], *FIRST_CHANCES[6:8]
    assert follower.chances(3, Prediction(8, [9, 8], [0.99, 0.7])) == pytest.approx([sure, sure * fair])
    assert follower.guess(2) == [9, 8] and follower.guess(1) == [9]
    # Both say the same next; behind it the likelier one goes on.
    assert follower.chances(3, Prediction(8, [4, 8], [0.1, 0.7])) == pytest.approx([short, short * fair])
    assert follower.guess(2) == [4, 8]
    assert follower.chances(2, Prediction(8, [4, 8], [0.99, 0.1])) == pytest.approx([sure, sure * longer])
    assert follower.guess(2) == [4, 5]
    # It is learnt from as far as it was right.
    follower.chances(3, Prediction(8, [9, 8, 7], [0.99, 0.7, 0.7]))
    before = follower.chance_of(0.99), follower.chance_of(0.7), follower.predicted_chance
    tokens.extend([9, 6])
    assert follower.match_chance() == 0
    after = follower.chance_of(0.99), follower.chance_of(0.7), follower.predicted_chance
    assert after[0] > before[0] and after[1] < before[1] and after[2] < before[2]
