"""What the embedded API takes as a prompt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sophserve import LLM, SamplingParams, TextPrompt, TokensPrompt
from sophserve.errors import RequestError
from tests.api.test_goes_on import PROMPT, sentencepiece

PIXEL = Image.new("RGB", (1, 1))


@pytest.fixture(scope="module")
def llm(make_checkpoint: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(str(make_checkpoint("qwen2"))) as llm:
        yield llm


def test_prompts_in_vllm_s_dictionaries(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4)
    ids = llm.tokenizer.encode("The quick")
    expected = llm.generate("The quick", params, use_tqdm=False)[0]
    tokens = TokensPrompt(prompt_token_ids=ids)
    for prompts in ({"prompt": "The quick"}, [TextPrompt(prompt="The quick")], tokens, [tokens], tuple(ids)):
        [found] = llm.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]
        assert (found.prompt_token_ids, found.outputs) == (ids, expected.outputs)
        assert found.prompt == (None if prompts in (tokens, [tokens], tuple(ids)) else "The quick")
    mixed: list[Any] = ["The quick", ids, tokens | {"prompt": "named", "multi_modal_data": None}, {"prompt": "The"}]
    found = llm.generate(mixed, params, use_tqdm=False)
    assert [each.prompt for each in found] == ["The quick", None, "named", "The"]
    assert [each.outputs for each in found[:3]] == [expected.outputs] * 3

    async def first() -> Any:
        async with aclosing(llm._llm.generate(tokens, params)) as outputs:
            return [output async for output in outputs][-1]

    assert llm._background.run(first()).outputs == expected.outputs


def test_prompts_with_a_salt_share_no_blocks(llm: LLM) -> None:
    params, ids = SamplingParams(max_tokens=1), [9, 8, 7] * 20
    hits = []
    for salt in ("a", "b", "a"):
        [found] = llm.generate({"prompt_token_ids": ids, "cache_salt": salt}, params, use_tqdm=False)
        hits.append(found.num_cached_tokens)
    assert hits == [0, 0, 48]


@pytest.mark.parametrize(
    ("prompt", "param", "words"),
    [
        ({}, "prompt", "needs the key 'prompt' or 'prompt_token_ids'"),
        ({"prompt": None, "cache_salt": "x"}, "prompt", "needs the key"),
        (
            {"prompt": "Hi", "multi_modal_data": {"image": b""}},
            "multi_modal_data['image'][0]",
            "must be a Pillow image",
        ),
        ({"prompt": "Hi", "multi_modal_data": {"image": PIXEL}}, "multi_modal_data['image'][0]", "sees no images"),
        ({"prompt": "Hi", "multi_modal_data": {"audio": [1]}}, "multi_modal_data", "only images"),
        ({"prompt_embeds": [1.0]}, "prompt_embeds", "not supported"),
        ({"promt": "Hi"}, "promt", "not supported"),
        ({"prompt": ["Hi"]}, "prompt", "must be a text, got list"),
        ({"prompt": "Hi", "cache_salt": 5}, "cache_salt", "must be a text, got int"),
        ({"prompt_token_ids": "Hi"}, "prompt", "got str"),
        ({"prompt_token_ids": []}, "prompt", "empty"),
        ([None], "prompt", "got NoneType"),
        ([["Hi"]], "prompt", "got list"),
        ([1.5], "prompt", "got float"),
        (None, "prompt", "got NoneType"),
    ],
)
def test_prompts_that_are_none(llm: LLM, prompt: Any, param: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        llm.generate(prompt, use_tqdm=False)
    assert caught.value.param == param


def test_prompt_logprobs_without_an_answer(llm: LLM) -> None:
    """A prompt may fill the context then, and is computed in chunks of which the last may be of one token."""
    for length in (1, 2, 40, 256):
        prompt = [5 + number % 500 for number in range(length)]
        params = SamplingParams(max_tokens=0, logprobs=1, prompt_logprobs=1)
        [scored] = llm.generate([prompt], params, use_tqdm=False)
        [answer] = scored.outputs
        assert (answer.text, answer.token_ids, answer.logprobs, answer.finish_reason) == ("", [], [], "length")
        assert scored.prompt_logprobs is not None and len(scored.prompt_logprobs) == length
        if length < 256:
            params = SamplingParams(max_tokens=1, prompt_logprobs=1)
            [answered] = llm.generate([prompt], params, use_tqdm=False)
            assert scored.prompt_logprobs == answered.prompt_logprobs
    with pytest.raises(RequestError, match="the prompt has 257 tokens; shorten the prompt"):
        llm.generate([[5] * 257], SamplingParams(max_tokens=0), use_tqdm=False)


def test_a_chat_begins_a_text_unless_it_goes_on(llm: LLM) -> None:
    """With tokenizers that put a space before a text, only the latter is to begin with one."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}]

    def conversation(*given: Any, **options: Any) -> Any:
        return llm._background.run(llm._llm._conversation(*given, **options))

    assert conversation(turns[:1]).begins_text
    assert not conversation(turns, add_generation_prompt=False, continue_final_message=True).begins_text


def test_a_text_goes_on_with_a_space(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Where texts begin without one, as those of Llama 2's tokenizer do."""
    directory = tmp_path / "llama"
    shutil.copytree(make_checkpoint("llama"), directory)
    tokenizer = sentencepiece(metaspace=False)
    tokenizer._backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    [paris] = tokenizer.encode("Paris")
    params = SamplingParams(n=2, max_tokens=2, ignore_eos=True, logit_bias={paris: 100.0})
    with LLM(str(directory)) as llm:
        for prompt in (PROMPT, tokenizer.encode(PROMPT)):
            [found] = llm.generate(prompt, params, use_tqdm=False)  # type: ignore[arg-type]
            for answer in found.outputs:
                assert answer.token_ids == [paris, paris] and answer.text == " Paris Paris"
                assert tokenizer.decode(found.prompt_token_ids + answer.token_ids) == PROMPT + answer.text
