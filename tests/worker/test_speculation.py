"""Speculation changes no bit: the tokens, logprobs, texts and ends of answers are those that come without it.

The engine's part is done here, in this process, with two plans under way as ever. How many guesses are computed is
drawn at random, as times would have it; what is guessed is the answer as it will be, with mistakes.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sophserve.config import EngineConfig
from sophserve.engine.block_pool import root_key
from sophserve.engine.recovery import Recovery
from sophserve.engine.request import Request
from sophserve.engine.scheduler import Limits, Scheduler
from sophserve.engine.sequence import Sequence
from sophserve.link.messages import LoadModel, StepPlan, StepResult
from sophserve.sampling import SamplingParams, StructuredOutput, Thought
from sophserve.text.tokenizer import Tokenizer
from sophserve.worker.batch import RequestState
from sophserve.worker.model_runner import ModelRunner

END = 2
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["xy", "z"]}},
    "required": ["a", "b"],
}
FORMS = [
    StructuredOutput("json_schema", json.dumps(SCHEMA)),
    StructuredOutput("regex", "[a-f ]{12,40}"),
    StructuredOutput("choice", '["a quick fox", "the lazy dog and the fox"]'),
]


@dataclass
class Answer:
    """What a reader gets, and what it took."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[list[tuple[int, float, int]]] = field(default_factory=list)
    text: str = ""
    reasoning_tokens: int = 0
    end: tuple[Any, ...] = ()


class Run:
    """The engine's part. drafts: at most so many are guessed, of which `random` says how many are computed."""

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: Tokenizer,
        drafts: int,
        chance: random.Random | None = None,
        blocks: int = 200,
        tokens: int = 64,
        caching: bool = True,
    ) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.chance = chance
        self.scheduler = Scheduler(Limits(8, tokens, 16, caching, drafts=drafts), blocks)
        self.recovery = Recovery(self.scheduler)
        self.sequences: dict[int, Sequence] = {}
        self.answers: dict[int, Answer] = {}
        self.accepted: list[int] = []
        self._results: deque[StepResult] = deque()
        assert runner._speculation
        runner._speculation._can_be_worth = lambda *_: True  # type: ignore[method-assign]
        runner._speculation._places = self._places  # type: ignore[method-assign]
        runner._speculation._judge = lambda *_, **__: 0.0  # type: ignore[method-assign]
        runner._speculation.costs.worth = self._worth  # type: ignore[method-assign]

    def _places(self, states: Collection[RequestState]) -> Iterator[int]:
        assert self.runner._speculation
        self.runner._speculation._following = True
        return iter(range(len(states)))

    def _worth(self, rows: int, tokens: float, chances: Any, beside: float) -> int:
        return len(chances) if self.chance is None else self.chance.randint(0, len(chances))

    def add(self, identity: int, prompt: list[int], params: SamplingParams, **more: Any) -> None:
        ends = params.stop_token_ids + ([] if params.ignore_eos and not params.structured else [END])
        most = params.max_tokens or 60
        request = Request(identity, prompt, params, params.seed or 7, most, ends, root_key=root_key(""), **more)
        self.sequences[identity] = Sequence(request, self.tokenizer)
        self.answers[identity] = Answer()
        self.scheduler.add(request)

    def lose_worker(self) -> None:
        self._results.clear()
        self.runner._batches.states.clear()
        self.recovery.restart()

    def finish(self, lose_after: int | None = None) -> dict[int, Answer]:
        steps = 0
        while self.scheduler.running or self.scheduler.waiting:
            while len(self._results) < 2 and (plan := self.recovery.schedule()):
                self._results.append(self.runner.execute(plan))
            self._take(self._results.popleft())
            steps += 1
            if steps == lose_after:
                self.lose_worker()
            assert steps < 5000
        assert self.scheduler.pool.idle
        # What is still under way has ended; the worker forgets it.
        self.runner.execute(StepPlan(0, list(self.sequences), [], []))
        return self.answers

    def _take(self, result: StepResult) -> None:
        """As Engine._on_result."""
        self.recovery.update({sampled.id: sampled.tokens for sampled in result.sampled})
        for sampled in result.sampled:
            sequence = self.sequences[sampled.id]
            if sequence.finished:
                continue
            if sampled.error:
                self.answers[sampled.id].end = ("error", sampled.error)
                sequence.end("error")
            elif sampled.tokens:
                self.accepted.append(len(sampled.tokens) - 1)
                sequence.add_tokens(sampled)
            if sequence.finished:
                self.scheduler.finish(sequence.request)
                self._read(sampled.id, sequence)

    def _read(self, identity: int, sequence: Sequence) -> None:
        delta, answer = sequence.stream._delta, self.answers[identity]
        assert delta is not None
        if not answer.end:
            assert delta.token_ids == sequence.request.output
            answer.end = (delta.finish_reason, delta.stop_reason)
        answer.tokens, answer.text, answer.reasoning_tokens = delta.token_ids, delta.text, delta.reasoning_tokens
        answer.logprobs = [[(e.token_id, e.logprob, e.rank) for e in each] for each in delta.logprobs or []]
        assert delta.logprobs is None or len(answer.logprobs) == len(answer.tokens)


KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("qwen2", {}, {}),
    "qwen2, eager": ("qwen2", {}, {"enforce_eager": True}),
    "qwen2, bfloat16": ("qwen2", {}, {"dtype": "bfloat16"}),
    "qwen3_moe": ("qwen3_moe", {}, {}),
    "deepseek_v3": ("deepseek_v3", {}, {"dtype": "bfloat16"}),
    "qwen2, int4": ("qwen2", {"hidden_size": 128}, {"dtype": "bfloat16", "quantization": "gptq"}),
    "qwen2_5_vl": ("qwen2_5_vl", {}, {}),
}


@pytest.fixture(scope="module")
def runner_of(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    made: dict[str, tuple[ModelRunner, Tokenizer]] = {}

    def make(kind: str) -> tuple[ModelRunner, Tokenizer]:
        if kind not in made:
            architecture, shape, options = KINDS[kind]
            directory = make_checkpoint(architecture, **shape)
            cache = str(tmp_path_factory.mktemp("packed"))
            config = EngineConfig(model=str(directory), kv_cache_memory="16MiB", reorder_cache_dir=cache, **options)
            runner = ModelRunner(LoadModel(str(directory), config, 0, 1, 20), [-1], lambda: None, lambda _: None)
            made[kind] = runner, Tokenizer.from_directory(directory)
        return made[kind]

    return make


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


PARAMS = st.fixed_dictionaries(
    {"temperature": one_of(0.0, 0.7, 1.5), "seed": st.integers(0, 9), "max_tokens": st.integers(1, 40)},
    optional={
        "top_k": one_of(1, 5),
        "top_p": one_of(0.5, 0.9),
        "min_p": one_of(0.05),
        "repetition_penalty": one_of(0.8, 1.4),
        "presence_penalty": one_of(-1.0, 1.5),
        "frequency_penalty": one_of(0.6, -0.4),
        "logit_bias": one_of({40: 5.0, 50: 4.0}, {END: 3.0}),
        "min_tokens": one_of(1, 5),
        "stop": one_of(["e"], ["th", "q"], ["a", "zz"]),
        "include_stop_str_in_output": st.booleans(),
        "stop_token_ids": one_of([40, 60], list(range(100, 140))),
        "ignore_eos": st.booleans(),
        "allowed_token_ids": one_of(list(range(2, 200))),
        "logprobs": one_of(0, 3),
        "structured": one_of(*FORMS),
        "thought": one_of(Thought("<", ">"), Thought("<t>", "e", inside=True)),
    },
)
WORDS = one_of([], [[40], [50, 60], [60, 60, 61]], [[index, index] for index in range(3, 300)])
PROMPTS = st.lists(st.integers(3, 12), min_size=1, max_size=60)


def with_mistakes(tokens: list[int], rate: float, chance: random.Random) -> list[int]:
    """Tokens replaced, left out and put in between."""
    found: list[int] = []
    for token in tokens:
        found += [token] if chance.random() >= rate else chance.choice([[], [chance.randrange(3, 500)], [token, 7]])
    return found


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[list[int], SamplingParams, list[list[int]]]]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        options = draw(PARAMS)
        options["min_tokens"] = min(options.get("min_tokens", 0), options["max_tokens"])
        found.append((draw(PROMPTS), SamplingParams(**options), draw(WORDS)))
    return found


def check(
    made: tuple[ModelRunner, Tokenizer],
    wanted: list[tuple[list[int], SamplingParams, list[list[int]]]],
    seed: int,
    drafts: int = 15,
    rate: float = 0.0,
    **options: Any,
) -> list[int]:
    """Serve requests with and without guesses. Returns how many guesses came true at each step of a sequence."""
    lose_after = options.pop("lose_after", None)
    plain = Run(*made, 0)
    for number, (prompt, params, words) in enumerate(wanted):
        plain.add(number, prompt, params, bad_word_ids=words)
        # What would follow if it did not end.
        longer = SamplingParams(**{name: getattr(params, name) for name in params.__struct_fields__})
        longer.stop, longer.max_tokens = [], 60
        plain.add(100 + number, prompt, longer, bad_word_ids=words)
    answers = plain.finish()
    assert not any(plain.accepted)
    chance = random.Random(seed)
    run = Run(*made, drafts, chance if seed else None, **options)
    for number, (prompt, params, words) in enumerate(wanted):
        prediction = with_mistakes(answers[100 + number].tokens, rate, chance)
        run.add(number, prompt, params, bad_word_ids=words, prediction=prediction)
    for number, answer in run.finish(lose_after).items():
        assert answer == answers[number]
    return run.accepted


DRAWN: dict[str, Any] = {
    "kind": one_of("qwen2", "qwen2, eager"),
    "wanted": requests(),
    "seed": st.integers(0, 1000),
    "drafts": one_of(1, 3, 15),
    "rate": one_of(0.0, 0.1, 0.4),
    "tokens": one_of(24, 64),
    "blocks": one_of(14, 200),
    "caching": st.booleans(),
    "lose_after": one_of(None, 4, 9),
}


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(**DRAWN)
def test_no_bit_changes(runner_of: Callable[[str], Any], kind: str, **given: Any) -> None:
    check(runner_of(kind), **given)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(**DRAWN)
def test_no_bit_changes_in_many_draws(runner_of: Callable[[str], Any], kind: str, **given: Any) -> None:
    check(runner_of(kind), **given)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("qwen2", "qwen2, eager")])
def test_no_bit_changes_for_other_models(runner_of: Callable[[str], Any], kind: str) -> None:
    chance = random.Random(5)
    wanted = []
    for temperature in (0.0, 0.7, 1.5):
        options = {"repetition_penalty": 1.2} if temperature else {}
        params = SamplingParams(temperature=temperature, seed=3, max_tokens=40, ignore_eos=True, logprobs=2, **options)
        wanted.append(([chance.randrange(10, 400) for _ in range(50)], params, []))
    assert max(check(runner_of(kind), wanted, 0)) == 15
    assert any(check(runner_of(kind), wanted, 1, drafts=4, rate=0.2, blocks=14, tokens=24))


def test_what_ends_an_answer_within_a_run_of_guesses(runner_of: Callable[[str], Any]) -> None:
    """Everything is guessed right, 15 tokens a step, and the answer still ends where it must."""
    made = runner_of("qwen2")
    base = {"temperature": 0.7, "seed": 1, "logprobs": 1}
    wanted = [
        ([5, 6, 7], SamplingParams(**base, max_tokens=count, ignore_eos=True), []) for count in (1, 2, 15, 16, 17, 31)
    ]
    assert max(check(made, wanted, 0)) == 15
    plain = Run(*made, 0)
    plain.add(0, [5, 6, 7], SamplingParams(**base, max_tokens=60, ignore_eos=True))
    answer = plain.finish()[0]
    late = [token for token in answer.tokens[20:] if token not in answer.tokens[:20]]
    text = answer.text
    stop = next(text[end - 2 : end] for end in range(40, len(text)) if text.find(text[end - 2 : end]) == end - 2)
    for ends in ({"stop": [stop]}, {"stop_token_ids": late}, {"stop": [stop], "include_stop_str_in_output": True}):
        params = SamplingParams(**base, max_tokens=60, ignore_eos=True, **ends)
        assert sum(check(made, [([5, 6, 7], params, [])], 0)) > 10


def test_forms_are_kept_to_and_guessed(runner_of: Callable[[str], Any]) -> None:
    made = runner_of("qwen2")
    for form in FORMS:
        for thought in (None, Thought("<", ">"), Thought("<t>", "e", inside=True)):
            params = SamplingParams(
                temperature=1.0, seed=4, max_tokens=60, structured=form, thought=thought, logprobs=0
            )
            assert max(check(made, [([5, 6, 7], params, [])] * 2, 0)) > 2
            check(made, [([5, 6, 7], params, [[70], [80, 81]])], 3, rate=0.2)


def test_what_was_answered_before_is_guessed_for_the_same_owner(runner_of: Callable[[str], Any]) -> None:
    made = runner_of("qwen2")
    params = SamplingParams(temperature=0.7, seed=5, max_tokens=50, ignore_eos=True, logprobs=1)
    prompt = list(range(20, 60))
    gained, told = {}, []
    for number, owner in enumerate((b"a", b"b", b"a", b"")):
        run = Run(*made, 15)
        if not number:
            run.runner._speculation._history._owners.clear()  # type: ignore[union-attr]
        run.add(number, prompt, params, owner=owner)
        answers = run.finish()
        gained[number] = sum(run.accepted)
        told.append(answers[number].tokens)
    assert told == [told[0]] * 4
    assert gained[2] > 30 and gained[1] == gained[3] == gained[0]
