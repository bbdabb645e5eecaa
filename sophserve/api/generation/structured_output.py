"""The many fields that ask for structured output, as one constraint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from sophserve.api.generation.request_bodies import GenerationRequest, ResponseFormat
from sophserve.api.http.body import NOT_KEPT, warn_of
from sophserve.api.http.request_record import current_record
from sophserve.engine.engine import Engine
from sophserve.errors import RequestError
from sophserve.sampling import StructuredOutput
from sophserve.text.json_schema import prepared_form

_FIELDS = ("json", "regex", "choice", "grammar", "json_object")


def structured_output(body: GenerationRequest) -> StructuredOutput | None:
    """What the answer is to be kept to. Raises RequestError if that is not one thing."""
    asked = list(_asked(body))
    if len(asked) > 1:
        names = " and ".join(name for name, _, _ in asked)
        raise RequestError(f"{names} exclude each other; give one", asked[1][0])
    strict = body.response_format is None or body.response_format.strict
    return _constraint(*asked[0], strict) if asked else None


async def check_structured(engine: Engine, body: GenerationRequest, structured: StructuredOutput | None) -> None:
    """Raise RequestError for a constraint that the engine cannot keep to."""
    try:
        await engine.compile(structured, current_record.get().client)
    except RequestError as error:
        name = next((name for name, _, _ in _asked(body)), "tools")  # whose calls may be demanded
        raise type(error)(str(error), name, error.code) from None


def _asked(body: GenerationRequest) -> Iterator[tuple[str, str, Any]]:
    """The fields that hold a constraint: the name of each, what it is called within structured_outputs, its value."""
    if body.response_format and (asked := _of_format(body.response_format)):
        yield "response_format", *asked
    for name in ("structured_outputs", "guided_decoding"):
        if (group := getattr(body, name)) is not None:
            if group.structural_tag is not None:
                raise RequestError(f"{name}.structural_tag is not supported; use another field of it", name)
            given = {field: value for field in _FIELDS if (value := getattr(group, field)) is not None}
            if not given:
                raise RequestError(f"{name} has no constraint; give one of {', '.join(_FIELDS)}", name)
            for field, value in given.items():
                if value is not False:
                    yield f"{name}.{field}", field, value
    for field in ("json", "regex", "choice", "grammar"):
        if (value := getattr(body, f"guided_{field}")) is not None:
            yield f"guided_{field}", field, value


def _of_format(wanted: ResponseFormat) -> tuple[str, Any] | None:
    match wanted.type:
        case "text":
            return None
        case "json_object" | "json_schema" if wanted.schema is not None:
            return "json", wanted.schema
        case "json_object":
            return "json_object", True
        case "json_schema" if wanted.json_schema:
            return "json", wanted.json_schema.schema
        case "json_schema":
            raise RequestError(
                'response_format of type json_schema needs "json_schema": {"name": ..., "schema": ...}',
                "response_format.json_schema",
            )
    raise RequestError(
        f"response_format {wanted.type!r} is not supported; give text, json_object or json_schema", "response_format"
    )


def _constraint(name: str, field: str, value: Any, strict: bool) -> StructuredOutput:
    match field:
        case "json":
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            try:
                form, not_kept = prepared_form(StructuredOutput("json_schema", text), strict)
            except RequestError as error:
                raise RequestError(f"{name}: {error}", name) from None
            warn_of(NOT_KEPT, not_kept)
            return form
        case "choice":
            return StructuredOutput("choice", msgspec.json.encode(value).decode())
        case "regex":
            return StructuredOutput("regex", value)
        case "grammar":
            return StructuredOutput("lark", value)
    return StructuredOutput("json_object")
