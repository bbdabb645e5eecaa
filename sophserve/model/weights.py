"""The tensors of a checkpoint's safetensors files, mapped into memory.

The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sophserve.checkpoint import INDEX, read_json
from sophserve.errors import CheckpointError

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
FLOATS = ("F32", "F16", "BF16")
"""safetensors' names of the dtypes of plain weights."""
INDICES = ("I32", "I64")
"""Those of tensors that hold indices."""

_STACKED = re.compile(r"(?P<experts>.+\.experts)\.(?P<parts>gate_up|gate|up|down)_proj(?:\.weight)?")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and what it looks like. dtype is safetensors' name, such as BF16.

    within: where a matrix lies in a stack of matrices, which is the tensor of that name: its number, and its rows.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    within: tuple[int, range] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor in its file."""
        return prod(self.shape) * _BYTES[self.dtype]

    def index(self, part: tuple[slice, ...]) -> Any:
        """The index, in the tensor of the name, of a part of this one; an empty part is all of it."""
        if self.within is None:
            return part or ...
        number, rows = self.within
        held = rows[part[0]] if part else rows
        return (number, slice(held.start, held.stop), *part[1:])

    def check_dtype(self, dtypes: tuple[str, ...]) -> None:
        """Raise CheckpointError if the dtype is none of these."""
        if self.dtype not in dtypes:
            raise CheckpointError(
                f"{self.name} in {self.file} is stored as {self.dtype}; what can be read there is {', '.join(dtypes)}"
            )


def find_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by its name. Only the files' headers are read. Raises CheckpointError."""
    found: dict[str, StoredTensor] = {}
    files, places = _files(directory)
    for file in files:
        for tensor in _read_header(file):
            # Of what the index does not list, or lists elsewhere, nobody makes use.
            if places is not None and places.get(tensor.name) != file.name:
                continue
            if tensor.name in found:
                raise CheckpointError(f"{tensor.name} is in both {found[tensor.name].file} and {file}; remove one")
            found[tensor.name] = tensor
    return found


def unstack(tensor: StoredTensor) -> dict[str, StoredTensor]:
    """A tensor with a matrix for each expert of a layer, as transformers holds it in memory and some tools write it, as
    those of each expert, by the names that most checkpoints give them; nothing for any other tensor. Raises
    CheckpointError for one of that name which holds no such matrices."""
    match = _STACKED.fullmatch(tensor.name)
    if match is None:
        return {}
    parts = match["parts"].split("_")
    if len(tensor.shape) != 3 or 0 in tensor.shape or tensor.shape[1] % len(parts):
        raise CheckpointError(
            f"{tensor.name} in {tensor.file} has shape {list(tensor.shape)}, but a stack of experts has a matrix for "
            f"each, [experts, {'2 * inner' if len(parts) == 2 else 'outputs'}, inputs]"
        )
    experts, (count, rows, columns) = match["experts"], tensor.shape
    each = rows // len(parts)
    return {
        f"{experts}.{expert}.{part}_proj.weight": replace(
            tensor, shape=(each, columns), within=(expert, range(at * each, (at + 1) * each))
        )
        for expert in range(count)
        for at, part in enumerate(parts)
    }


def read_tensors(wanted: dict[str, tuple[StoredTensor, tuple[slice, ...]]]) -> dict[str, Tensor]:
    """The given parts of tensors, by the keys of `wanted`, as views of their mapped files.

    Files are opened anew by every call: when the views are gone, so are the pages that were read, and the process never
    holds more of the checkpoint than what it reads at once. Opening one takes less than a millisecond.
    """
    tensors = {}
    files: dict[Path, Any] = {}
    for key, (stored, part) in wanted.items():
        try:
            if stored.file not in files:
                files[stored.file] = safe_open(stored.file, framework="pt")
            tensors[key] = files[stored.file].get_slice(stored.name)[stored.index(part)]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {stored.name} from {stored.file}: {error}") from None
    return tensors


def _files(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files to read, and where an index has one, the file's name of each tensor."""
    single = directory / "model.safetensors"
    if single.is_file():
        return [single], None
    if not (directory / INDEX).is_file():
        # Files of the consolidated format repeat the weights under other names.
        files = sorted(directory.glob("*.safetensors"))
        return [file for file in files if not file.name.startswith("consolidated")] or files, None
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / INDEX} has no weight_map; download it again")
    names = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{directory} lacks {listed(missing)}, which {INDEX} names; download it again")
    return [directory / name for name in names], weight_map


def _read_header(file: Path) -> list[StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            return [
                StoredTensor(name, file, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
            ]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file ({error}); download it again", help="truncated"
        ) from None


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the host, which live as long as they are referred to. torch gives them by way of NumPy,
    which sophserve does without."""
    values = tensor.contiguous()
    memory = (ctypes.c_ubyte * values.nbytes).from_address(values.data_ptr())
    memory.owner = values  # type: ignore[attr-defined]
    return memoryview(memory).cast("B")


def listed(names: list[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
