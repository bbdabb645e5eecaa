"""Images in every API: as the model is asked, as they are counted, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from sophserve.text.chat_template import ChatTemplate
from tests.api.images import PLACEHOLDER, TEMPLATE, digest_of, picture

A, B, C = picture("a"), picture("b", 5), picture("c", 1)


def part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def shown(app: Any) -> list[tuple[bytes, str]]:
    """The images of the last prompt, each with its place: what stands before it, placeholders counted."""
    prompt, items = app.engine.prompts[-1], app.engine.items[-1]
    found = []
    for item in items:
        assert prompt[item.start : item.end] == [0] * item.length
        assert prompt[item.end : item.end + 1] != [0], "an image has as many placeholders as its shape says"
        found.append((item.digest, app.tokenizer.decode(prompt[: item.start], skip_special_tokens=False)[-12:]))
    assert prompt.count(0) == sum(item.length for item in items)
    return found


ANSWER = {"max_tokens": 2, "temperature": 0}


async def ask(app: Any, *messages: dict[str, Any], **options: Any) -> Any:
    status, answer = await app.post("/v1/chat/completions", {"messages": list(messages), **ANSWER, **options})
    assert status == 200, answer
    return answer


@pytest.mark.parametrize(
    "image",
    [
        part(A),
        {"type": "image_url", "image_url": A},
        {"type": "image_url", "image_url": A.partition(",")[2]},
        {"type": "input_image", "image_url": A},
        {"type": "input_image", "image_url": A, "detail": "auto"},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": A.partition(",")[2]},
        },
    ],
)
async def test_forms_of_an_image(seeing: Any, image: dict[str, Any]) -> None:
    answer = await ask(seeing, user(text("see "), image, text(" this")))
    assert shown(seeing) == [(digest_of(A), "er\nsee [")] or shown(seeing)[0][0] == digest_of(A)
    images = PLACEHOLDER * 3
    assert seeing.prompt == f"<|im_start|>user\nsee [{images}] this<|im_end|>\n<|im_start|>assistant\n"
    details = answer["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 0, "text_tokens": len(seeing.engine.prompts[-1]) - 3, "image_tokens": 3}
    assert answer["usage"]["prompt_tokens"] == len(seeing.engine.prompts[-1])


async def test_the_order_of_several_images(seeing: Any) -> None:
    """Within a turn, in earlier turns, in what the system says and in what a tool gave."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = await ask(
        seeing,
        {"role": "system", "content": [text("s"), part(C)]},
        user(part(A), text("one"), part(B)),
        {"role": "assistant", "content": "two", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [text("given"), part(picture("d", 2))]},
        user(text("three"), part(A)),
    )
    digests = [digest for digest, _ in shown(seeing)]
    assert digests == [digest_of(each) for each in (C, A, B, picture("d", 2), A)]
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 1 + 3 + 5 + 2 + 3


async def test_detail_reaches_the_loader(seeing: Any) -> None:
    await ask(seeing, user(part(A, detail="low"), {"type": "input_image", "image_url": B, "detail": "high"}, part(C)))
    assert [source.detail for source in seeing.serving.images.loaded] == ["low", "high", "auto"]
    assert [source.path for source in seeing.serving.images.loaded] == [
        "messages[0].content[0].image_url.url",
        "messages[0].content[1].image_url",
        "messages[0].content[2].image_url.url",
    ]


async def test_an_address_is_left_to_the_loader(seeing: Any) -> None:
    await ask(seeing, user(part("https://example.org/a.png")))
    assert [source.url for source in seeing.serving.images.loaded] == ["https://example.org/a.png"]


async def test_prompts_without_images_are_what_they_were(seeing: Any) -> None:
    for content in ("hello", [text("hello")]):
        answer = await ask(seeing, {"role": "user", "content": content})
        assert seeing.prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert not any(seeing.engine.items) and not seeing.serving.images.loaded


@pytest.mark.parametrize("stream", [False, True])
async def test_official_client(seeing: Any, stream: bool) -> None:
    messages = [user(text("what is it?"), part(A))]
    if not stream:
        answer = await seeing.openai.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
        assert answer.usage.prompt_tokens_details.image_tokens == 3
        return
    chunks = await seeing.openai.chat.completions.create(
        model="tiny", messages=messages, max_tokens=2, stream=True, stream_options={"include_usage": True}
    )
    [*_, last] = [chunk async for chunk in chunks]
    assert last.usage.prompt_tokens_details.image_tokens == 3
    assert len(shown(seeing)) == 1


async def test_n_answers_share_one_image(seeing: Any) -> None:
    answer = await ask(seeing, user(part(A), text("x")), n=3)
    assert len(answer["choices"]) == 3 and len(seeing.serving.images.loaded) == 1
    assert len({item.digest for items in seeing.engine.items for item in items}) == 1
    assert [len(items) for items in seeing.engine.items] == [1, 1, 1]


async def test_a_template_without_a_place_for_images(seeing: Any) -> None:
    """Gets the placeholder as text, alone in its line, as LLaVA writes it."""
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    seeing.serving.chat_template = ChatTemplate({"default": template}, {}, PLACEHOLDER)
    await ask(seeing, user(part(A), text("one")), {"role": "assistant", "content": "x"}, user(text("two"), part(B)))
    images = PLACEHOLDER * 3, PLACEHOLDER * 5
    assert seeing.prompt == f"user: {images[0]}\none\nassistant: x\nuser: two\n{images[1]}\n"
    assert [digest for digest, _ in shown(seeing)] == [digest_of(A), digest_of(B)]


async def test_another_template_of_the_checkpoint_lends_its_words(seeing: Any) -> None:
    """Qwen2.5-VL has one for images and one for tools; each image stands between two marks."""
    tools = "{{ tools }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    seeing.serving.chat_template = ChatTemplate({"default": TEMPLATE, "tool_use": tools}, {}, PLACEHOLDER)
    seeing.serving.config = replace(seeing.serving.config, tool_call_parser="hermes")
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    await ask(seeing, user(text("look"), part(A)), tools=[{"type": "function", "function": function}])
    assert seeing.prompt.endswith(f"user: look\n[{PLACEHOLDER * 3}]\n")


async def test_merged_turns_keep_their_images(seeing: Any) -> None:
    """Where a template takes turns in alternation only."""
    strict = TEMPLATE.replace(
        "{{- '<|im_start|>'",
        "{%- if not loop.first and message['role'] == loop.previtem['role'] %}{{ raise_exception('twice') }}{% endif %}"
        "{{- '<|im_start|>'",
        1,
    )
    seeing.serving.chat_template = ChatTemplate({"default": strict}, {}, PLACEHOLDER)
    await ask(seeing, user(text("a"), part(A)), {"role": "user", "content": "b"}, user(part(B), text("c")))
    images = PLACEHOLDER * 3, PLACEHOLDER * 5
    said = f"a[{images[0]}]\n\nb\n\n[{images[1]}]c"
    assert seeing.prompt == f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
    assert [digest for digest, _ in shown(seeing)] == [digest_of(A), digest_of(B)]


NOT_READ = "are not supported, only text, and images for models that see; send"


@pytest.mark.parametrize(
    ("content", "param", "words"),
    [
        (
            [{"type": "video_url", "video_url": {"url": "x"}}],
            "messages[0].content[0]",
            f"'video_url' {NOT_READ} single",
        ),
        ([{"type": "input_audio", "input_audio": {}}], "messages[0].content[0]", f"'input_audio' {NOT_READ} what is"),
        ([text("x"), {"type": "file", "file": {}}], "messages[0].content[1]", f"'file' {NOT_READ} its text"),
        ([{"type": "image_url"}], "messages[0].content[0]", "image_url is missing"),
        ([{"type": "image"}], "messages[0].content[0]", "source must be of type base64 with data"),
        ([{"type": "input_image", "file_id": "f"}], "messages[0].content[0]", "send the image itself as image_url"),
        ([part("data:image/png;base64,!!")], "messages[0].content[0].image_url.url", "not valid base64"),
        ([part(A, detail="tiny")], "messages[0].content[0].image_url.url", "detail must be"),
        (
            [part(A), part(f"data:;base64,{'AAAA'}")],
            "messages[0].content[1].image_url.url",
            "no file that can be decoded",
        ),
        ([text(f"a {PLACEHOLDER} b"), part(A)], "messages", f"{PLACEHOLDER} is 2 times in the prompt, for 1 images"),
        (f"a {PLACEHOLDER} b", "messages", f"{PLACEHOLDER} is 1 times in the prompt, for 0 images"),
        ([part(picture("big", 101))], "messages", "image 1 takes 101 tokens"),
        ([part(picture("huge", 300)), text("x")], "prompt", "tokens (300 of them for images)"),
    ],
)
async def test_refusals(seeing: Any, content: Any, param: str, words: str) -> None:
    status, answer = await seeing.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert words in answer["error"]["message"]
    assert not seeing.engine.prompts


async def test_a_model_that_sees_nothing(app: Any) -> None:
    for path, body, param in (
        ("/v1/chat/completions", {"messages": [user(part(A))]}, "messages[0].content[0].image_url.url"),
        ("/v1/chat/completions", {"messages": [user(part("x"))]}, "messages[0].content[0].image_url.url"),
        (
            "/v1/responses",
            {"input": [user({"type": "input_image", "image_url": A})]},
            "input[0].content[0].image_url",
        ),
        ("/tokenize", {"messages": [user(part(A))]}, "messages[0].content[0].image_url.url"),
    ):
        status, answer = await app.post(path, body)
        assert (status, answer["error"]["param"]) == (400, param)
        assert answer["error"]["message"] == f"{param}: this model sees no images; send text only"


async def test_truncation_leaves_out_whole_images(seeing: Any) -> None:
    said = [user(part(B), text("abc"), part(A))]
    whole = len((await ask(seeing, *said)) and seeing.engine.prompts[-1])
    first = seeing.engine.items[-1][0]
    for side, most, left in (
        ("left", whole - first.start, [digest_of(B), digest_of(A)]),
        ("left", whole - first.start - 1, [digest_of(A)]),
        ("left", whole - first.end + 1, [digest_of(A)]),
        ("right", first.end, [digest_of(B)]),
        ("right", first.end - 1, []),
    ):
        await ask(seeing, *said, truncate_prompt_tokens=most, truncation_side=side)
        assert [digest for digest, _ in shown(seeing)] == left
        assert len(seeing.engine.prompts[-1]) <= most
    body = {"messages": said, **ANSWER, "truncate_prompt_tokens": whole - first.end}
    async with seeing.http.post("/v1/chat/completions", json=body) as response:
        assert "left out by truncate_prompt_tokens: '1 images'" in response.headers["X-Sophserve-Warnings"]


async def test_a_slow_image_holds_a_place_and_nothing_else(seeing: Any) -> None:
    images = seeing.serving.images
    images.gate.clear()
    slow = asyncio.create_task(ask(seeing, user(part(A), text("slow"))))
    async with asyncio.timeout(5):
        while not seeing.serving.places.used:
            await asyncio.sleep(0.005)
    await ask(seeing, {"role": "user", "content": "fast"})
    assert not slow.done() and seeing.serving.places.used == 1
    status, answer = await seeing.post("/v1/chat/completions", {"messages": [user(part(B))], "timeout": 0.05})
    assert (status, answer["error"]["code"]) == (408, "timeout")
    images.gate.set()
    await slow
    assert not seeing.serving.places.used


async def test_the_log_names_tokens_of_images(seeing: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        await ask(seeing, user(part(A), text("x")))
        await ask(seeing, {"role": "user", "content": "x"})
    lines = [record.getMessage() for record in caplog.records if "prompt=" in record.getMessage()]
    assert " images=3" in lines[0] and "images" not in lines[1]


async def test_tokenize(seeing: Any) -> None:
    messages = [user(text("see"), part(A))]
    status, answer = await seeing.post("/tokenize", {"messages": messages})
    await ask(seeing, *messages)
    assert (status, answer["tokens"]) == (200, seeing.engine.prompts[-1])
    status, answer = await seeing.post("/apply-template", {"messages": messages})
    assert answer["prompt"] == f"<|im_start|>user\nsee[{PLACEHOLDER}]<|im_end|>\n<|im_start|>assistant\n"


async def test_completions_have_none(seeing: Any) -> None:
    for name in ("multi_modal_data", "mm_processor_kwargs"):
        status, answer = await seeing.post("/v1/completions", {"prompt": "x", name: {"image": A}})
        assert (status, answer["error"]["param"]) == (400, name)
        assert name in answer["error"]["message"]
