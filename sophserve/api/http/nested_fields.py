"""Fields inside the fields of a body that no struct has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import msgspec
from msgspec import inspect

# Answers that come back as history have them, and clients add them as a matter of course: the prompt is right without.
WITHOUT_EFFECT = frozenset(
    {
        "annotations",
        "approval_request_id",
        "approve",
        "cache_control",
        "caller",
        "citations",
        "container_id",
        "data",
        "detail",
        "encrypted_content",
        "environment",
        "execution",
        "file_id",
        "fingerprint",
        "from",
        "id",
        "include_obfuscation",
        "index",
        "is_error",
        "logprobs",
        "max_output_length",
        "mcp_server_name",
        "parsed",
        "phase",
        "prompt_cache_breakpoint",
        "reason",
        "signature",
        "status",
        "to",
        "tool",
        "tool_changes",
        "tools",
        "toolset_name",
        "transformations",
        "trigger",
    }
)
# Known, too, but whoever sends them should hear that nothing comes of it.
NOTED = frozenset({"budget_tokens", "generate_summary", "task_budget"})
# As many as a header names.
_MOST = 20
# Python's float does not hold every number that may stand in what is kept as it is written.
_decode = msgspec.json.Decoder(float_hook=str).decode


def unread_fields(fields: dict[str, msgspec.Raw], kind: type[msgspec.Struct]) -> tuple[list[str], list[str]]:
    """Paths of what is left unread of a body's fields: those that are known to be without effect, and unknown ones. Of
    many some are told."""
    found = (
        path
        for name, inner in _structs(kind).items()
        if name in fields
        for path in _unread(_decode(fields[name]), inner, name)
    )
    paths = list(islice(found, _MOST))
    noted = [path for path in paths if path.rpartition(".")[2] in NOTED]
    return noted, [path for path in paths if path not in noted]


def _unread(value: Any, kind: inspect.Type, path: str) -> Iterator[str]:
    match kind:
        case inspect.UnionType(types):
            for each in types:
                yield from _unread(value, each, path)
        case inspect.ListType(item) if isinstance(value, list):
            for index, entry in enumerate(value):
                if isinstance(entry, dict | list):
                    yield from _unread(entry, item, f"{path}[{index}]")
        case inspect.StructType() if isinstance(value, dict):
            names, inside = _known(kind.cls), _structs(kind.cls)
            for name, entry in value.items():
                if name in inside:
                    yield from _unread(entry, inside[name], f"{path}.{name}")
                elif name not in names and name not in WITHOUT_EFFECT and entry is not None:
                    yield f"{path}.{name}"


@cache
def _known(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


@cache
def _structs(kind: type[msgspec.Struct]) -> dict[str, inspect.Type]:
    """The fields that have structs in them."""
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: field.type for field in info.fields if _holds_struct(field.type)}


def _holds_struct(kind: inspect.Type) -> bool:
    match kind:
        case inspect.UnionType(types):
            return any(map(_holds_struct, types))
        case inspect.ListType(item):
            return _holds_struct(item)
    return isinstance(kind, inspect.StructType)
