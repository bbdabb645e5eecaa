"""Writes a plain checkpoint anew with other weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import TensorSpec, safe_open, serialize_file
from torch import Tensor

from sophserve.checkpoint import INDEX, quantization_config, read_config, read_json
from sophserve.errors import CheckpointError
from sophserve.model.quantization import is_rounded
from sophserve.model.weights import FLOATS, StoredTensor, find_tensors, read_tensors, unstack

# The weights of the decoder's layers; embeddings and the head keep their precision.
_LINEAR = re.compile(r".*\blayers\.\d+\..*\.weight")


def linear_weights(directory: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Of a plain checkpoint the weights that are to be quantized, by their names, those of stacked experts by names of
    their own; and the linear layers that are left plain, in order. Raises CheckpointError."""
    if quantization_config(directory, read_config(directory)) is not None:
        raise CheckpointError(f"{directory} is quantized already")
    chosen: dict[str, StoredTensor] = {}
    plain = []
    for stored in find_tensors(directory).values():
        for name, tensor in (unstack(stored) or {stored.name: stored}).items():
            layer = name.removesuffix(".weight")
            if len(tensor.shape) != 2 or tensor.dtype not in FLOATS or not _LINEAR.fullmatch(name):
                continue
            if is_rounded(layer):
                chosen[name] = tensor
            else:
                plain.append(layer)
    numbers = re.compile(r"\d+")
    return chosen, sorted(plain, key=lambda layer: ([int(each) for each in numbers.findall(layer)], layer))


def head_weights(directory: Path) -> dict[str, StoredTensor]:
    """The head's weight by its name, and the embedding's where it is tied. Raises CheckpointError where there is none.

    Where files hold another head than the embedding that the config ties it to, it is not tied."""
    stored = find_tensors(directory)
    heads, embeddings = (
        {name: tensor for name, tensor in stored.items() if re.search(rf"(^|\.){layer}\.weight$", name)}
        for layer in ("lm_head", "embed_tokens")
    )
    if read_config(directory).get("tie_word_embeddings") and not (
        heads and _differ(*heads.values(), *embeddings.values())
    ):
        heads |= embeddings
    if not heads:
        raise CheckpointError(f"{directory} has no head to quantize; leave out --head-bits")
    if name := next((name for name, tensor in heads.items() if tensor.dtype not in FLOATS), None):
        raise CheckpointError(f"{name} in {directory} is {heads[name].dtype}, no plain weight; leave out --head-bits")
    return heads


def _differ(*tensors: StoredTensor) -> bool:
    first, *others = read_tensors({each.name: (each, ()) for each in tensors}).values()
    return any(not torch.equal(first, other) for other in others)


def write_checkpoint(
    source: Path,
    target: Path,
    chosen: Mapping[str, StoredTensor],
    change: Callable[[str, Tensor], dict[str, Tensor]],
    config: dict[str, Any],
    on_progress: Callable[[int, int], None],
) -> None:
    """Copy a checkpoint, with the tensors that `change` gives (by last component, of a name and its values) in place of
    each chosen one. Stacked experts become tensors of their own.

    config becomes its quantization_config. The target is there when all is written, and not before.
    """
    stored = find_tensors(source)
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in chosen.items():
        parts.setdefault(tensor.name, {})[name.removesuffix("weight")] = tensor
    files = sorted({tensor.file for tensor in stored.values()})
    total, done = sum(tensor.nbytes for tensor in stored.values()), 0
    weight_map: dict[str, str] = {}
    with _all_or_nothing(target) as partial:
        for file in files:
            tensors: dict[str, Tensor] = {}
            with safe_open(file, framework="pt") as opened:
                for name in sorted(tensor.name for tensor in stored.values() if tensor.file == file):
                    value = opened.get_tensor(name)
                    for layer, part in parts.get(name, {}).items():
                        changed = change(f"{layer}weight", value[part.index(())])
                        tensors |= {f"{layer}{last}": each.contiguous() for last, each in changed.items()}
                    if name not in parts:
                        tensors[name] = value.clone().contiguous()
                    done += stored[name].nbytes
                    on_progress(done, total)
            _save(tensors, partial / file.name)
            # The library lets only the owner read it.
            shutil.copymode(file, partial / file.name)
            weight_map |= dict.fromkeys(tensors, file.name)
        if len(files) > 1:
            size = sum((partial / file.name).stat().st_size for file in files)
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (partial / INDEX).write_text(json.dumps(index, indent=2))
        for path in source.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name not in (INDEX, "config.json"):
                shutil.copy(path, partial)
        settings = read_json(source / "config.json") | {"quantization_config": config}
        (partial / "config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False))


@contextmanager
def _all_or_nothing(target: Path) -> Iterator[Path]:
    """A directory that becomes the target at the end. Raises CheckpointError."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already; give a directory that is empty or does not exist")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """As safetensors.torch.save_file, which needs NumPy."""
    specs = {
        name: TensorSpec(
            dtype=str(value.dtype).removeprefix("torch."),
            shape=value.shape,
            data_ptr=value.data_ptr(),
            data_len=value.nbytes,
        )
        for name, value in tensors.items()
    }
    serialize_file(specs, str(path), {"format": "pt"})
