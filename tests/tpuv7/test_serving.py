"""The shipped model over the real processes, on the emulated chip and on the cmodel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sophserve import LLM, SamplingParams

PROMPTS = [
    "What is 7 plus 5?",
    "What is the capital of France?",
    "Hello!",
    "What is 9 times 6?",
    "What is sophserve?",
    "Count from 1 to 5.",
    "What color is the sky?",
    "What is 20 minus 8?",
    "Write a short poem about the sea.",
    "What is the capital of Japan?",
]
# Logprobs of bfloat16, summed in another order, differ by less. Where two tokens are closer, either is right.
MARGIN = 0.15
OPTIONS = ("--kv-cache-memory", "64MiB", "--step-timeout", "120")
FAST = {"CMODEL_FAST_EXEC": "1"}


class Token(NamedTuple):
    """A token of an answer, its logprob, and by how much it is above the next best."""

    text: str
    logprob: float
    margin: float


def ask(server: Any, prompt: str, **options: Any) -> list[Token]:
    answer = server.client().chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=24,
        logprobs=True,
        top_logprobs=2,
        **options,
    )
    return [
        Token(each.token, each.logprob, each.top_logprobs[0].logprob - each.top_logprobs[1].logprob)
        for each in answer.choices[0].logprobs.content
    ]


def assert_same(found: list[Token], expected: list[Token]) -> None:
    """The same text, up to where the model cannot decide."""
    for mine, its in zip(found, expected, strict=False):
        assert abs(mine.logprob - its.logprob) < MARGIN or mine.text != its.text
        if mine.text != its.text:
            assert its.margin < MARGIN, (found, expected)
            return
    assert len(found) == len(expected), (found, expected)


@pytest.fixture(scope="module")
def servers(emulator: Path, server_class: type[Any]) -> Iterator[Callable[..., Any]]:
    """`servers(*options)`: a server that is ready, started once."""
    running: dict[tuple[str, ...], Any] = {}

    def get(*options: str) -> Any:
        if options not in running:
            running[options] = server_class(*OPTIONS, *options, environment=FAST if "tpuv7" in options else {})
            running[options].wait_until_ready()
        return running[options]

    yield get
    assert [server.stop() for server in running.values()] == [0] * len(running)


@pytest.fixture(scope="module")
def chip(servers: Callable[..., Any]) -> Any:
    return servers("--model", "demo", "--device", "tpuv7")


@pytest.fixture(scope="module")
def cmodel(servers: Callable[..., Any]) -> Any:
    return servers("--model", "demo", "--device", "cmodel")


def test_two_at_once_answer_as_on_the_cmodel(chip: Any, cmodel: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda prompt: ask(chip, prompt), PROMPTS[:2]))
    for prompt, found in zip(PROMPTS, answers, strict=False):
        assert_same(found, ask(cmodel, prompt))


def test_a_stream_goes_on_after_the_worker_is_killed(chip: Any) -> None:
    client = chip.client()
    question: dict[str, Any] = {"model": "tiny", "prompt": "What is", "temperature": 0, "max_tokens": 12}
    undisturbed = client.completions.create(**question).choices[0].text
    (worker,) = chip.workers
    found = ""
    for number, chunk in enumerate(client.completions.create(**question, stream=True)):
        found += chunk.choices[0].text
        if number == 2:
            worker.kill()
    assert found == undisturbed
    assert "was killed by signal 9" in "".join(chip.log) and chip.workers != [worker]


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_are_the_cmodel_s(prompt: str, chip: Any, cmodel: Any) -> None:
    assert_same(ask(chip, prompt), ask(cmodel, prompt))


@pytest.mark.slow
def test_a_prefix_hit_and_a_chunked_prompt_change_nothing(servers: Callable[..., Any], cmodel: Any) -> None:
    chunked = servers("--model", "demo", "--device", "tpuv7", "--max-num-batched-tokens", "32")
    prompt = "Here are some numbers: " + ", ".join(map(str, range(40))) + ". What is 3 plus 4?"
    first, again = (ask(chunked, prompt) for _ in range(2))
    usage = [
        chunked.client().completions.create(model="tiny", prompt=prompt * 2, max_tokens=1).usage for _ in range(2)
    ][1]
    assert usage.prompt_tokens_details.cached_tokens >= 64
    assert_same(first, ask(cmodel, prompt))
    assert_same(again, first)


@pytest.mark.slow
def test_a_profile_has_every_command(emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMODEL_FAST_EXEC", "1")
    with LLM("demo", device="tpuv7", kv_cache_memory="64MiB") as llm:
        [folder] = llm.start_profile(directory=tmp_path)
        llm.generate("Hello!", SamplingParams(max_tokens=3), use_tqdm=False)
        llm.stop_profile()
    records = "".join(path.read_text() for path in folder.iterdir() if path.suffix == ".jsonl")
    for operator in ("embedding", "rms_norm", "linear 4096x256", "cache_write", "paged_attention"):
        assert operator in records


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--tensor-parallel-size", "2"), ("--quantization", "gptq")])
def test_parts_and_quantized_weights_answer_as_on_the_cmodel(
    options: tuple[str, ...], servers: Callable[..., Any]
) -> None:
    on_chip = servers("--model", "demo", "--device", "tpuv7", *options)
    expected = servers("--model", "demo", "--device", "cmodel", *options)
    for prompt in PROMPTS[:4]:
        assert_same(ask(on_chip, prompt), ask(expected, prompt))


@pytest.mark.slow
def test_the_quantized_demo_answers_as_on_the_cmodel(servers: Callable[..., Any]) -> None:
    on_chip, expected = (servers("--model", "demo-gptq", "--device", device) for device in ("tpuv7", "cmodel"))
    for prompt in PROMPTS[:4]:
        assert_same(ask(on_chip, prompt), ask(expected, prompt))
