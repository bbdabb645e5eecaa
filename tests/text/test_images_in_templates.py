"""Images in the prompts of the models that see, by their own chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sophserve.errors import RequestError
from sophserve.text.chat_template import ChatTemplate
from sophserve.text.placeholders import split, tokens_between
from sophserve.text.tokenizer import Tokenizer

# As transformers writes them beside llava-v1.6-vicuna and llava-v1.6-mistral.
VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' }}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'][0]['text'] + '</s> '}}{% else %}{{ raise_exception('Only user and assistant!') }}"
    "{% endif %}{% endfor %}"
)


def image(name: str) -> dict[str, Any]:
    return {"type": "image", "image": name}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


CONVERSATION = [
    user(text("one"), image("a"), text("two"), image("b")),
    {"role": "assistant", "content": "said"},
    user(image("c"), text("three")),
]


def rendered(source: str, placeholder: str, messages: list[dict[str, Any]]) -> tuple[str, list[Any]]:
    found = ChatTemplate({"default": source}, {"bos_token": "<s>"}, placeholder).rendered(messages)
    return found.prompt, found.images


@pytest.fixture(scope="module")
def qwen(shared_data: Path) -> str:
    source: str = json.loads((shared_data / "qwen2.5-vl" / "chat_template.json").read_text())["chat_template"]
    return source


def test_llava() -> None:
    """Which has the images of a turn before its texts."""
    prompt, images = rendered(VICUNA, "<image>", CONVERSATION)
    turns = "USER: <image>\n<image>\none two ", "ASSISTANT: said ", "USER: <image>\nthree ", "ASSISTANT:"
    assert (prompt, images) == ("".join(turns), ["a", "b", "c"])
    prompt, images = rendered(MISTRAL, "<image>", CONVERSATION)
    turns = "[INST] <image>\n<image>\nonetwo [/INST]", " said</s> ", "[INST] <image>\nthree [/INST]"
    assert (prompt, images) == ("".join(turns), ["a", "b", "c"])


def test_qwen(qwen: str) -> None:
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    prompt, images = rendered(qwen, "<|image_pad|>", CONVERSATION)
    turns = [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        f"<|im_start|>user\none{mark}two{mark}<|im_end|>\n",
        "<|im_start|>assistant\nsaid<|im_end|>\n",
        f"<|im_start|>user\n{mark}three<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert (prompt, images) == ("".join(turns), ["a", "b", "c"])


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_roles_that_have_one_text(role: str) -> None:
    """LLaVA's mistral template takes the first part of them alone: images become text there."""
    messages = [{"role": role, "content": [text("x"), image("a"), text("y")]}, user(text("z"), image("b"))]
    prompt, images = rendered(MISTRAL, "<image>", messages)
    assert "x\n<image>\ny" in prompt and prompt.count("<image>") == 2
    assert images == ["a", "b"]


def test_results_of_tools_in_another_order() -> None:
    """Images are numbered as they come out: some templates take each call with its result."""
    alone = (
        "{% for m in messages %}"
        "{% if m.tool_calls and m.tool_calls|length > 1 %}{{ raise_exception('one') }}{% endif %}"
        "{{ m.role }}:{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %};{% endfor %}"
    )
    functions = [
        {"id": f"call{n}xxxx", "type": "function", "function": {"name": f"f{n}", "arguments": "{}"}} for n in (1, 2)
    ]
    messages = [
        user(text("x")),
        {"role": "assistant", "content": "", "tool_calls": functions},
        {"role": "tool", "tool_call_id": "call2xxxx", "content": [text("two"), image("b")]},
        {"role": "tool", "tool_call_id": "call1xxxx", "content": [text("one"), image("a")]},
    ]
    prompt, images = rendered(alone, "<image>", messages)
    assert prompt == "user:x;assistant:f1;tool:one<image>;assistant:f2;tool:two<image>;"
    assert images == ["a", "b"]


def test_continuing_a_message_that_ends_with_an_image(qwen: str) -> None:
    template = ChatTemplate({"default": qwen}, {}, "<|image_pad|>")
    for content in ([text("x"), image("a")], [image("a"), text("x")]):
        messages = [user(text("?")), {"role": "assistant", "content": content}]
        options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
        if content[-1]["type"] == "image":
            with pytest.raises(RequestError, match="needs a last message with text at its end"):
                template.rendered(messages, **options)
        else:
            assert template.rendered(messages, **options).prompt.endswith("<|vision_end|>x")


def test_qwen_with_tools(shared_data: Path, tmp_path: Path) -> None:
    """Its template for tools is the tokenizer's, which knows no images: each stands between the marks all the same."""
    (tmp_path / "tokenizer.json").symlink_to(shared_data / "qwen2.5" / "tokenizer.json")
    for name in ("tokenizer_config.json", "chat_template.json", "config.json"):
        (tmp_path / name).symlink_to(shared_data / "qwen2.5-vl" / name)
    tokenizer = Tokenizer.from_directory(tmp_path)
    template = ChatTemplate.from_directory(tmp_path, tokenizer, placeholder="<|image_pad|>")
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        user(text("look"), image("a")),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [text("seen:"), image("b")]},
    ]
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    found = template.rendered(messages, tools=[tool])
    assert "# Tools" in found.prompt and found.images == ["a", "b"]
    assert f"<|im_start|>user\nlook\n{mark}<|im_end|>\n" in found.prompt
    assert f"<tool_response>\nseen:{mark}\n</tool_response>" in found.prompt
    pad = tokenizer.special_id("<|image_pad|>")
    assert pad is not None and len(tokens_between(tokenizer, found.prompt, "<|image_pad|>", pad, False)) == 3


def test_llava_s_own_way_of_cutting_prompts(train_sentencepiece: Callable[..., Path]) -> None:
    """Each piece between images is tokenized as a text of its own, the beginning's token only before the first one:
    LLaVA's tokenizer_image_token."""
    from sentencepiece import SentencePieceProcessor

    directory = train_sentencepiece("bpe", byte_fallback=True, config={"legacy": True})
    theirs, ours = SentencePieceProcessor(str(directory / "tokenizer.model")), Tokenizer.from_directory(directory)
    prompt = "A chat. USER: <image>\n<image>\nWhat is <image><image> this? ASSISTANT:"
    pieces = [theirs.encode(piece) for piece in prompt.split("<image>")]
    assert tokens_between(ours, f"<s>{prompt}", "<image>", 0, False) == [[1, *pieces[0]], *pieces[1:]]
    assert tokens_between(ours, prompt, "<image>", 0, True) == [[1, *pieces[0]], *pieces[1:]]


def test_what_stands_between_placeholders(make_checkpoint: Callable[..., Path]) -> None:
    """A special token is found among ids; what is no token is cut out of the text, as LLaVA's own code does."""
    tokenizer = Tokenizer.from_directory(make_checkpoint())
    token = tokenizer.special_id("<|endoftext|>")
    assert token is not None
    for placeholder in ("<|endoftext|>", "<image>"):
        said = f"a {placeholder}{placeholder} b"
        assert tokens_between(tokenizer, said, placeholder, token, True) == [
            tokenizer.encode("a "),
            [],
            tokenizer.encode(" b"),
        ]
    assert tokens_between(tokenizer, "none", "<image>", 5, True) == [tokenizer.encode("none")]
    assert split([5, 1, 5, 5, 2], 5) == [[], [1], [], [2]]
