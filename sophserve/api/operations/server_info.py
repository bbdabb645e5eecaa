"""/server_info: how this server is set up."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from aiohttp import web

from sophserve.api.generation.served_model import SERVED_MODEL
from sophserve.api.generation.tools import reasoning_parser, tool_parser
from sophserve.api.http.body import json_response
from sophserve.api.http.upload import MAX_BODY_BYTES
from sophserve.link.messages import ModelInfo
from sophserve.media.limits import media_limits
from sophserve.plugins import Registered
from sophserve.version import VERSION


async def server_info(request: web.Request) -> web.Response:
    """The options in effect, the model and its memory. Keys and the paths of keys are left out."""
    served = request.app[SERVED_MODEL]
    images = media_limits(served.engine.config, served.config)
    server: dict[str, Any] = msgspec.to_builtins(served.config)
    server["api_key"] = bool(served.config.keys)
    del server["ssl_keyfile"], server["api_key_file"]
    answer = {
        "version": VERSION,
        "uptime": round(time.monotonic() - served.started, 3),
        "model": _model(served.engine.info, served.model_names),
        "memory": _memory(served.engine.info),
        "limits": {"request_bytes": MAX_BODY_BYTES, "images": images.images, "image_bytes": images.bytes},
        "pooling": served.pooling,
        "parsers": {"tool_calls": _name(tool_parser(served)), "reasoning": _name(reasoning_parser(served))},
        "sampling_defaults": served.sampling_defaults,
        "engine_config": msgspec.to_builtins(served.engine.config),
        "server_config": server,
    }
    return json_response(answer)


def _name(parser: Registered | None) -> str | None:
    return parser.name if parser else None


def _model(info: ModelInfo, names: list[str]) -> dict[str, Any]:
    return {
        "names": names,
        "max_model_len": info.max_model_len,
        "vocab_size": info.vocab_size,
        "dtype": info.dtype,
        "activation_bits": info.activation_bits,
        "device": info.device,
    }


def _memory(info: ModelInfo) -> dict[str, int]:
    """Bytes, of one rank."""
    return {
        "weights": info.weight_bytes,
        "kv_cache": info.kv_cache_bytes,
        "kv_cache_tokens": info.num_blocks * info.block_size,
        "kv_cache_blocks": info.num_blocks,
        "block_size": info.block_size,
        "free": info.free_memory,
        "total": info.total_memory,
    }
