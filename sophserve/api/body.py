"""From the bytes of a request to a checked struct, and from an answer to bytes."""

from __future__ import annotations

import logging
import re
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from sophserve.api.serving import SERVING
from sophserve.errors import RequestError

log = logging.getLogger(__name__)
T = TypeVar("T", bound=msgspec.Struct)

# Sent by clients as a matter of course, and without influence on the answer.
_WITHOUT_EFFECT = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
# An answer that silently left these out would be a wrong one. Some are fields of one kind of request only.
_UNSUPPORTED = frozenset(
    {
        "audio",
        "best_of",
        "chat_template",
        "function_call",
        "functions",
        "grammar",
        "json_schema",
        "logprob_token_ids",
        "modalities",
        "prompt_embeds",
        "regex",
        "suffix",
        "use_beam_search",
        "web_search_options",
    }
)
_LONGEST_NAME = 64
_NEUTRAL: dict[str, Any] = {"best_of": 1, "modalities": ["text"]}


async def read_body(request: web.Request, kind: type[T]) -> tuple[T, list[str]]:
    """The body as a struct, and the names of fields in it that mean nothing here. Raises RequestError."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise RequestError("compressed bodies are not supported; leave out Content-Encoding")
    fields = _decode(await request.read())
    for name in sorted((_UNSUPPORTED & fields.keys()).difference(kind.__struct_fields__)):
        if fields[name] and fields[name] != _NEUTRAL.get(name):
            raise RequestError(f"{name} is not supported; leave it out", name, "unsupported_parameter")
    unknown = sorted(fields.keys() - set(kind.__struct_fields__) - _WITHOUT_EFFECT - _UNSUPPORTED)
    if unknown and request.app[SERVING].config.reject_unknown_fields:
        raise RequestError(f"{_shown(unknown)}: there is no such field; leave it out", unknown[0][:_LONGEST_NAME])
    return checked(fields, kind), unknown


def checked(fields: dict[str, Any], kind: type[T]) -> T:
    """The fields as a struct. Raises RequestError that names the wrong one."""
    try:
        return msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None


def json_response(value: Any, headers: dict[str, str] | None = None) -> web.Response:
    """An answer of status 200."""
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", headers=headers)


def warn_unknown(names: list[str]) -> dict[str, str]:
    """Log that these fields were ignored; returns the header that tells the client."""
    if not names:
        return {}
    shown = _shown(names)
    log.warning("ignored unknown fields of a request: %s", shown)
    return {"X-Sophserve-Warnings": f"ignored unknown fields: {shown}"}


def _shown(names: list[str]) -> str:
    return ", ".join(ascii(name[:_LONGEST_NAME]) for name in names[:20])


def _decode(body: bytes) -> dict[str, Any]:
    try:
        body.decode()
        fields = msgspec.json.decode(body)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except msgspec.MsgspecError as error:
        where = "" if "(byte " in str(error) else f" (byte {len(body)})"
        raise RequestError(f"the body is not JSON: {error}{where}") from None
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object")
    return fields


def _wrong_type(problem: str) -> RequestError:
    """From "Expected `int`, got `str` - at `$.messages[0].role`"."""
    if missing := re.search(r"missing required field `(\w+)`", problem):
        name = missing[1]
        reason = "is missing"
    else:
        name = ""
        reason = "must be " + re.sub(r"^Expected ", "", problem.partition(" - at ")[0]).replace("`", "")
    if where := re.search(r"`\$\.?([^`]*)`$", problem):
        name = f"{where[1]}.{name}".strip(".").removesuffix("[...]")
    return RequestError(f"{name}: {reason}", name)
