"""From the bytes of a request to a checked struct, and from an answer to bytes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from sophserve.api.http.connections import CONNECTIONS
from sophserve.api.http.nested_fields import unread_fields
from sophserve.api.http.request_record import current_record
from sophserve.api.http.text_threads import INLINE, TEXT_THREADS
from sophserve.api.http.upload import received
from sophserve.errors import RequestError
from sophserve.json_size import JsonTooLarge, check_json

log = logging.getLogger(__name__)
T = TypeVar("T", bound=msgspec.Struct)

# fmt: off
# Sent by clients as a matter of course, and without influence on the answer.
_WITHOUT_EFFECT = frozenset({
    "cache_control", "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "stream_options",
    "user",
})
# Known, and the answer is right without them, but whoever sends them should hear that nothing comes of it.
_NOTED = frozenset({
    "container", "context_management", "diagnostics", "inference_geo", "max_tool_calls",
    "prompt_cache_options", "prompt_cache_retention", "speed", "user_profile_id", "verbosity", "workspace_id",
})
# An answer that silently left these out would be a wrong one. Some are fields of one kind of request only.
_UNSUPPORTED = frozenset({
    "audio", "best_of", "chat_template", "function_call", "functions", "grammar", "json_schema", "logprob_token_ids",
    "media_io_kwargs", "mm_processor_kwargs", "modalities", "moderation", "multi_modal_data", "prompt_embeds", "regex",
    "suffix", "use_beam_search", "web_search_options",
})
# fmt: on
WITHOUT_EFFECT = "without effect"
NOT_IN_PROMPT = "left out by the chat template"
ITEMS_LEFT_OUT = "entries of the conversation that say nothing to this model were left out"
LEFT_OUT = "tools of types that are not supported were left out"
NOT_KEPT = "not kept to"
_LONGEST_NAME = 64
_MOST_FIELDS = 10_000
_NEUTRAL: dict[str, Any] = {"best_of": 1, "modalities": ["text"]}

# Bytes that a field may have. What a conversation or a prompt is made of is only bounded together, with the body.
_WITHOUT_LIMIT = frozenset({"messages", "prompt", "input", "items", "content", "tokens", "documents"})
_MOST_BYTES = {
    **dict.fromkeys(("system", "instructions"), 1 << 22),
    **dict.fromkeys(("response_format", "structured_outputs", "guided_decoding", "output_config", "text"), 1 << 21),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "output_format"), 1 << 21),
    **dict.fromkeys(("tools", "allowed_token_ids", "chat_template"), 1 << 20),
    "chat_template_kwargs": 1 << 18,
    "prediction": 1 << 20,
}
_MOST_BYTES_OF_OTHERS = 1 << 16

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


async def read_body(request: web.Request, kind: type[T], optional: bool = False) -> tuple[T, list[str]]:
    """The body as a struct, and the names of fields in it that mean nothing here. If optional, none is as good as
    `{}`. Raises RequestError."""
    async with received(request) as body:
        if optional and not body:
            return kind(), []
        return await parse_body(request.app, body, kind)


async def parse_body(app: web.Application, body: bytearray, kind: type[T]) -> tuple[T, list[str]]:
    """As read_body, of what has come. Raises RequestError."""
    current_record.get().body_bytes = len(body)
    work = partial(_parsed, body, kind, app[CONNECTIONS].config.reject_unknown_fields)
    found, unknown, idle = await app[TEXT_THREADS].run(work)
    warn_of(WITHOUT_EFFECT, idle)
    return found, unknown


def _parsed(body: bytearray, kind: type[T], reject_unknown: bool) -> tuple[T, list[str], list[str]]:
    with _json_errors(body):
        check_json(body) if len(body) > INLINE else body.decode()
        fields = _fields(body)
    if len(fields) > _MOST_FIELDS:
        raise RequestError(f"the body has {len(fields)} fields; at most {_MOST_FIELDS} are possible")
    for name in sorted((_UNSUPPORTED & fields.keys()).difference(kind.__struct_fields__)):
        value = len(fields[name]) > _MOST_BYTES_OF_OTHERS or msgspec.json.decode(fields[name])
        if value and value != _NEUTRAL.get(name):
            raise RequestError(f"{name} is not supported; leave it out", name, "unsupported_parameter")
    known = set(kind.__struct_fields__)
    idle = [name for name in sorted(_NOTED & fields.keys() - known) if bytes(fields[name]) != b"null"]
    unknown = sorted(fields.keys() - known - _WITHOUT_EFFECT - _NOTED - _UNSUPPORTED)
    with _json_errors(body):
        deep_idle, deep_unknown = unread_fields(fields, kind)
    idle, unknown = idle + deep_idle, unknown + deep_unknown
    if unknown and reject_unknown:
        raise RequestError(f"{_shown(unknown)}: there is no such field; leave it out", unknown[0][:_LONGEST_NAME])
    for name in (known & fields.keys()) - _WITHOUT_LIMIT:
        most = _MOST_BYTES.get(name, _MOST_BYTES_OF_OTHERS)
        if len(fields[name]) > most:
            raise RequestError(f"{name} has {len(fields[name])} bytes of JSON; at most {most} are possible", name)
    with _json_errors(body):
        return _decoder(kind)(body), unknown, idle


@cache
def _decoder(kind: type[T]) -> Callable[[bytes | bytearray], T]:
    return msgspec.json.Decoder(kind).decode


def checked(fields: Mapping[str, Any], kind: type[T], strict: bool = True, at: str = "") -> T:
    """The fields as a struct; if not strict, texts may stand for numbers. at: where they stand in the body. Raises
    RequestError that names the wrong one."""
    try:
        return msgspec.convert(fields, kind, str_keys=True, strict=strict)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise _wrong_type(f"{problem} - at `$.{at}{path.removesuffix('`')}`" if at else str(error)) from None


def read_query(request: web.Request, kind: type[T]) -> T:
    """The parameters of the URL as a struct. Raises RequestError."""
    return checked(dict(request.query), kind, strict=False)


def json_response(value: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json", headers=headers)


def warn_of(what: str, names: list[str]) -> None:
    """Have the answer's header say something about these fields or entries of the request."""
    if names:
        current_record.get().warnings.append(f"{what}: {_shown(names)}")


def warn_unknown(names: list[str]) -> dict[str, str]:
    """Log that these fields were ignored; returns the header that tells the client, of these and of all else that
    there is to say."""
    if names:
        log.warning("ignored %d unknown fields of a request", len(names))  # the names are the client's
        warn_of("ignored unknown fields", names)
    warnings = current_record.get().warnings
    return {"X-Sophserve-Warnings": "; ".join(warnings)} if warnings else {}


def _shown(names: list[str]) -> str:
    return ", ".join(ascii(name[:_LONGEST_NAME]) for name in names[:20])


@contextmanager
def _json_errors(body: bytearray) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except JsonTooLarge as error:
        raise RequestError(f"the body {error}") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        if not body.lstrip().startswith(b"{"):
            raise RequestError("the body must be a JSON object") from None
        raise _wrong_type(str(error)) from None
    except msgspec.MsgspecError as error:
        where = "" if "(byte " in str(error) else f" (byte {len(body)})"
        raise RequestError(f"the body is not JSON: {error}{where}") from None


def _wrong_type(problem: str) -> RequestError:
    """From "Expected `int`, got `str` - at `$.messages[0].role`"."""
    name, cause = "", None
    wrong = problem.partition(" - at ")[0].replace("`", "")
    if missing := re.search(r"missing required field `(\w+)`", problem):
        name = missing[1]
        reason = cause = "is missing"
    elif wrong.startswith("Expected "):
        reason = cause = wrong.replace("Expected ", "must be ", 1)
    else:
        reason = {"Integer value out of range": "has a number that is out of range"}.get(wrong, wrong)
    if where := re.search(r"`\$\.?([^`]*)`$", problem):
        name = f"{where[1]}.{name}".strip(".").removesuffix("[...]")
    return RequestError(f"{name}: {reason}", name, cause=cause)
