"""EngineConfig: every option of the server, once. The command line and the embedded API are made from it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sophserve.errors import ConfigError


class EngineConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options of DESIGN's command line that concern the engine and its workers. Raises ConfigError."""

    model: Annotated[str, Meta(description="a directory with a checkpoint, or a Hub id")]
    device: Annotated[str, Meta(description="auto, or a device that a plugin provides, such as cmodel")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"], Meta(description="auto: as in config.json")
    ] = "auto"
    max_model_len: Annotated[int | None, Meta(description="longest prompt plus answer; default: from config.json")] = (
        None
    )
    max_num_seqs: Annotated[int, Meta(description="most sequences that run at once")] = 256
    max_num_batched_tokens: Annotated[int, Meta(description="most tokens of one step, decodes and prefills")] = 2048
    block_size: Annotated[int, Meta(description="tokens of one KV block")] = 16
    kv_cache_memory: Annotated[
        str, Meta(description="such as 2GiB; auto: a share of the device's free memory")
    ] = "auto"
    enable_prefix_caching: Annotated[bool, Meta(description="reuse KV blocks of equal prompt beginnings")] = True
    enable_chunked_prefill: Annotated[bool, Meta(description="split long prompts over steps")] = True
    seed: Annotated[int | None, Meta(description="makes requests without a seed of their own repeatable")] = None
    chat_template: Annotated[str | None, Meta(description="a file with the chat template to use instead")] = None

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{option(name)} must be at least 1, got {value}")
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ConfigError(
                f"--max-num-batched-tokens ({self.max_num_batched_tokens}) must be at least --max-num-seqs "
                f"({self.max_num_seqs}), or running requests could not all take a step; raise the one or lower the other"
            )
        self.kv_cache_bytes  # noqa: B018 - raises for a malformed size

    @property
    def kv_cache_bytes(self) -> int | None:
        """kv_cache_memory in bytes; None for auto."""
        return None if self.kv_cache_memory == "auto" else parse_size(self.kv_cache_memory)


_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {f"{_letter}iB": 1024**_power, f"{_letter}B": 1000**_power, _letter: 1024**_power}


def parse_size(text: str) -> int:
    """Bytes of a size such as `2GiB`, `500MB` or `1048576`. Raises ConfigError."""
    digits = text.strip().rstrip("BKMGTi")
    unit = text.strip()[len(digits) :].strip()
    try:
        return int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError):
        raise ConfigError(f"cannot read the size {text!r}; write it like 2GiB, 500MB or a number of bytes") from None


def option(field: str) -> str:
    """The command line's name of a config field: max_num_seqs is --max-num-seqs."""
    return "--" + field.replace("_", "-")
