"""A model that sees, as it is served: through every API and the embedded one, as transformers has it."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic
from openai import BadRequestError, OpenAI
from PIL import Image

from sophserve import LLM, SamplingParams
from sophserve.errors import RequestError

TILE, PATCH, TOKEN = 56, 14, 512
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
TEXT = {
    "vocab_size": 520,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
}
TEMPLATE = """\
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else %}{% for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}
{%- endfor %}{% endif %}{{ '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
GREEDY = {"temperature": 0, "max_tokens": 8}


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise, whose pixels differ from those beside them."""
    image = Image.effect_noise((width, height), 90 + seed)
    return Image.merge("RGB", [image, image.transpose(Image.Transpose.ROTATE_180), Image.new("L", image.size, seed)])


PICTURES = [picture(100, 60, 1), picture(50, 111, 2)]


def encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{encoded(image)}"


@pytest.fixture(scope="module")
def directory(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers
    from tokenizers import AddedToken, Tokenizer

    directory = tmp_path_factory.mktemp("seeing")
    tokenizer = Tokenizer.from_file(str(make_checkpoint() / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    assert tokenizer.token_to_id("<image>") == TOKEN
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "image_token": "<image>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    torch.manual_seed(0)
    config = transformers.LlavaNextConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_grid_pinpoints=PINPOINTS,
        image_token_index=TOKEN,
    )
    model = transformers.LlavaNextForConditionalGeneration(config)
    for name, tensor in model.state_dict().items():
        if "vision_tower" in name or "projector" in name:
            tensor += 0.15 * torch.randn_like(tensor)
    model.save_pretrained(directory)
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
    )
    transformers.LlavaNextProcessor(
        images, wrapped, PATCH, "default", TEMPLATE, "<image>", num_additional_image_tokens=1
    ).save_pretrained(directory)
    generation = {"eos_token_id": 2, "do_sample": False}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


@pytest.fixture(scope="module")
def server(server_class: Any, directory: Path) -> Iterator[Any]:
    server = server_class("--model", str(directory), "--kv-cache-memory", "16MiB")
    try:
        server.wait_until_ready()
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture
def client(server: Any) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


def content(*pictures: Image.Image) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "Which of"}]
    for number, image in enumerate(pictures):
        parts.append({"type": "image_url", "image_url": {"url": data_url(image)}})
        parts.append({"type": "text", "text": f"number {number}"})
    return parts


@pytest.fixture(scope="module")
def theirs(directory: Path) -> tuple[list[int], list[int]]:
    """The prompt's ids and the greedy answer of transformers, for PICTURES in one turn."""
    import torch
    from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

    processor = LlavaNextProcessor.from_pretrained(directory, backend="pil")
    parts = [part if part["type"] == "text" else {"type": "image"} for part in content(*PICTURES)]
    said = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    given = processor(images=PICTURES, text=said, return_tensors="pt")
    model = LlavaNextForConditionalGeneration.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        made = model.generate(**given, max_new_tokens=8, do_sample=False)[0].tolist()
    prompt = given["input_ids"][0].tolist()
    return prompt, made[len(prompt) :]


def test_chat_is_as_transformers_has_it(client: OpenAI, theirs: tuple[list[int], list[int]]) -> None:
    prompt, expected = theirs
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content(*PICTURES)}],  # type: ignore[list-item]
        extra_body={"return_token_ids": True},
        **GREEDY,  # type: ignore[arg-type]
    )
    [choice] = answer.choices
    assert choice.prompt_token_ids == prompt  # type: ignore[attr-defined]
    assert [token for token in choice.token_ids if token != 2] == [token for token in expected if token != 2]  # type: ignore[attr-defined]
    assert answer.usage and answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.prompt_tokens_details.image_tokens == prompt.count(TOKEN)  # type: ignore[union-attr]


def test_every_api_says_the_same(server: Any, client: OpenAI) -> None:
    said = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content(PICTURES[0])}],  # type: ignore[list-item]
        **GREEDY,  # type: ignore[arg-type]
    )
    expected, length = said.choices[0].message.content, said.usage and said.usage.prompt_tokens
    chunks = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content(PICTURES[0])}],  # type: ignore[list-item]
        stream=True,
        **GREEDY,  # type: ignore[arg-type]
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    first, _, last = content(PICTURES[0])
    response = client.responses.create(
        model="tiny",
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": first["text"]},
                    {"type": "input_image", "image_url": data_url(PICTURES[0]), "detail": "auto"},
                    {"type": "input_text", "text": last["text"]},
                ],
            }
        ],
        temperature=0,
        max_output_tokens=8,
    )
    assert (response.output_text, response.usage and response.usage.input_tokens) == (expected, length)
    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as anthropic:
        source: Any = {"type": "base64", "media_type": "image/png", "data": encoded(PICTURES[0])}
        blocks: Any = [first, {"type": "image", "source": source}, last]
        message = anthropic.messages.create(
            model="tiny", messages=[{"role": "user", "content": blocks}], max_tokens=8, extra_body={"temperature": 0}
        )
        counted = anthropic.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": blocks}])
    assert message.content[0].text == expected  # type: ignore[union-attr]
    assert counted.input_tokens == length
    log = "".join(server.log)
    assert f"prompt={length}" in log and "images=" in log


def test_images_that_are_refused(client: OpenAI) -> None:
    for url, words in (
        ("data:image/png;base64,AAAA", "image_url.url: the image is no PNG"),
        ("https://example.org/a.png", "messages[0].content[0].image_url.url"),
    ):
        with pytest.raises(BadRequestError, match=words.replace("[", r"\[")):
            client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
            )


def test_embedded(directory: Path, theirs: tuple[list[int], list[int]]) -> None:
    """vLLM's prompts with multi_modal_data, and chats with images of Pillow's or by URL, are one and the same."""
    prompt, expected = theirs
    params = SamplingParams(temperature=0, max_tokens=8)
    parts = content(*PICTURES)
    pillow = [*parts]
    for number, image in zip((1, 3), PICTURES, strict=True):
        pillow[number] = {"type": "image_pil", "image_pil": image}
    text = "<|im_start|>user\nWhich of<image>\nnumber 0<image>\nnumber 1<|im_end|>\n<|im_start|>assistant\n"
    with LLM(str(directory), kv_cache_memory="16MiB") as llm:
        before = {"use_tqdm": False}
        found = [
            *llm.chat([{"role": "user", "content": parts}], params, **before),
            *llm.chat([{"role": "user", "content": pillow}], params, **before),
            *llm.generate({"prompt": text, "multi_modal_data": {"image": PICTURES}}, params, **before),
            *llm.generate(
                {"prompt_token_ids": llm.tokenizer.encode(text), "multi_modal_data": {"image": PICTURES}},
                params,
                **before,
            ),
        ]
        for output in found:
            assert output.prompt_token_ids == prompt
            assert [t for t in output.outputs[0].token_ids if t != 2] == [t for t in expected if t != 2]
        # The same pixels in any mode are the same image; a transparent one is another than an opaque one.
        grey = PICTURES[0].convert("L")
        one = "<image>\nWhat?"
        answers = []
        for image in (grey, grey.convert("RGB"), grey.convert("CMYK").convert("RGB").convert("L"), grey.convert("F")):
            [output] = llm.generate({"prompt": one, "multi_modal_data": {"image": image}}, params, **before)
            answers.append(output.outputs[0].token_ids)
        assert answers[0] == answers[1] == answers[3]
        for wrong, words in (
            ({"image": PICTURES}, "is 1 times in the prompt, for 2 images"),
            ({"image": b"x"}, r"multi_modal_data\['image'\]\[0\]: must be a Pillow image, got bytes"),
            ({"video": PICTURES[0]}, r"multi_modal_data\['video'\]"),
            (5, "multi_modal_data must be a dictionary"),
        ):
            with pytest.raises(RequestError, match=words):
                llm.generate({"prompt": one, "multi_modal_data": wrong}, params, **before)  # type: ignore[typeddict-item]
        with pytest.raises(RequestError, match=r"messages\[0\]\.content\[0\]: an image is"):
            llm.chat([{"role": "user", "content": [{"type": "image"}]}], params, **before)


def test_the_chat_and_the_load_bring_pictures(server: Any, client: OpenAI, tmp_path: Path) -> None:
    """`/image` asks what the API's own client asks; `random-image` has every request answered."""
    PICTURES[0].save(tmp_path / "one.png")
    url = {"url": data_url(PICTURES[0])}
    message = {"role": "user", "content": [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What?"}]}
    said = client.chat.completions.create(model="tiny", messages=[message], **GREEDY)  # type: ignore

    def run(command: str, asked: str, *options: str) -> str:
        arguments = [sys.executable, "-m", "sophserve", command, "--url", server.url, *options]
        done = subprocess.run(arguments, input=asked, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    asked = f"/image {tmp_path}/one.png\nWhat?\n"
    assert run("chat", asked, "--temperature", "0", "--max-tokens", "8") == f"{said.choices[0].message.content}\n"
    options = ("--dataset", "random-image", "--image-size", "90x70", "--input-length", "8", "--output-length", "4")
    assert "completed      3 in" in run("load", "", *options, "--num-requests", "3")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llava_next"])
def test_two_ranks_see_what_one_sees(
    make_seeing_checkpoint: Callable[[str], Path], start_server: Callable[..., Any], kind: str
) -> None:
    messages: Any = [{"role": "user", "content": content(*PICTURES)}]
    answers = []
    for ranks in ("1", "2"):
        server = start_server(make_seeing_checkpoint(kind), "--tensor-parallel-size", ranks, "--dtype", "float32")
        answer = server.client().chat.completions.create(model="tiny", messages=messages, logprobs=True, **GREEDY)
        answers.append(answer.choices[0].logprobs.content)
        assert server.stop() == 0
    for one, two in zip(*answers, strict=True):
        assert one.token == two.token and abs(one.logprob - two.logprob) < 2e-3
