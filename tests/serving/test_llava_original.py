"""LLaVA-NeXT as its own repository lays it out, as it is served: `<image>` is text, and there is no chat template."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import Server, save_tokenizer
from tests.oracle.llava import picture, save_original, transformers_llava, transformers_processor

OPENING = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
)
PICTURES = [picture(100, 60), picture(50, 111)]


@pytest.fixture(scope="module")
def source(make_seeing_checkpoint: Callable[[str], Path]) -> Path:
    return make_seeing_checkpoint("llava_next")


@pytest.fixture(scope="module")
def directory(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, processors

    folder = tmp_path_factory.mktemp("original")
    directory = folder / "model"
    save_original(source, directory, folder / "tower")
    save_tokenizer(directory)
    path = directory / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(path))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|endoftext|>"}))
    return directory


@pytest.fixture(scope="module")
def server(server_class: type[Server], directory: Path) -> Iterator[Server]:
    server = server_class("--model", str(directory), "--kv-cache-memory", "16MiB")
    try:
        server.wait_until_ready()
        yield server
    finally:
        assert server.stop() == 0


def image_part(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def prompt_ids(directory: Path, text: str, counts: list[int], token: int) -> list[int]:
    """As the repository's tokenizer_image_token: what stands between images is tokenized by itself."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    first, *others = (tokenizer.encode(part, add_special_tokens=False).ids for part in text.split("<image>"))
    ids = [0, *first]
    for count, part in zip(counts, others, strict=True):
        ids += [token] * count + part
    return ids


def test_images_in_a_conversation(server: Server, directory: Path, source: Path) -> None:
    import torch

    parts = [{"type": "text", "text": "Which is larger?"}, *map(image_part, PICTURES)]
    with server.client() as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": parts}],  # type: ignore[list-item, misc]
            temperature=0,
            max_tokens=8,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
    assert answer.usage and answer.usage.prompt_tokens_details
    theirs = transformers_llava(source)
    made = transformers_processor()(PICTURES, return_tensors="pt")
    with torch.inference_mode():
        counts = [len(rows) for rows in theirs.model.get_image_features(**made).pooler_output]
        text = f"{OPENING}<image>\n<image>\nWhich is larger? ASSISTANT:"
        ids = prompt_ids(directory, text, counts, theirs.config.image_token_id)
        theirs.generation_config.eos_token_id = None
        expected = theirs.generate(torch.tensor([ids]), **made, max_new_tokens=8, do_sample=False)[0].tolist()
    [choice] = answer.choices
    assert choice.prompt_token_ids == prompt_ids(directory, text, counts, 0)  # type: ignore[attr-defined]
    assert choice.token_ids == expected[len(ids) :]  # type: ignore[attr-defined]
    assert answer.usage.prompt_tokens_details.image_tokens == sum(counts)  # type: ignore[attr-defined]


def test_text_alone(server: Server, directory: Path) -> None:
    with server.client() as client:
        said = client.post(
            f"{server.url}/tokenize",
            body={"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]},
            cast_to=object,
        )
    assert said["tokens"] == prompt_ids(directory, f"{OPENING}Hi ASSISTANT:", [], 0)  # type: ignore[index]
