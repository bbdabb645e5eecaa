"""A text that goes on from its prompt keeps the space before its first word, with tokenizers whose texts begin without
one (Llama 2's two layouts)."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sophserve.text.chat_template import ChatTemplate
from sophserve.text.tokenizer import Tokenizer

PROMPT = "The capital of France is"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *BYTES,
    "▁",
    *("▁" + word for word in [*PROMPT.split(), "Paris", "user", "assistant"]),
]
TEMPLATE = """\
{%- for message in messages %}{{- message.role + ' ' + message.content }}{%- endfor %}
{%- if add_generation_prompt %}{{- ' assistant' }}{%- endif %}"""


def sentencepiece(metaspace: bool) -> Tokenizer:
    """With a token for each of those words."""
    backend = Backend(models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=0, byte_fallback=True))
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
        undo = [decoders.ByteFallback(), decoders.Metaspace("▁", "first")]
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(undo)
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, {})


@pytest.fixture(params=[False, True])
async def app(start_app: Any, request: pytest.FixtureRequest) -> Any:
    app = await start_app()
    app.tokenizer = app.serving.tokenizer = app.engine._tokenizer = sentencepiece(request.param)
    app.serving.chat_template = ChatTemplate({"default": TEMPLATE}, {})
    app.serving.characters_per_token = None
    app.engine.text = "Paris"
    return app


async def streamed(app: Any, **request: Any) -> str:
    stream = await app.openai.completions.create(model="tiny", **request, stream=True)
    return "".join([choice.text async for chunk in stream for choice in chunk.choices])


@pytest.mark.parametrize("prompt", [PROMPT, "The 🙂", "🙂", PROMPT + " "])
async def test_completions(app: Any, prompt: str) -> None:
    create, ids = app.openai.completions.create, app.tokenizer.encode(prompt)
    answer = app.tokenizer.encode("Paris", add_special_tokens=False)
    assert app.tokenizer.decode(ids + answer) == prompt + " Paris"
    for given in (prompt, ids):
        whole = await create(model="tiny", prompt=given, n=2)
        assert [choice.text for choice in whole.choices] == [" Paris"] * 2
        whole = await create(model="tiny", prompt=given, echo=True)
        assert whole.choices[0].text == prompt + " Paris" == await streamed(app, prompt=given, echo=True)
        assert await streamed(app, prompt=given) == " Paris"
    assert (await create(model="tiny", prompt=prompt, stop=" Par")).choices[0].text == ""


async def test_where_tokens_begin(app: Any) -> None:
    """The offsets of logprobs are places in the text, as their tokens are parts of it."""
    for prompt in (PROMPT, "The 🙂 is", "🙂 is"):
        for echo in (False, True):
            answer = await app.openai.completions.create(model="tiny", prompt=prompt, logprobs=0, echo=echo)
            [choice] = answer.choices
            shown = list(zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True))
            assert shown[0][1] == 0
            for token, offset in shown:
                if "\ufffd" not in token and token != "</s>":
                    assert choice.text[offset:].startswith(token if offset or not echo else token.lstrip())
            assert choice.logprobs.tokens[-2:] == [" Paris", "</s>"]


async def test_nothing_but_a_special_token_before_it(app: Any) -> None:
    answer = await app.openai.completions.create(model="tiny", prompt=[1], logprobs=0)
    assert answer.choices[0].text == "Paris" == app.tokenizer.decode([1, *app.tokenizer.encode("Paris", False)])
    assert answer.choices[0].logprobs.text_offset == [0, 5]


async def test_a_message_that_goes_on(app: Any) -> None:
    turns: list[Any] = [{"role": "user", "content": "The"}, {"role": "assistant", "content": PROMPT}]
    for more, text in (
        ({}, "Paris"),  # a message of its own
        ({"continue_final_message": True, "add_generation_prompt": False}, " Paris"),
    ):
        body = {"messages": turns, **more}
        _, answer = await app.post("/v1/chat/completions", body)
        assert answer["choices"][0]["message"]["content"] == text
    for body, text in (({"messages": turns[:1]}, "Paris"), ({"messages": turns}, " Paris")):
        _, answer = await app.post("/v1/messages", body | {"max_tokens": 9})
        assert answer["content"][0]["text"] == text
