"""OpenAI's own description of its API, as a judge of what is sent and answered."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError


class Judge:
    """openapi.json as JSON Schema: `nullable` beside a schema allows null, and where alternatives overlap, which those
    of input items do, it is enough that one of them fits."""

    def __init__(self, path: Path) -> None:
        document = json.loads(path.read_text(), object_hook=_plain)
        self.schemas, self._paths = document["components"]["schemas"], document["paths"]
        self._validator = cache(self._make)

    def problems(self, name: str, value: Any) -> dict[str, str]:
        """What is wrong with a value of that schema, by its path, such as `choices.*.index`."""
        found = {}
        for error in self._validator(name).iter_errors(value):
            for leaf in _leaves(error):
                steps = ["*" if isinstance(step, int) else step for step in leaf.absolute_path]
                if leaf.validator == "required":
                    steps += [each for each in leaf.validator_value if each not in leaf.instance][:1]
                found[".".join(steps)] = leaf.message[:200]
        return found

    def examples(self, path: str) -> Iterator[dict[str, Any]]:
        """The bodies of the requests that a path is explained with."""
        told = self._paths[path]["post"]["x-oaiMeta"]["examples"]
        for each in told if isinstance(told, list) else [told]:
            body = re.search(r"(?:-d|--data) '(.*)'", each["request"]["curl"], re.DOTALL)
            assert body
            yield json.loads(body[1])

    def fields(self, name: str) -> dict[str, Any]:
        """The schemas of an object's fields."""
        return dict(self._fields({"$ref": f"#/components/schemas/{name}"}))

    def bounds(self, schema: dict[str, Any]) -> list[Any]:
        """The values at the ends of what a schema allows: null, both truths, every name, the least and the largest
        number, the default."""
        schema, found = self._resolved(schema), []
        match schema:
            case {"enum": names}:
                found += names
            case {"type": "boolean"}:
                found += [False, True]
            case {"type": "null"}:
                found.append(None)
            case {"type": "integer" | "number"}:
                found += [schema[end] for end in ("minimum", "maximum") if end in schema]
        found += [schema["default"]] if "default" in schema else []
        for part in schema.get("anyOf", []):
            found += self.bounds(part)
        return list({json.dumps(value): value for value in found}.values())

    def _make(self, name: str) -> Draft202012Validator:
        root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": self.schemas}}
        return Draft202012Validator(root)

    def _fields(self, schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        schema = self._resolved(schema)
        for part in schema.get("allOf", []):
            yield from self._fields(part)
        yield from schema.get("properties", {}).items()

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self.schemas[schema["$ref"].rpartition("/")[2]]
        return schema


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(schema.get("oneOf"), list):
        schema["anyOf"] = schema.pop("oneOf")
    if schema.get("nullable") is True:
        del schema["nullable"]
        default = {"default": schema.pop("default")} if "default" in schema else {}
        return {"anyOf": [schema, {"type": "null"}], **default}
    return schema


def _leaves(error: ValidationError) -> Iterator[ValidationError]:
    """The innermost errors, of alternatives those of the one that was most probably meant."""
    branches: dict[Any, list[ValidationError]] = defaultdict(list)
    for each in error.context or []:
        branches[each.schema_path[0]].append(each)
    if not branches:
        yield error
        return

    def likeness(errors: list[ValidationError]) -> tuple[bool, int, int]:
        named = not any(each.validator == "enum" for each in errors)
        return named, min(len(each.absolute_path) for each in errors), -len(errors)

    for each in max(branches.values(), key=likeness):
        yield from _leaves(each)
