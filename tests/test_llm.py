"""The embedded API on tiny checkpoints."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace

from sophserve import LLM, AsyncLLM, CompletionOutput, SamplingParams, StructuredOutput, Thought
from sophserve.engine.output import OutputDelta
from sophserve.errors import CheckpointError, ConfigError, RequestError, SophserveError
from sophserve.llm import _Answers

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)
PROMPTS = ["The quick brown fox", "人工智能", "Numbers: 1, 2, 3", "def add(left, right):", "x" * 60]


@pytest.fixture(scope="module")
def llm(make_checkpoint: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(str(make_checkpoint("qwen2"))) as llm:
        yield llm


def test_outputs_have_vllm_s_shape(llm: LLM) -> None:
    results = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [result.prompt for result in results] == PROMPTS
    for result in results:
        output = result.outputs[0]
        assert result.finished and output.finish_reason == "length" and output.stop_reason is None
        assert result.prompt_token_ids == llm.tokenizer.encode(result.prompt or "")
        assert len(output.token_ids) == len(output.logprobs or []) == 24
        assert output.text == llm.tokenizer.decode(output.token_ids)
        for token, entries in zip(output.token_ids, output.logprobs or [], strict=True):
            assert 2 <= len(entries) <= 3 and entries[token].rank == 1
            assert entries[token].logprob == max(entry.logprob for entry in entries.values())
            assert entries[token].decoded_token == llm.tokenizer.token_text(token)
        assert output.cumulative_logprob == pytest.approx(
            sum(entries[token].logprob for token, entries in zip(output.token_ids, output.logprobs or [], strict=True))
        )


def test_together_as_alone(llm: LLM) -> None:
    together = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs == result.outputs


def test_seed_decides_whatever_else_runs(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=20, ignore_eos=True)
    other = SamplingParams(temperature=1.0, max_tokens=9)
    alone = llm.generate("The quick", params, use_tqdm=False)[0].outputs[0].token_ids
    busy = llm.generate(["The quick", *PROMPTS], [params, *[other] * len(PROMPTS)], use_tqdm=False)
    assert busy[0].outputs[0].token_ids == alone
    unseeded = llm.generate(["The quick"] * 2, SamplingParams(max_tokens=20, ignore_eos=True), use_tqdm=False)
    assert unseeded[0].outputs[0].token_ids != unseeded[1].outputs[0].token_ids


def test_several_answers(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=1, max_tokens=10, ignore_eos=True)
    outputs = llm.generate("The sea", params, use_tqdm=False)[0].outputs
    assert [output.index for output in outputs] == [0, 1, 2, 3]
    assert len({tuple(output.token_ids) for output in outputs}) == 4
    alone = llm.generate("The sea", SamplingParams(seed=1, max_tokens=10, ignore_eos=True), use_tqdm=False)
    assert alone[0].outputs[0].token_ids == outputs[0].token_ids


def test_several_answers_compute_their_prompt_once(llm: LLM) -> None:
    params = SamplingParams(n=4, max_tokens=2, ignore_eos=True)
    before = llm._llm.engine.metrics.counts.cached_tokens
    llm.generate([[7, 8, 9] * 20], params, use_tqdm=False)
    # Of 60 tokens three answers find the whole blocks of the first one.
    assert llm._llm.engine.metrics.counts.cached_tokens - before == 3 * 48


def test_prompt_logprobs_do_not_depend_on_the_cache(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=3)
    first, second = (llm.generate("x y z " * 20, params, use_tqdm=False)[0] for _ in range(2))
    assert first.prompt_logprobs is not None and first.prompt_logprobs[0] is None
    assert len(first.prompt_logprobs) == len(first.prompt_token_ids)
    for token, entries in zip(first.prompt_token_ids[1:], first.prompt_logprobs[1:], strict=True):
        assert entries is not None and token in entries and len(entries) in (3, 4)
    assert first.prompt_logprobs == second.prompt_logprobs


def test_stop_text_and_stop_token(llm: LLM) -> None:
    whole = llm.generate("The quick", GREEDY, use_tqdm=False)[0].outputs[0]
    stop = whole.text[5:7]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=stop)  # type: ignore[arg-type]
    stopped = llm.generate("The quick", params, use_tqdm=False)[0].outputs[0]
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    token = whole.token_ids[3]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[token])
    stopped = llm.generate("The quick", params, use_tqdm=False)[0].outputs[0]
    first = whole.token_ids.index(token)
    assert stopped.token_ids == whole.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", token)
    assert stopped.text == llm.tokenizer.decode(whole.token_ids[:first])
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[token], min_tokens=first + 3)
    longer = llm.generate("The quick", params, use_tqdm=False)[0].outputs[0]
    assert token not in longer.token_ids[: first + 3]
    assert len(longer.token_ids) >= first + 3


def test_conversations_are_what_the_server_makes_of_them(llm: LLM) -> None:
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "q"}
    called = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    older = [system | {"role": "developer"}, user, called, {"role": "function", "name": "f", "content": parts}]
    newer = [system, user, called, {"role": "tool", "tool_call_id": "1", "content": "ab"}]
    one, other = (llm.chat(said, GREEDY, use_tqdm=False)[0] for said in (older, newer))
    assert one.prompt == other.prompt and one.prompt is not None and "ab" in one.prompt
    with pytest.raises(RequestError, match=r"messages\[0\]\.role: is missing"):
        llm.chat([{"content": "q"}], GREEDY, use_tqdm=False)


def test_a_top_p_of_zero_is_greedy(llm: LLM) -> None:
    greedy = llm.generate("The quick", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    params = replace(GREEDY, temperature=1.5, top_p=0.0)
    assert llm.generate("The quick", params, use_tqdm=False)[0].outputs[0].token_ids == greedy


def test_logit_bias_and_penalties(llm: LLM) -> None:
    biased = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logit_bias={77: 100.0})
    assert llm.generate("The", biased, use_tqdm=False)[0].outputs[0].token_ids == [77] * 5
    penalized = SamplingParams(
        temperature=0, max_tokens=5, ignore_eos=True, logit_bias={77: 100.0, 78: 99.0}, presence_penalty=2.0
    )
    ids = llm.generate("The", penalized, use_tqdm=False)[0].outputs[0].token_ids
    assert ids[:2] == [77, 78]
    assert set(ids) == {77, 78}


def test_allowed_tokens_and_bad_words(llm: LLM) -> None:
    allowed = [40, 41, 300, 511]
    params = SamplingParams(seed=1, max_tokens=30, ignore_eos=True, allowed_token_ids=allowed)
    ids = llm.generate("The", params, use_tqdm=False)[0].outputs[0].token_ids
    assert set(ids) <= set(allowed) and len(set(ids)) > 1
    # Greedy answers repeat what the bias forces; the bad word is two tokens, of which the second is then avoided.
    words = llm.tokenizer.encode("ab", add_special_tokens=False)
    first, second = words
    bias = {first: 50.0, second: 49.9}
    forced = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logit_bias=bias, frequency_penalty=0.5)
    before = llm.generate("The", forced, use_tqdm=False)[0].outputs[0].text
    assert "ab" in before
    forced.bad_words = ["ab"]
    after = llm.generate("The", forced, use_tqdm=False)[0].outputs[0].text
    assert "ab" not in after and "a" in after


def test_chat_uses_the_template_and_the_checkpoint_s_sampling(llm: LLM) -> None:
    assert llm.default_sampling_params() == SamplingParams(temperature=0.7, top_p=0.8)
    result = llm.chat([{"role": "user", "content": "Hi"}], GREEDY, use_tqdm=False)[0]
    assert result.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert llm.generate(result.prompt_token_ids, GREEDY, use_tqdm=False)[0].outputs == result.outputs


def test_conversation_reuses_its_blocks(llm: LLM) -> None:
    first = llm.generate("A conversation that goes on. " * 4, GREEDY, use_tqdm=False)[0]
    tokens = first.prompt_token_ids + first.outputs[0].token_ids
    second = llm.generate(tokens, GREEDY, use_tqdm=False)[0]
    assert second.num_cached_tokens >= len(tokens) - 17


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([1] * 256, {}, "maximum context length is 256 tokens. However, the prompt has 256 tokens, and the answer"),
        ([1] * 200, {"max_tokens": 57}, "lower max_tokens to at most 56"),
        ([512], {}, "prompt has the token id 512; ids go from 0 to 511"),
        ([1], {"allowed_token_ids": [600]}, "allowed_token_ids has the token id 600"),
        ([1], {"stop_token_ids": [-1]}, "stop_token_ids has the token id -1"),
    ],
)
def test_impossible_requests(llm: LLM, prompt: list[int], params: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate([prompt], SamplingParams(**params), use_tqdm=False)
    assert llm.generate([1, 2], GREEDY, use_tqdm=False)[0].finished


def test_longest_context(llm: LLM) -> None:
    result = llm.generate([3] * 255, SamplingParams(temperature=0, max_tokens=None), use_tqdm=False)[0]
    assert len(result.outputs[0].token_ids) == 1 and result.outputs[0].finish_reason in ("length", "stop")


def test_sampling_params_are_checked() -> None:
    with pytest.raises(ValueError, match="temperature must be between 0 and 100, got -1"):
        SamplingParams(temperature=-1)
    with pytest.raises(ValueError, match=r"min_tokens must be at most max_tokens \(16\), got 20"):
        SamplingParams(min_tokens=20)
    with pytest.raises(ValueError, match="closing must be a text of at least one character"):
        Thought("<think>", "")


def test_wrong_options(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(CheckpointError, match="there is no directory /nowhere"):
        LLM("/nowhere")
    with pytest.raises(ConfigError, match="max_num_sequences"):
        LLM(str(make_checkpoint("qwen2")), max_num_sequences=3)
    with pytest.raises(ConfigError, match="--max-model-len is 1000, but the model's context is 256"):
        LLM(str(make_checkpoint("qwen2")), max_model_len=1000)
    with pytest.raises(ConfigError, match="lower --max-model-len to at most 48 or raise --kv-cache-memory"):
        LLM(str(make_checkpoint("qwen2")), kv_cache_memory="40000")
    assert psutil.Process().children() == before


def test_close_leaves_nothing_behind(make_checkpoint: Callable[..., Path]) -> None:
    before = psutil.Process().children()
    llm = LLM(str(make_checkpoint("qwen2")))
    files = psutil.Process().num_fds()
    llm.close()
    llm.close()
    assert psutil.Process().children() == before
    assert psutil.Process().num_fds() < files
    with pytest.raises(SophserveError, match="closed"):
        llm.generate("x")


async def test_async_iterator_grows_and_aborts(make_checkpoint: Callable[..., Path]) -> None:
    async with AsyncLLM(str(make_checkpoint("qwen2"))) as llm:
        texts = []
        async for output in llm.generate("The quick", GREEDY):
            texts.append(output.outputs[0].text)
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        long = SamplingParams(max_tokens=200, ignore_eos=True)
        async with aclosing(llm.generate("The quick", long)) as outputs:
            await anext(outputs)
            assert len(llm.engine.sequences) == 1
        assert llm.engine.sequences == []
        task = asyncio.create_task(anext(llm.generate("y" * 30, long)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert llm.engine.sequences == []


OPTIONS: dict[str, dict[str, Any]] = {
    "chunks of 16, two at a time": {"max_num_batched_tokens": 16, "max_num_seqs": 2},
    "chunks of 100, no prefix caching": {"max_num_batched_tokens": 100, "enable_prefix_caching": False},
    "whole prompts, small blocks": {"enable_chunked_prefill": False, "block_size": 4},
    "one step at a time": {},
    "little KV memory, cached": {"kv_cache_memory": "100KiB", "speculation": "off"},
    "little KV memory, guessing": {"kv_cache_memory": "100KiB"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "chunks of 16": {"max_num_batched_tokens": 16},
    "chunks of 100": {"max_num_batched_tokens": 100},
    "no prefix caching": {"enable_prefix_caching": False},
    "two at a time": {"max_num_seqs": 2},
    "little KV memory": {"kv_cache_memory": "100KiB", "enable_prefix_caching": False, "speculation": "off"},
}
# Guesses shorten answers by as much as the machine's speed makes them pay, and with them the time that memory is short.
LEAST_PREEMPTIONS = {"little KV memory": 3, "little KV memory, cached": 3, "little KV memory, guessing": 1}


def outputs_of(directory: Path, **options: Any) -> tuple[list[list[CompletionOutput]], int]:
    """The answers, and how often one was preempted."""
    prompts = PROMPTS + [prompt * 3 for prompt in PROMPTS]
    params = [GREEDY] * len(PROMPTS) + [
        SamplingParams(n=3, seed=number, max_tokens=30, ignore_eos=True, logprobs=1) for number in range(len(PROMPTS))
    ]
    with LLM(str(directory), **options) as llm:
        outputs = [result.outputs for result in llm.generate(prompts, params, use_tqdm=False)]
        return outputs, llm._llm.engine._scheduler.stats.preemptions


@pytest.mark.parametrize(
    ("dtype", "cases"),
    [
        ("bfloat16", OPTIONS),
        pytest.param("bfloat16", OTHERS, marks=pytest.mark.slow),
        pytest.param("float32", OPTIONS | OTHERS, marks=pytest.mark.slow),
    ],
    ids=["bfloat16", "bfloat16, others", "float32"],
)
def test_options_do_not_change_answers(
    dtype: str,
    cases: dict[str, dict[str, Any]],
    make_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = make_checkpoint("qwen2", dtype=dtype)
    expected, _ = outputs_of(directory)
    for case, options in cases.items():
        with monkeypatch.context() as patched:
            if case == "one step at a time":
                patched.setattr("sophserve.engine.engine.PLANS_IN_FLIGHT", 1)
            outputs, preemptions = outputs_of(directory, **options)
        assert outputs == expected, case
        least = LEAST_PREEMPTIONS.get(case)
        assert preemptions == 0 if least is None else preemptions >= least, case


def structured(kind: Any, value: str = "", **more: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": None, "structured": StructuredOutput(kind, value), **more})


def test_structured_output(llm: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8, "format": "password"},  # which nothing is known of
            "age": {"type": "integer", "maximum": 999},
        },
        "required": ["name", "age"],
    }
    params = [structured("json_schema", json.dumps(schema), n=3, seed=seed) for seed in range(4)]
    results = llm.generate([PROMPTS[0]] * 4, params, use_tqdm=False)
    for result in results:
        for output in result.outputs:
            assert output.finish_reason == "stop"
            assert set(json.loads(output.text)) == {"name", "age"}
    assert len({output.text for result in results for output in result.outputs}) > 6
    again = llm.generate(PROMPTS[0], params[2], use_tqdm=False)[0]
    assert [output.token_ids for output in again.outputs] == [output.token_ids for output in results[2].outputs]
    with pytest.raises(RequestError, match="no value fits it"):
        llm.generate("a", structured("json_schema", '{"not": {}}'), use_tqdm=False)


def test_a_form_and_what_else_a_request_rules_out(llm: LLM) -> None:
    """It is kept to, or an error; what only changes probabilities, or where an answer ends, gives way."""

    def answer(**more: Any) -> CompletionOutput:
        [output] = llm.generate("a", structured("choice", '["ab", "abcabc"]', **more), use_tqdm=False)[0].outputs
        assert output.finish_reason == "stop", more
        return output

    [letter] = llm.tokenizer.encode("a")
    biased = {letter: -100.0, 2: -100.0, 0: -100.0}
    for more in (
        {"ignore_eos": True},
        {"logit_bias": biased, "temperature": 0},
        {"logit_bias": biased, "top_p": 0.01, "min_p": 1, "repetition_penalty": 100, "presence_penalty": 2},
        {"top_k": 1, "temperature": 100, "skip_special_tokens": False},
        {"stop_token_ids": [letter]},
    ):
        output = answer(**more)
        assert output.text in ("ab", "abcabc", ""), more
        assert output.text or "stop_token_ids" in more
    excluding: list[dict[str, Any]] = [
        {"min_tokens": 100},
        {"bad_words": ["a", "ab", "abcabc", "b", "c"]},
        {"allowed_token_ids": [300]},
        {"allowed_token_ids": [letter], "bad_words": ["a"]},
    ]
    for more in excluding:
        names = " and ".join(sorted(more))
        with pytest.raises(RequestError, match=rf"\(choice\) and {names} exclude each other"):
            answer(**more)
    # As far as the grammar leaves a choice, the others count.
    assert {answer(min_tokens=4, seed=seed).text for seed in range(10)} == {"abcabc"}
    assert {answer(ignore_eos=True, seed=seed).text for seed in range(10)} == {"abcabc"}
    assert {answer(bad_words=["c"], seed=seed).text for seed in range(10)} == {"ab"}


def test_a_grammar_that_grows_too_complex_on_the_way_fails_its_request_alone(llm: LLM) -> None:
    params = structured("regex", "[xy]{40}((a{1000}){1000}){1000}")
    other = structured("regex", "[ab]{100}")
    with pytest.raises(RequestError, match="cannot be followed any further"):
        llm.generate("a", params, use_tqdm=False)
    assert re.fullmatch("[ab]{100}", llm.generate("a", other, use_tqdm=False)[0].outputs[0].text)


@pytest.mark.parametrize("inside", [True, False])
def test_structured_behind_a_thought(llm: LLM, inside: bool) -> None:
    [space], [bracket] = llm.tokenizer.encode(" "), llm.tokenizer.encode("[")
    params = [
        SamplingParams(
            max_tokens=None,
            seed=seed,
            structured=StructuredOutput("choice", '["fox"]'),
            thought=Thought("[", " ", inside=inside),
            logit_bias={space: 4, bracket: 2},
        )
        for seed in range(20)
    ]
    outputs = [result.outputs[0] for result in llm.generate(["a"] * 20, params, use_tqdm=False)]
    for output in outputs:
        _, found, rest = output.text.partition(" ")
        if not inside and not output.text.startswith("["):
            assert (output.text, output.finish_reason) == ("fox", "stop")
        else:
            assert output.finish_reason == "length" or (found and rest.strip(" \n") == "fox")
    assert "stop" in {output.finish_reason for output in outputs}
    assert inside or len({output.text.startswith("[") for output in outputs}) == 2


def test_structured_beside_others_changes_nothing(llm: LLM) -> None:
    alone = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    params = [structured("regex", "[ab]{150}") if number % 2 else GREEDY for number in range(10)]
    mixed = llm.generate([prompt for prompt in PROMPTS for _ in range(2)], params, use_tqdm=False)
    assert [result.outputs for result in mixed[::2]] == [result.outputs for result in alone]
    assert all(re.fullmatch("[ab]{150}", result.outputs[0].text) for result in mixed[1::2])


def test_structured_with_preemption(make_checkpoint: Callable[..., Path]) -> None:
    directory = str(make_checkpoint("qwen2"))
    options = {"block_size": 16, "max_num_batched_tokens": 64}
    params = [structured("regex", "([a-d]{1,9},){20}", seed=number) for number in range(12)]
    with LLM(directory, **options) as llm:
        roomy = llm.generate(["fox"] * 12, params, use_tqdm=False)
    with LLM(directory, **options, kv_cache_memory=f"{16 * 18 * 768}") as llm:
        tight = llm.generate(["fox"] * 12, params, use_tqdm=False)
        assert llm._llm.engine._scheduler.stats.preemptions > 0
    assert [result.outputs for result in tight] == [result.outputs for result in roomy]
    assert all(re.fullmatch("([a-d]{1,9},){20}", result.outputs[0].text) for result in tight)


def test_an_answer_is_not_copied_at_each_step(llm: LLM) -> None:
    answers = _Answers("id", None, [1], 2, llm.tokenizer)
    answers.add(0, OutputDelta(text="a" * 100_000, token_ids=[5] * 100_000))
    before, begin = answers.output(), time.perf_counter()
    copy = before.outputs[0].token_ids.copy()
    copying = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(200):
        answers.add(0, OutputDelta(text="b", token_ids=[6]))
    assert time.perf_counter() - begin < 100 * copying
    after = answers.output()
    assert before.outputs[0].token_ids == copy and len(before.outputs[0].text) == 100_000
    assert after.outputs[0].token_ids[-201:] == [5] + [6] * 200 and after.outputs[0].text.endswith("a" + "b" * 200)
    assert after.outputs[1] is before.outputs[1] and after.outputs[1].text == ""
