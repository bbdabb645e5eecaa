"""Keywords of JSON Schema that grammars have no words for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

# Of JSON Schema up to 2020-12, https://json-schema.org/draft/2020-12/schema, what llguidance refuses.
LACKING = frozenset(
    {
        *("$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"),
        *("contains", "minContains", "maxContains", "uniqueItems", "unevaluatedItems"),
        *("dependencies", "dependentRequired", "dependentSchemas", "propertyNames", "unevaluatedProperties"),
        *("if", "then", "else", "not"),
    }
)
_ANNOTATIONS = frozenset({"title", "description", "$comment", "default", "examples"})
# Escapes, classes and beginnings of groups, of which the last alternatives are not regular or not known.
_PATTERN_PART = re.compile(
    r"\\(?P<escape>.)|(?P<open>\[\^?\]?)|(?P<close>\])|(?P<group>\(\?(?:[=!>]|<[=!]|[^a-zA-Z:<-]))", re.DOTALL
)
_KNOWN_ESCAPES = re.compile(r"[dDwWsSnrtfvaxuUpPAz]|[!-/:;=?@\[-`{-~ ]")


def expressible(schema: Schema, target: Callable[[str], Any]) -> tuple[Schema | bool, list[str]]:
    """The schema itself, not those within, with what a grammar has words for, and the names of keywords that it leaves
    out although they say something. target: what a reference leads to."""
    if schema.get("not") in (True, {}):
        return False, []
    kept = {key: value for key, value in schema.items() if key not in LACKING or _of_closing(key, value)}
    lost = [key for key in schema if key not in kept and not _says_nothing(key, schema)]
    if isinstance(pattern := kept.get("pattern"), str) and not _regular(pattern):
        del kept["pattern"]
        lost.append("pattern")
    if isinstance(patterns := kept.get("patternProperties"), dict) and not all(map(_regular, patterns)):
        kept["patternProperties"] = {pattern: part for pattern, part in patterns.items() if _regular(pattern)}
        lost.append("patternProperties")
    if isinstance(choices := kept.get("oneOf"), list):
        lost += ["oneOf"] * (not _exclusive(choices, target))
        del kept["oneOf"]
        if "anyOf" in kept:
            others = kept.get("allOf")
            kept["allOf"] = [*(others if isinstance(others, list) else []), {"anyOf": choices}]
        else:
            kept["anyOf"] = choices
    return kept, lost


def _of_closing(key: str, value: Any) -> bool:
    """Whether it says which members an object may have besides, which is put in other words elsewhere."""
    return key == "unevaluatedProperties" and isinstance(value, bool)


def _says_nothing(key: str, schema: Schema) -> bool:
    value = schema[key]
    match key:
        case "uniqueItems" | "not":
            return value is False
        case "if":
            return "then" not in schema and "else" not in schema
        case "then" | "else" | "minContains" | "maxContains" | "$dynamicAnchor" | "$recursiveAnchor":
            return True  # alone, and beside what they belong to that is named
        case "contains":
            return schema.get("minContains") == 0 and "maxContains" not in schema
        case "propertyNames" if isinstance(value, dict):
            return value.keys() <= _ANNOTATIONS | {"type"} and value.get("type", "string") == "string"
    return value in (True, {})


def _regular(pattern: str) -> bool:
    """Whether a pattern does without what looks around it or back, and without other dialects' escapes."""
    inside = False
    for part in _PATTERN_PART.finditer(pattern):
        if escape := part["escape"]:
            if not _KNOWN_ESCAPES.fullmatch(escape):
                return False
        elif part["open"]:
            inside = True
        elif part["close"]:
            inside = False
        elif not inside:
            return False
    return not inside


def _exclusive(choices: list[Any], target: Callable[[str], Any]) -> bool:
    """Whether a value can fit one of these only, as far as is easily seen: by its type, or a member that all have."""
    found = [target(choice["$ref"]) if isinstance(choice, dict) and "$ref" in choice else choice for choice in choices]
    schemas = [choice for choice in found if isinstance(choice, dict)]
    if len(schemas) < len(found):
        return False
    names = schemas[0].get("required", []) if schemas else []
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return _disjoint(list(map(_types, schemas))) or any(
        _disjoint([_values(schema, name) for schema in schemas]) for name in names
    )


def _disjoint(sets: list[frozenset[str]]) -> bool:
    """Whether each says something, and no two have anything in common."""
    return all(sets) and sum(map(len, sets)) == len(frozenset().union(*sets))


def _types(schema: Schema) -> frozenset[str]:
    given = schema.get("type")
    types = {given} if isinstance(given, str) else set(given) if isinstance(given, list) else set()
    return frozenset("number" if name == "integer" else str(name) for name in types)


def _values(schema: Schema, name: str) -> frozenset[str]:
    """Those that a member may have that must be there, in JSON; empty where they are not listed."""
    required, properties = schema.get("required"), schema.get("properties")
    member = properties.get(name) if isinstance(properties, dict) else None
    if not isinstance(required, list) or name not in required or not isinstance(member, dict):
        return frozenset()
    values = [member["const"]] if "const" in member else member.get("enum")
    return frozenset(json.dumps(value, sort_keys=True) for value in values) if isinstance(values, list) else frozenset()
