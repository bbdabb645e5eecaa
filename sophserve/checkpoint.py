"""Finds a checkpoint and reads its JSON files. Free of torch: the server process uses it too."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sophserve.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SHIPPED = {name: Path(__file__).with_name("shipped") / name for name in ("demo", "demo-gptq")}
"""The models that are part of the package, by name."""

_SAMPLE = 1 << 16  # bytes
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]  # also in folders: * is any text
_CONFIGURATION = ["config.json", "quantize_config.json", "quant_config.json"]
# Folders hold other formats, but for 1_Pooling/config.json; consolidated files the same weights under other names.
_NOT_DOWNLOADED = ["[!1]*/*", "1[!_]*/*", "1_Pooling/[!c]*", "consolidated*"]

# What a config.json says of the whole model wins over what its text_config says of the same.
_OF_THE_WHOLE = (
    ("architectures", "model_type"), ("dtype", "torch_dtype"), ("quantization_config", "compression_config"),
    ("tie_word_embeddings",), ("bos_token_id",), ("eos_token_id",), ("pad_token_id",), ("_name_or_path",),
    ("transformers_version",), ("text_config",), ("vision_config",),
)  # fmt: skip


def resolve_model(model: str) -> Path:
    """The directory of a checkpoint: `model` itself, a shipped one, or where the Hub's model was downloaded to.

    Raises CheckpointError if there is none, or if it lacks a file.
    """
    directory = _find(model, _DOWNLOADED)
    _check_files(directory)
    return directory


def resolve_smaller(model: str) -> Path:
    """As resolve_model, of a model that guesses: a head has no tokenizer."""
    directory = _find(model, _DOWNLOADED)
    _check_files(directory, tokenizer=False)
    return directory


def resolve_config(model: str) -> Path:
    """As resolve_model, but all that the directory must have, and all that is downloaded, is the configuration."""
    directory = _find(model, _CONFIGURATION)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} has no config.json")
    return directory


def _find(model: str, files: list[str]) -> Path:
    directory = SHIPPED.get(model) or Path(model).expanduser()
    if directory.is_file():
        raise CheckpointError(f"{model} is a file; give the directory that holds it and its config.json")
    if directory.is_dir():
        return directory
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"there is no directory {model}; give a checkpoint's directory, a Hub id like org/name, or demo",
            help="no-directory",
        )
    return _download(model, files)


def digest(directory: Path) -> str:
    """What tells a checkpoint from others, such as a tuned one of the same shape: of its config.json, and of each file
    of weights the size, the beginning and the end."""
    found = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _SAMPLE))
            end = file.read(_SAMPLE)
            file.seek(0)
            for part in (path.name.encode(), size.to_bytes(8, "little"), file.read(_SAMPLE), end):
                found.update(part)
    return found.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a whole number that is written as 8192.0 is an int. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_float=_number)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def read_config(directory: Path) -> dict[str, Any]:
    """config.json. Of a model that reads more than text, the keys of its text_config stand at the top, too, where those
    of other decoders are. Raises CheckpointError."""
    return flattened(read_json(directory / "config.json"))


def flattened(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the keys of its text_config, if it has one, beside the others."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    kept = [keys for keys in _OF_THE_WHOLE if any(config.get(key) is not None for key in keys)]
    return config | {key: value for key, value in text.items() if not any(key in keys for keys in kept)}


def read_generation_config(directory: Path) -> dict[str, Any]:
    """generation_config.json, or {} where there is none. Raises CheckpointError."""
    path = directory / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def read_preprocessor_config(directory: Path) -> dict[str, Any]:
    """How a checkpoint's images are processed: `image_processor` of processor_config.json, which transformers 5 writes
    and prefers, or preprocessor_config.json; {} where there is neither. Raises CheckpointError."""
    path = directory / "processor_config.json"
    nested = read_json(path).get("image_processor") if path.is_file() else None
    if nested is not None:
        if not isinstance(nested, dict):
            raise CheckpointError(f"{path}: image_processor must be an object, got {nested!r}")
        return nested
    path = directory / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}


def quantization_config(directory: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint's quantization_config, with its quant_method, wherever it is; None for a plain checkpoint."""
    for key in ("quantization_config", "compression_config"):
        given = config.get(key)
        if given:
            if not isinstance(given, dict):
                raise CheckpointError(f"config.json's {key} must be an object, got {given!r}")
            return given
    # Written by tools of 2023, and by ModelOpt.
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (directory / name).is_file():
            return {"quant_method": method, **read_json(directory / name)}
    if (directory / "hf_quant_config.json").is_file():
        given = read_json(directory / "hf_quant_config.json").get("quantization")
        return {"quant_method": "modelopt", **(given if isinstance(given, dict) else {})}
    return None


def end_token_ids(directory: Path, tokenizer_eos: int | None) -> list[int]:
    """The tokens that end an answer: eos_token_id, a number or a list, of generation_config.json, else config.json,
    and the tokenizer's own. Raises CheckpointError for what is no token id."""
    ids: list[int] = []
    for name, config in (
        ("generation_config.json", read_generation_config(directory)),
        ("config.json", read_config(directory)),
    ):
        given = config.get("eos_token_id")
        if given is not None:
            ids = [_token_id(each, directory / name) for each in (given if isinstance(given, list) else [given])]
            break
    return list(dict.fromkeys(ids if tokenizer_eos is None else [*ids, tokenizer_eos]))


def _token_id(value: Any, path: Path) -> int:
    if isinstance(value, str) and value.isdecimal() and value.isascii():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise CheckpointError(f"{path}: eos_token_id must be a token id or a list of them, got {value!r}")
    return value


def read_pooling(directory: Path) -> str:
    """How the checkpoint makes embeddings, `last` or `mean`, as sentence-transformers notes it; last where it says
    nothing. Raises CheckpointError for another way."""
    path = directory / "1_Pooling" / "config.json"
    config = read_json(path) if path.is_file() else {}
    names = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}
    asked = sorted(name for name, value in config.items() if name.startswith("pooling_mode") and value is True)
    if not asked:
        return "last"
    if len(asked) > 1 or asked[0] not in names:
        raise CheckpointError(f"{path} asks for {' and '.join(asked)}; choose one with --pooling last or mean")
    return names[asked[0]]


def _check_files(directory: Path, *, tokenizer: bool = True) -> None:
    def has(*patterns: str) -> bool:
        return any(any(directory.glob(pattern)) for pattern in patterns)

    if not has("config.json"):
        raise CheckpointError(f"{directory} is not a checkpoint: it has no config.json")
    if not has("*.safetensors", INDEX):
        found = next((name for name in ("*.gguf", "*.bin", "*.pth", "*.pt") if has(name)), None)
        reason = f"; its {found} files cannot be served, convert them to safetensors" if found else ""
        raise CheckpointError(f"{directory} has no *.safetensors file{reason}", help="no-safetensors")
    if tokenizer and not has("tokenizer.json", "tokenizer.model", "vocab.json"):
        raise CheckpointError(f"{directory} has no tokenizer.json, no tokenizer.model and no vocab.json")


def _download(model: str, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=files, ignore_patterns=_NOT_DOWNLOADED))
    except GatedRepoError:
        raise CheckpointError(
            f"{model} is a gated model: accept its licence on the Hub and set HF_TOKEN to an access token",
            help="gated-model",
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no directory {model} and no public model of that name on the Hub; "
            "for a private one set HF_TOKEN to an access token",
            help="no-directory",
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"there is no directory {model}, and the model cannot be downloaded: the Hub is not reachable "
            "or HF_HUB_OFFLINE is set, and the local cache has nothing of that name",
            help="no-directory",
        ) from None
    # What else can go wrong depends on the HTTP library beneath, which differs between versions.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"cannot download {model} from the Hub: {type(error).__name__}: {reason}") from None
