"""Embeddings are transformers' last hidden states, whatever else is served."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from openai import AsyncOpenAI, BadRequestError, OpenAI
from safetensors.torch import load_file, save_file

LENGTHS = [1, 2, 16, 17, 40, 33, 100, 256]


def expected(directory: Path, prompts: list[list[int]], pooling: str) -> torch.Tensor:
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        hidden = [model(torch.tensor([prompt])).last_hidden_state[0] for prompt in prompts]
    pooled = torch.stack([states[-1] if pooling == "last" else states.mean(0) for states in hidden])
    return torch.nn.functional.normalize(pooled)


def embed(client: OpenAI, given: Any) -> torch.Tensor:
    return torch.tensor([entry.embedding for entry in client.embeddings.create(model="tiny", input=given).data])


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    first, *rest = [torch.randint(3, 512, (length,), generator=generator).tolist() for length in LENGTHS]
    return [first, *rest, rest[-1][:200]]  # the last two have a beginning in common


@pytest.mark.parametrize("pooling", ["last", pytest.param("mean", marks=pytest.mark.slow)])
def test_embeddings_equal_transformers(
    pooling: str, prompts: list[list[int]], make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]
) -> None:
    directory = make_checkpoint("qwen3", head_dim=32)
    server = start_server(
        directory, "--pooling", pooling, "--max-num-batched-tokens", "48", "--kv-cache-memory", "600KiB"
    )
    client: OpenAI = server.client()
    oracle = expected(directory, prompts, pooling)
    alone = torch.cat([embed(client, [prompt]) for prompt in prompts])
    assert (alone - oracle).abs().max() < 1e-4
    # Together, beside generated answers, and with what the prefix cache holds of them now.
    client.completions.create(model="tiny", prompt=prompts[-1], max_tokens=1)

    async def beside_others() -> torch.Tensor:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            options: dict[str, Any] = {"model": "tiny", "max_tokens": 50, "extra_body": {"ignore_eos": True}}
            others = [asyncio.create_task(client.completions.create(prompt=[n] * 9, **options)) for n in range(3, 6)]
            answer = await client.embeddings.create(model="tiny", input=prompts)
            await asyncio.gather(*others)
            return torch.tensor([entry.embedding for entry in answer.data])

    assert torch.equal(asyncio.run(beside_others()), alone)
    assert (client.embeddings.create(model="tiny", input="Hi", dimensions=8).data[0].embedding) != []


def test_the_checkpoint_chooses_the_pooling(
    prompts: list[list[int]],
    make_checkpoint: Callable[..., Path],
    start_server: Callable[..., Any],
    tmp_path: Path,
) -> None:
    directory = Path(shutil.copytree(make_checkpoint("llama"), tmp_path / "model"))
    config = directory / "1_Pooling" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}))
    client = start_server(directory, "--tensor-parallel-size", "2").client()
    assert (embed(client, prompts[:5]) - expected(directory, prompts[:5], "mean")).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("family", "architecture"),
    [pytest.param("qwen3", "Qwen3ForCausalLM", marks=pytest.mark.slow), ("mistral", "MistralModel")],
)
def test_a_model_without_a_head_makes_embeddings_only(
    family: str,
    architecture: str,
    prompts: list[list[int]],
    make_checkpoint: Callable[..., Path],
    start_server: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Embedding models are stored without a head and without `model.` in front of their names."""
    directory = Path(shutil.copytree(make_checkpoint(family), tmp_path / "model"))
    tensors = load_file(directory / "model.safetensors")
    stripped = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    assert len(stripped) == len(tensors) - 1
    save_file(stripped, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text()) | {"architectures": [architecture]}
    (directory / "config.json").write_text(json.dumps(config))
    client: OpenAI = start_server(directory).client()
    assert (embed(client, prompts) - expected(directory, prompts, "last")).abs().max() < 1e-4
    ways: list[Callable[[], Any]] = [
        lambda: client.completions.create(model="tiny", prompt=[5, 6]),
        lambda: client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Hi"}]),
        lambda: client.responses.create(model="tiny", input="Hi"),
    ]
    for ask in ways:
        with pytest.raises(BadRequestError, match="has no head, so it only makes embeddings"):
            ask()
