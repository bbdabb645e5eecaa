"""Runs a model by hand on a paged cache, without the engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from device.cmodel.device import CmodelDevice
from device.collectives.interface import Communicator, SingleRank
from device.interface import Device, StepInputs
from device.step_inputs import GivenEmbeddings
from model_plugins.architectures.deepseek_v2 import DeepseekV2ForCausalLM
from model_plugins.architectures.deepseek_v3 import DeepseekV3ForCausalLM
from model_plugins.architectures.llama import LlamaForCausalLM
from model_plugins.architectures.llava_llama import LlavaLlamaForCausalLM
from model_plugins.architectures.llava_next import LlavaNextForConditionalGeneration
from model_plugins.architectures.mistral import MistralForCausalLM
from model_plugins.architectures.qwen2 import Qwen2ForCausalLM
from model_plugins.architectures.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from model_plugins.architectures.qwen2_moe import Qwen2MoeForCausalLM
from model_plugins.architectures.qwen3 import Qwen3ForCausalLM
from model_plugins.architectures.qwen3_moe import Qwen3MoeForCausalLM
from sophserve.checkpoint import read_config
from sophserve.model.context import ModelContext
from sophserve.model.decoder import CausalLM
from sophserve.model.kv_memory import cached_layers
from sophserve.model.loading import load_model
from tests.oracle.llava import save_llava

CLASSES = {
    c.__name__: c
    for c in (
        DeepseekV2ForCausalLM,
        DeepseekV3ForCausalLM,
        LlamaForCausalLM,
        LlavaLlamaForCausalLM,
        LlavaNextForConditionalGeneration,
        MistralForCausalLM,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2ForCausalLM,
        Qwen2MoeForCausalLM,
        Qwen3ForCausalLM,
        Qwen3MoeForCausalLM,
    )
}
BLOCK_SIZE = 8
BLOCKS = 200


class PagedModel:
    """A model with a KV cache whose blocks are handed out in a mixed order."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        device = model.context.device
        for layer in cached_layers(model):
            layer.kv = device.make_kv_cache(BLOCKS, BLOCK_SIZE, layer.cache)
        self._free = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(1)).tolist()
        self._blocks: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._given: dict[int, list[tuple[int, Tensor]]] = {}
        self._places: dict[int, list[tuple[int, Tensor, int]]] = {}

    @torch.inference_mode()
    def encode(self, pixels: Tensor, grid: Sequence[int]) -> Tensor:
        """The embeddings of an image, whose encoding is left after each piece."""
        work = self.model.encode(pixels, grid)
        for _ in range(self.model.encoder_pieces):
            assert next(work) is None
        with pytest.raises(StopIteration) as end:
            next(work)
        return end.value.value.clone()

    def give(self, number: int, start: int, embeddings: Tensor, grid: Sequence[int] = ()) -> None:
        """What stands for the tokens of a sequence from an index on, in the order of these."""
        self._given.setdefault(number, []).append((start, embeddings))
        if (places := self.model.axis_positions(grid, len(embeddings))) is not None:
            self._places.setdefault(number, []).append((start, *places))

    def forget(self, number: int) -> None:
        """Give the blocks of a sequence back."""
        self._free += self._blocks.pop(number, [])
        self._given.pop(number, None)
        self._places.pop(number, None)

    def positions(self, number: int, length: int) -> Tensor:
        """Of the first tokens of a sequence on each axis, int32 `[axes, length]`."""
        parts, index, position = [], 0, 0
        for start, offsets, advance in self._places.get(number, []):
            position += start - index
            parts += [torch.arange(position + index - start, position).expand(3, -1), offsets + position]
            index, position = start + offsets.shape[1], position + advance
        parts.append(torch.arange(position, position + max(0, length - index)).expand(3, -1))
        return torch.cat(parts, 1)[:, :length].int()

    def _given_rows(self, order: list[int], batch: dict[int, list[int]]) -> GivenEmbeddings | None:
        rows, values, offset = [], [], 0
        for number in order:
            cached, count = self._lengths[number], len(batch[number])
            for start, embeddings in self._given.get(number, []):
                held = range(max(cached, start), min(cached + count, start + len(embeddings)))
                rows += [offset + position - cached for position in held]
                values += [embeddings[position - start] for position in held]
            offset += count
        return GivenEmbeddings(torch.tensor(rows), torch.stack(values)) if rows else None

    @torch.inference_mode()
    def step(self, batch: dict[int, list[int]]) -> dict[int, Tensor]:
        """Append the tokens to the sequences of these numbers; float32 logits `[new tokens, vocab]` of each."""
        order = sorted(batch, key=lambda number: len(batch[number]) > 1)
        tables, slots, positions = [], [], []
        for number in order:
            cached = self._lengths.setdefault(number, 0)
            blocks = self._blocks.setdefault(number, [])
            length = cached + len(batch[number])
            while len(blocks) * BLOCK_SIZE < length:
                blocks.append(self._free.pop())
            tables.append(torch.tensor(blocks, dtype=torch.int32))
            positions.append(self.positions(number, length)[:, cached:])
            slots += [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(cached, length)]
        counts = [len(batch[number]) for number in order]
        cached_lengths = [self._lengths[number] for number in order]
        inputs = StepInputs(
            input_lengths=torch.tensor(counts, dtype=torch.int32),
            cached_lengths=torch.tensor(cached_lengths, dtype=torch.int32),
            block_tables=torch.nn.utils.rnn.pad_sequence(tables, batch_first=True),
            slot_mapping=torch.tensor(slots, dtype=torch.int32),
            max_length=max(new + old for new, old in zip(counts, cached_lengths, strict=True)),
            ids=torch.tensor([token for number in order for token in batch[number]], dtype=torch.int32),
            positions=torch.cat(positions, 1)[0].contiguous(),
            axis_positions=torch.cat(positions, 1) if self._places else None,
            given=self._given_rows(order, batch),
        )
        step = self.model.context.device.prepare(inputs, self.model.ropes)
        logits = self.model.logits(self.model(step)).float()
        for number in order:
            self._lengths[number] += len(batch[number])
        return dict(zip(order, logits.split(counts), strict=True))

    def logprobs(self, ids: list[int], chunk: int) -> Tensor:
        """Log-probabilities of every position, `[tokens, vocab]`, prefilled in chunks."""
        number = len(self._lengths)
        parts = [self.step({number: ids[start : start + chunk]})[number] for start in range(0, len(ids), chunk)]
        return torch.cat(parts).log_softmax(-1)

    def generate(self, prompts: list[list[int]], count: int, chunk: int) -> list[list[int]]:
        """Greedy tokens. Prompts join one after the other, in chunks, while those before them decode."""
        first = len(self._lengths)
        answers: list[list[int]] = [[] for _ in prompts]
        waiting = [list(prompt) for prompt in prompts]
        while any(len(answer) < count for answer in answers):
            batch = {first + i: answer[-1:] for i, answer in enumerate(answers) if answer and len(answer) < count}
            joining = next((i for i, prompt in enumerate(waiting) if prompt), None)
            if joining is not None:
                batch[first + joining], waiting[joining] = waiting[joining][:chunk], waiting[joining][chunk:]
            for number, logits in self.step(batch).items():
                if not waiting[number - first]:
                    answers[number - first].append(int(logits[-1].argmax()))
        return answers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only slow down models this small, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def open_model() -> Callable[..., PagedModel]:
    """`open_model(directory, dtype=torch.float32, max_positions=256, communicator=SingleRank(),
    quantization=None, device=CmodelDevice(), activation_bits=16, head_bits=16)`."""
    return open_paged_model


def open_paged_model(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    max_positions: int = 256,
    communicator: Communicator | None = None,
    quantization: str | None = None,
    device: Device | None = None,
    activation_bits: Literal[8, 16] = 16,
    head_bits: Literal[8, 16] = 16,
) -> PagedModel:
    """The model of a checkpoint, on the cmodel or another device."""
    device, communicator = device or CmodelDevice(), communicator or SingleRank()
    bits = {"activation_bits": activation_bits, "head_bits": head_bits}
    context = ModelContext(device, communicator, dtype, max_positions, **bits)
    model_class = CLASSES[read_config(directory)["architectures"][0]]
    return PagedModel(load_model(directory, context, model_class=model_class, quantization=quantization))


@pytest.fixture
def changed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy with other tensors and another config.json: `changed("qwen2_moe", {name: tensor}, {key: value})`, where
    None removes one."""

    def copy(
        kind: str, tensors: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **overrides: Any
    ) -> Path:
        target = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(make_checkpoint(kind, **overrides), target)
        if config:
            path = target / "config.json"
            path.write_text(json.dumps(_changed(json.loads(path.read_text()), config)))
        if tensors:
            path = target / "model.safetensors"
            save_file(_changed(load_file(path), tensors), path, metadata={"format": "pt"})
        return target

    return copy


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (values | changes).items() if value is not None}


@pytest.fixture(scope="session")
def make_llava(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_llava("mistral", text={...}, vision={...}, **config)`: a directory as transformers writes it."""
    made: dict[str, Path] = {}

    def make(
        kind: str = "llama", text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **config: Any
    ) -> Path:
        key = json.dumps([kind, text, vision, config], sort_keys=True)
        if key not in made:
            made[key] = save_llava(tmp_path_factory.mktemp("llava"), kind, text or {}, vision or {}, config)
        return made[key]

    return make


@pytest.fixture
def renamed(tmp_path: Path) -> Callable[..., Path]:
    """`renamed(directory, rename, tensors, config)`: a copy with other names, further tensors and other keys."""

    def copy(
        directory: Path,
        rename: Callable[[str], str],
        tensors: dict[str, Tensor] | None = None,
        config: dict[str, Any] | None = None,
    ) -> Path:
        target = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(directory, target)
        path = target / "model.safetensors"
        found = {rename(name): tensor for name, tensor in load_file(path).items()} | (tensors or {})
        save_file(found, path, metadata={"format": "pt"})
        settings = json.loads((target / "config.json").read_text())
        for key, value in (config or {}).items():
            settings[key] = settings[key] | value if isinstance(value, dict) else value
        (target / "config.json").write_text(json.dumps(settings))
        return target

    return copy
